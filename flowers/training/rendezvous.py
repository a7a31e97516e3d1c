"""How the train workers find each other: TensorFlow's `TF_CONFIG`, set in each of them before it trains.

`ray.train.tensorflow.TensorflowConfig` does the same, but to unpickle it is to import TensorFlow, and Ray's controller,
which computes nothing, would import it before any worker is started: six seconds of a run.
"""

from __future__ import annotations

import json
import os
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework


class RendezvousConfig(BackendConfig):
    """For `TensorflowTrainer(tensorflow_config=...)`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What the controller calls when the workers have started."""
        return _Rendezvous

    @property
    def framework(self) -> TrainingFramework:
        """Shown on Ray's dashboard."""
        return TrainingFramework.TENSORFLOW

    def to_dict(self) -> dict[str, Any]:
        """Settings shown on Ray's dashboard: there are none."""
        return {}


class _Rendezvous(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_address)
        ray.get(
            [
                worker_group.execute_single_async(index, _introduce, addresses, index)
                for index in range(len(worker_group))
            ]
        )


def _address() -> str:
    host, port = get_address_and_port()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _introduce(addresses: list[str], index: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}},
    )
