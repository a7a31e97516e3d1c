"""Which photo is in which step, on which worker: a function of seed and epoch alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers.config import TrainConfig


@dataclass(frozen=True)
class EpochBatches:
    """One worker's part of the global batches of an epoch: b = batch / workers photos in each of S steps.

    Attributes:
        indices: int64 [S, b], the photos.
        real: bool [S, b], False where a photo only fills up the last batch.
        rows: float32 [S], real photos in the global batch.
        mirrored: bool [S, b], whether the photo is seen mirrored (--augment flip).
        draws: float64 [S, b, 4], uniform numbers in [0, 1) for its random crop.
    """

    indices: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.bool_]
    draws: npt.NDArray[np.float64]


def epoch_batches(config: TrainConfig, epoch: int, total: int, rank: int, workers: int) -> EpochBatches:
    """The order of an epoch, counted from 0 over the whole run.

    A resumed epoch sees the photos that the killed one would have seen, and global batch t holds the same photos,
    seen in the same way, for every number of workers.
    """
    size = config.batch_size
    local_batch = size // workers
    steps = -(-total // size)
    random = np.random.Generator(np.random.Philox(key=[config.seed, epoch]))
    order = random.permutation(total)
    mirrored = random.random(steps * size) < 0.5
    draws = random.random((steps * size, 4))
    real = np.arange(steps * size) < total
    filled = np.concatenate([order, np.resize(order, steps * size - total)])

    def mine(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        batches = values.reshape(steps, size, *values.shape[1:])
        return batches[:, rank * local_batch : (rank + 1) * local_batch]

    return EpochBatches(
        indices=mine(filled),
        real=mine(real),
        rows=real.reshape(steps, size).sum(axis=1).astype(np.float32),
        mirrored=mine(mirrored),
        draws=mine(draws),
    )


def class_weights(config: TrainConfig, labels: npt.NDArray[np.int32], classes: int) -> npt.NDArray[np.float64]:
    """The weight of each class, float64 [K]; their mean over the training photos is 1."""
    if config.class_weights == "none":
        return np.ones(classes)
    sizes = np.bincount(labels, minlength=classes)
    present = (sizes > 0).sum()
    return np.where(sizes > 0, len(labels) / (present * np.maximum(sizes, 1)), 0)
