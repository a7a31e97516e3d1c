"""Where a worker's inputs come from: the cached output of the frozen part, or photos decoded again each epoch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.data import reading
from flowers.data.crops import RandomCrops
from flowers.data.listing import listing_of
from flowers.errors import FlowersError
from flowers.features.cache import FeatureCache
from flowers.features.views import PLAIN, seen
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training.batches import EpochBatches

# Inputs of so many bytes at a time: enough steps in one TensorFlow call to hide Python, few enough for the memory.
CHUNK_BYTES, MOST_STEPS, MOST_ROWS = 16 << 20, 64, 1024
# Part of the photo that a random crop covers.
CROP_SCALE = {"standard": (0.35, 1.0), "strong": (0.2, 1.0)}


@dataclass(frozen=True)
class Subset:
    """The photos of one subset, in the order of split.parquet, which is that of their hashes.

    Attributes:
        labels: int32 [n], of all of them.
        photos: columns path, label, sha256 of those at `part`.
        part: the range of them that this process needs.
    """

    labels: npt.NDArray[np.int32]
    photos: pa.Table
    part: slice

    @classmethod
    def of(cls, photos: pa.Table, labels: npt.NDArray[np.int32]) -> Subset:
        """All photos of a subset."""
        return cls(labels, photos, slice(0, len(labels)))

    def only(self, part: slice) -> Subset:
        """Of a subset with all photos one with those of a range; what is left out is not held."""
        return Subset(self.labels, self.photos.take(pa.array(range(part.start, part.stop), pa.int64())), part)


def read_subsets(run: Run, classes: list[str], names: Sequence[str] = ("train", "validation")) -> list[Subset]:
    """The photos of some subsets of a run; "test" are those that a fold holds out."""
    table = pq.read_table(io.BytesIO(storage.read(run.split)))
    split = table["split"].to_numpy()
    index = {label: number for number, label in enumerate(classes)}
    labels = np.array([index[label] for label in table["label"].to_pylist()], np.int32)
    subsets = []
    for name in names:
        indices = np.flatnonzero(split == name)
        subsets.append(Subset.of(table.take(pa.array(indices)), labels[indices]))
    return subsets


class Inputs(Protocol):
    """The inputs of the photos that a process has of one subset."""

    def steps(self, order: EpochBatches) -> Iterator[npt.NDArray[Any]]:
        """Yields the inputs of an epoch's steps, some steps at a time: [t, b, ...]."""

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the inputs of all these photos in order, some at a time: [n, ...]."""


class Cached:
    """Rows of the feature cache, those of the subset's part: nothing else of it is read, or held.

    Args:
        plan: of the run.
        cut: where the outputs were taken.
        views: of each photo, the plain one first.
        subset: the photos.
        shape: of one input.
        plain: rows of the plain view, if they are there already.

    Attributes:
        views: an array [n, ...] of each.
    """

    def __init__(
        self,
        plan: Plan,
        cut: str,
        views: tuple[str, ...],
        subset: Subset,
        shape: tuple[int, ...],
        plain: npt.NDArray[Any] | None = None,
    ) -> None:
        digests = subset.photos["sha256"].to_pylist()
        self._first = subset.part.start
        rows = [plain if view == PLAIN and plain is not None else _rows(plan, cut, view, digests) for view in views]
        self.views = [view.reshape(len(digests), *shape) for view in rows]

    def steps(self, order: EpochBatches) -> Iterator[npt.NDArray[Any]]:
        """See `Inputs`."""
        at_once = steps_at_once(self.views[0][:1].nbytes * order.indices.shape[1])
        views = order.views(len(self.views))
        for start in range(0, len(order.indices), at_once):
            indices = order.indices[start : start + at_once] - self._first
            chosen = self.views[0][indices]
            for number, view in enumerate(self.views[1:], 1):
                there = views[start : start + at_once] == number
                chosen[there] = view[indices[there]]
            yield chosen

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """See `Inputs`."""
        plain = self.views[0]
        at_once = int(np.clip(CHUNK_BYTES // max(1, plain[:1].nbytes), 1, MOST_ROWS))
        for start in range(0, len(plain), at_once):
            yield plain[start : start + at_once]


def cached_both(
    plan: Plan, cut: str, views: tuple[str, ...], subsets: Sequence[Subset], shape: tuple[int, ...]
) -> tuple[Cached, Cached]:
    """Training photos in some views and validation photos in the plain one, which lie in the same pages: read once."""
    train, validation = subsets
    digests = [subset.photos["sha256"].to_pylist() for subset in subsets]
    plain = _rows(plan, cut, PLAIN, [*digests[0], *digests[1]])
    count = len(digests[0])
    return (
        Cached(plan, cut, views, train, shape, plain[:count]),
        Cached(plan, cut, (PLAIN,), validation, shape, plain[count:]),
    )


def _rows(plan: Plan, cut: str, view: str, digests: Sequence[bytes]) -> npt.NDArray[Any]:
    return FeatureCache(plan.cache(plan.feature(cut, view))).open().rows(digests)


class Streamed:
    """Photos read and decoded by Ray Data, once more in every epoch; the next ones while these are computed.

    Args:
        plan: of the run.
        subset: the photos.
        cpus: CPUs that each reading task asks Ray for.
    """

    def __init__(self, plan: Plan, subset: Subset, cpus: float) -> None:
        self._plan, self._subset, self._cpus = plan, subset, cpus

    def steps(self, order: EpochBatches) -> Iterator[npt.NDArray[Any]]:
        """See `Inputs`."""
        steps, local_batch = order.indices.shape
        augment = self._plan.config.augmentation
        draws = order.draws.reshape(-1, 4) if augment in CROP_SCALE else None
        size = self._plan.image_size
        at_once = steps_at_once(size * size * 3 * local_batch)
        indices = order.indices.reshape(-1) - self._subset.part.start
        rows, views = self._pixels(indices, draws, at_once * local_batch), order.views(len(self._plan.views))
        for start in range(0, steps, at_once):
            chunk = next(rows).reshape(-1, local_batch, size, size, 3)
            for number, view in enumerate(self._plan.views[1:], 1):
                there = views[start : start + at_once] == number
                chunk[there] = seen(chunk[there], view)
            yield chunk

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """See `Inputs`."""
        yield from self._pixels(np.arange(self._subset.photos.num_rows), None, self._plan.config.batch_size)

    def _pixels(
        self, indices: npt.NDArray[np.int64], draws: npt.NDArray[np.float64] | None, at_once: int
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Pixels uint8 [n, size, size, 3] of photos, `at_once` at a time, the last ones fewer.

        `indices` are their places among those of the subset's part.
        """
        if not len(indices):
            return
        plan, size = self._plan, self._plan.image_size
        listing = listing_of(self._subset.photos.take(pa.array(indices)))
        views = reading.stream_pixels(
            listing,
            size=size,
            max_pixels=plan.config.max_pixels,
            readers=plan.readers,
            crops=None if draws is None else RandomCrops(draws, CROP_SCALE[plan.config.augmentation]),
            num_cpus=self._cpus,
        )
        expected = self._subset.photos["sha256"].to_pylist()
        done = 0
        for table in reading.tables(views, at_once):
            wanted = [expected[index] for index in indices[done : done + table.num_rows]]
            for row, digest in enumerate(wanted):
                if table["pixels"][row].as_py() is None or table["sha256"][row].as_py() != digest:
                    raise FlowersError(
                        f"{table['path'][row].as_py()} changed or vanished since this run began "
                        f"({table['detail'][row].as_py() or 'other content'}); put it back, or start over with --fresh"
                    )
            pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).copy()
            yield pixels.reshape(-1, size, size, 3)
            done += table.num_rows


def steps_at_once(step_bytes: int) -> int:
    """Steps to run in one TensorFlow call."""
    return int(np.clip(CHUNK_BYTES // max(1, step_bytes), 1, MOST_STEPS))
