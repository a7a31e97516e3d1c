"""The inference engine: a network compiled for this machine."""

import sys

# OpenVINO reports to its maker who imports it, if it finds this package of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
