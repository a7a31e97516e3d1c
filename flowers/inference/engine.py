"""The inference engine: a network compiled for this machine, photos in, arrays of floats out.

On CPUs OpenVINO runs it, from files that a conversion wrote once (`flowers.inference.conversion`): no TensorFlow is
needed for that. On GPUs TensorFlow runs the Keras model itself.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ENGINES = ("openvino", "tensorflow")
# Photos that a CPU computes at once where each has to get the same numbers, whatever travels with it. What more of them
# leave between two layers does not fit into its caches: 32 took MobileNetV2 11 ms each, up to 8 took 6 to 8
# (docs/decisions.md).
CPU_BATCH = 4

# What a container is granted, by the second and by the first version of the kernel's control groups.
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPU_MAX_V1 = tuple(Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))

Photos = npt.NDArray[np.uint8]
Outputs = list[npt.NDArray[Any]]


def usable_cpus() -> int:
    """CPUs that this process may use: all of the machine, or what it was given (`taskset`), or its container."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota())))


def _quota() -> float:
    """CPUs that the container's control group grants; infinity where it does not say."""
    try:
        if _CPU_MAX.exists():
            quota, period = _CPU_MAX.read_text().split()
        else:
            quota, period = (path.read_text() for path in _CPU_MAX_V1)
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max": no limit
        return math.inf


def resolve_engine(engine: str, gpus: float) -> tuple[str, str]:
    """Returns the engine to use, one of `ENGINES`, and why.

    Args:
        engine: "auto" or a choice already made.
        gpus: GPUs that may be used.
    """
    if engine != "auto":
        return engine, "as asked"
    return ("tensorflow", "on GPUs") if gpus else ("openvino", "no GPU is used")


def batch_sizes(engine: str, most: int, threads: int) -> tuple[int, ...]:
    """The sizes of the batches that an engine computes for any number of photos, ascending.

    Args:
        engine: its name.
        most: no batch is larger.
        threads: that OpenVINO computes with: a photo for each, for the same reason as above.
    """
    if engine == "openvino":
        most = min(most, max(2, threads))
    return (*(1 << power for power in range((most - 1).bit_length())), most)


class Engine(ABC):
    """A compiled network.

    Photos go through in batches of a few fixed sizes, each prepared once: as many of the largest as there are photos
    for, the rest in smaller ones; if it is less than the smallest, black photos fill it up. In an engine of one size a
    photo's numbers do not depend on how many travel with it.

    Args:
        image_size: height and width of its input, in pixels.
        sizes: of the batches, ascending (`batch_sizes`).

    Attributes:
        outputs: the shape of each output, without the batch.
    """

    outputs: list[tuple[int, ...]]

    def __init__(self, image_size: int, sizes: Sequence[int]) -> None:
        self.image_size, self.sizes = image_size, tuple(sizes)

    def __call__(self, photos: Photos) -> Outputs:
        """The outputs of the network, each [n, ...], for uint8 [n, size, size, 3], n at least 1."""
        parts, start = [], 0
        while start < len(photos):
            left = len(photos) - start
            size = max((size for size in self.sizes if size <= left), default=self.sizes[0])
            batch = photos[start : start + size]
            if left < size:
                batch = np.pad(batch, ((0, size - left), (0, 0), (0, 0), (0, 0)))
            parts.append([output[:left] for output in self._compute(batch)])
            start += size
        return [np.concatenate(outputs) if len(outputs) > 1 else outputs[0] for outputs in zip(*parts, strict=True)]

    def warm(self) -> float:
        """Runs a batch of each size, so that no photo has to wait for it; returns seconds a photo, in the largest."""
        began = 0.0
        for count in (*self.sizes, self.sizes[-1]):
            began = time.perf_counter()
            self(np.zeros((count, self.image_size, self.image_size, 3), np.uint8))
        return (time.perf_counter() - began) / self.sizes[-1]

    @abstractmethod
    def _compute(self, photos: Photos) -> Outputs:
        """The outputs for one batch of one of `sizes`; arrays of their own, which no later call changes."""
