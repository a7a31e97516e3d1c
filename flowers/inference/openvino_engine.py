"""OpenVINO as the engine: a network from its files, on CPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import openvino

from flowers.inference.engine import Engine, Outputs, Photos

NETWORK = ("network.xml", "network.bin")
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# OpenVINO itself, one of it for as long as this process runs. Its plugin for CPUs gives the thread that loads it
# another stack for signals. When the older of two plugins goes first, or one goes on another thread, the thread is left
# with a stack that was freed, and the next signal is a crash (2026.4).
CORE = openvino.Core()
CORE.set_property({"ENABLE_MMAP": False})  # else a file stays in memory beside the weights made of it


def compiled(precision: str, threads: int) -> dict[str, Any]:
    """How a network is compiled, see `OpenVINOEngine`."""
    return {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Several engines on one machine, each tied to the same cores, would wait for each other.
        "ENABLE_CPU_PINNING": False,
    }


class OpenVINOEngine(Engine):
    """A network that `flowers.inference.conversion.convert` saved.

    Args:
        folder: local, with the files `NETWORK`; they may be deleted afterwards.
        sizes: of the batches, ascending.
        precision: "float32", or "bfloat16", which holds where the CPU computes in it.
        threads: that compute.
    """

    def __init__(self, folder: str, sizes: Sequence[int], precision: str, threads: int) -> None:
        network = CORE.read_model(os.path.join(folder, NETWORK[0]))
        super().__init__(network.input().partial_shape[1].get_length(), sizes)
        self.precision = precision
        self.outputs = [_without_batch(output) for output in network.outputs]
        # The narrower the shape, the faster; but a network for each size would need its weights as often.
        batch = openvino.Dimension(self.sizes[0], self.sizes[-1])
        network.reshape([batch, self.image_size, self.image_size, 3])
        self._request = CORE.compile_model(network, "CPU", compiled(precision, threads)).create_infer_request()

    def _compute(self, photos: Photos) -> Outputs:
        self._request.infer({0: photos}, share_inputs=True)
        return [output.data.copy() for output in self._request.output_tensors]


def _without_batch(output: Any) -> tuple[int, ...]:
    shape = output.partial_shape
    return tuple(shape[axis].get_length() for axis in range(1, len(shape)))
