"""Export a bundle for other programs: `python -m jobs.export --bundle RUN --format onnx --to OUT`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import ExportOptions

_HELP = """Export the network of a run for other programs, and run it there on photos before it counts as done.

\b
For ONNX Runtime:         python -m jobs.export --bundle RUN --format onnx --to OUT
For phones, in 8 bits:    python -m jobs.export --bundle RUN --format litert --quantize int8 --to OUT
For TensorFlow Serving:   python -m jobs.export --bundle RUN --format saved_model --layout tensorflow-serving
                          --to MODELS/NAME
For Triton:               python -m jobs.export --bundle RUN --format onnx --layout triton --to MODELS/NAME
"""


@cli.command(_HELP, ExportOptions)
def main(**values: Any) -> None:
    """Parses, exports; exit code 3 if the export answers otherwise than the bundle."""
    out = cli.console(bool(values["verbose"]))
    options = ExportOptions(**cli.given(values, ExportOptions))
    from flowers.pipelines.export import export

    export(options, out)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.export")
