"""Which photo is in which step, on which worker: a function of seed and epoch alone.

The photos, in the order of their hashes, are cut into as many equal ranges as a batch has places, the slots. A step
takes one photo of each, shuffled within the slot in each epoch. A worker has the slots of its part of the batch, so all
that it ever needs are the photos of one range of hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowers.config import TrainConfig


@dataclass(frozen=True)
class EpochBatches:
    """One worker's part of the global batches of an epoch: b = batch / workers photos in each of S steps.

    Attributes:
        indices: int64 [S, b], the photos, by their place among all of the subset.
        real: bool [S, b], False where a photo only fills up the last batch.
        rows: float32 [S], real photos in the global batch.
        choices: float64 [S, b], uniform numbers in [0, 1), by which one of its views is chosen.
        draws: float64 [S, b, 4], the same for its random crop.
    """

    indices: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.float32]
    choices: npt.NDArray[np.float64]
    draws: npt.NDArray[np.float64]

    def views(self, count: int) -> npt.NDArray[np.int64]:
        """Which of so many views each photo is seen in: int64 [S, b], from 0 to count - 1."""
        return count - 1 - np.floor(self.choices * count).astype(np.int64)


def share(total: int, rank: int, workers: int) -> slice:
    """A worker's range of photos: between them the workers have each once, and as many as the others, or one more."""
    return slice(total * rank // workers, total * (rank + 1) // workers)


def needed(total: int, batch_size: int, rank: int, workers: int) -> slice:
    """The photos that a worker's batches are made of: its share, and what fills up batches that are larger than all."""
    mine = share(total, rank, workers)
    last_slot = total * ((rank + 1) * (batch_size // workers) - 1) // batch_size
    filling = min(last_slot, total - 1)
    return slice(min(mine.start, filling), max(mine.stop, filling + 1))


def epoch_batches(config: TrainConfig, epoch: int, total: int, rank: int, workers: int) -> EpochBatches:
    """The order of an epoch, counted from 0 over the whole run.

    A resumed epoch sees the photos that the killed one would have seen, and global batch t holds the same photos,
    seen in the same way, for every number of workers.
    """
    size = config.batch_size
    local_batch = size // workers
    steps = -(-total // size)
    random = np.random.Generator(np.random.Philox(key=[config.seed, epoch]))
    keys = random.random((size, steps))
    choices = random.random((steps, size))
    draws = random.random((steps, size, 4))
    starts = np.arange(size + 1) * total // size
    counts = np.diff(starts)
    mine = slice(rank * local_batch, (rank + 1) * local_batch)
    place, first, count = np.arange(steps), starts[mine, None], counts[mine, None]
    order = np.argsort(np.where(place < count, keys[mine], 1.0), axis=1, kind="stable")
    real = place < count
    filling = np.where(count > 0, first + order[:, :1], np.minimum(first, total - 1))
    return EpochBatches(
        indices=np.where(real, first + order, filling).T.copy(),
        real=real.T.copy(),
        rows=(np.arange(steps)[:, None] < counts).sum(axis=1).astype(np.float32),
        choices=choices[:, mine],
        draws=draws[:, mine],
    )


def class_weights(config: TrainConfig, labels: npt.NDArray[np.int32], classes: int) -> npt.NDArray[np.float64]:
    """The weight of each class, float64 [K]; their mean over the training photos is 1."""
    if config.class_weights == "none":
        return np.ones(classes)
    sizes = np.bincount(labels, minlength=classes)
    present = (sizes > 0).sum()
    return np.where(sizes > 0, len(labels) / (present * np.maximum(sizes, 1)), 0)
