"""The inference engine: a network compiled for this machine, photos in, arrays of floats out.

On CPUs OpenVINO runs it, from files that a conversion wrote once (`flowers.inference.conversion`): no TensorFlow is
needed for that. On GPUs TensorFlow runs the Keras model itself.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ENGINES = ("openvino", "tensorflow")

Photos = npt.NDArray[np.uint8]
Outputs = list[npt.NDArray[Any]]


def resolve_engine(engine: str, gpus: float) -> tuple[str, str]:
    """Returns the engine to use, one of `ENGINES`, and why.

    Args:
        engine: "auto" or a choice already made.
        gpus: GPUs that may be used.
    """
    if engine != "auto":
        return engine, "as asked"
    return ("tensorflow", "there are GPUs") if gpus else ("openvino", "there is no GPU")


class Engine(ABC):
    """A compiled network.

    Photos go through in batches of a few fixed sizes, filled up with black ones: each size is prepared once, and in
    engines of one size a photo's numbers do not depend on how many travel with it.

    Args:
        image_size: height and width of its input, in pixels.
        sizes: of the batches, ascending.

    Attributes:
        outputs: the shape of each output, without the batch.
    """

    outputs: list[tuple[int, ...]]

    def __init__(self, image_size: int, sizes: Sequence[int]) -> None:
        self.image_size, self.sizes = image_size, tuple(sizes)

    def __call__(self, photos: Photos) -> Outputs:
        """The outputs of the network, each [n, ...], for uint8 [n, size, size, 3], n at least 1."""
        most = self.sizes[-1]
        parts = []
        for start in range(0, len(photos), most):
            chunk = photos[start : start + most]
            # After a full batch its remainder is filled up as well: it has no size of its own to warm up.
            size = most if start else next(size for size in self.sizes if size >= len(chunk))
            missing = size - len(chunk)
            padded = np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else chunk
            parts.append([output[: len(chunk)] for output in self._compute(padded)])
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
