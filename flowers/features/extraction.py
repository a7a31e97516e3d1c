"""Feature extraction: one pass; each photo is read, hashed, decoded and put through the frozen network, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data import near_duplicates, reading
from flowers.data.ledger import HARMLESS, ROW, Ledger, check_bad_fraction
from flowers.features.cache import FeatureCache, from_arrow
from flowers.features.extractor import FeatureExtractor
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import BATCH, FeatureSpec

if TYPE_CHECKING:
    import ray.data

# Rows that an actor takes at once: its last, filled-up batch of 32 then costs little.
_ACTOR_ROWS = 256
# The hash of a picture that is too flat to have one, as it is cached.
_FLAT = bytes(near_duplicates.BYTES)

Caches = dict[FeatureSpec, FeatureCache]
# Makes the stream of decoded photos of a listing; those whose digests are given need no pixels.
Photos = Callable[[pa.Table, list[bytes]], "ray.data.Dataset"]


class Backend(Protocol):
    """Where the frozen network runs."""

    seconds: float  # spent in the network
    waited: float  # spent waiting for it to be built

    def stream(self, photos: ray.data.Dataset, specs: Sequence[FeatureSpec]) -> ray.data.Dataset:
        """Blocks with the columns that `features` takes, from decoded photos (schema `reading.PIXELS`)."""

    def columns(self, specs: Sequence[FeatureSpec]) -> list[str]:
        """Names of these columns; null where a photo needs no features."""

    def features(self, specs: Sequence[FeatureSpec], columns: list[list[Any]]) -> list[npt.NDArray[Any]]:
        """An array [n, width] for each spec, from the values of n photos in each column."""


class InProcess:
    """The network in the job's own process: faster on one machine without GPUs, as no pixels change their process.

    Args:
        extractor: gives the network for some specs; called when the first batch of photos is ready.
    """

    def __init__(self, extractor: Callable[[tuple[FeatureSpec, ...]], FeatureExtractor]) -> None:
        self._extractor = extractor
        self.seconds = self.waited = 0.0

    def stream(self, photos: ray.data.Dataset, specs: Sequence[FeatureSpec]) -> ray.data.Dataset:
        """See `Backend`."""
        return photos

    def columns(self, specs: Sequence[FeatureSpec]) -> list[str]:
        """See `Backend`."""
        return ["pixels"]

    def features(self, specs: Sequence[FeatureSpec], columns: list[list[Any]]) -> list[npt.NDArray[Any]]:
        """See `Backend`."""
        began = time.perf_counter()
        extractor = self._extractor(tuple(specs))
        ready = time.perf_counter()
        shape = (extractor.image_size, extractor.image_size, 3)
        photos = [np.frombuffer(value.as_py(), np.uint8).reshape(shape) for value in columns[0]]
        made = extractor.features(np.stack(photos))
        self.waited += ready - began
        self.seconds += time.perf_counter() - ready
        return made


class ActorPool:
    """The network in Ray actors, on several GPUs or machines.

    Args:
        network: prepared for the cuts of the specs.
        actors: how many there are.
        cpus: CPUs, and threads of the network, of each.
        gpus: GPUs in the cluster, shared by the actors.
    """

    def __init__(self, network: FrozenNetwork, actors: int, cpus: int, gpus: int) -> None:
        self._network, self._actors, self._cpus, self._gpus = network, actors, cpus, gpus
        self.seconds = self.waited = 0.0

    def stream(self, photos: ray.data.Dataset, specs: Sequence[FeatureSpec]) -> ray.data.Dataset:
        """See `Backend`."""
        import ray.data

        return photos.map_batches(
            FeatureExtractor,
            fn_constructor_args=(self._network, tuple(specs), self._cpus),
            batch_format="pyarrow",
            batch_size=_ACTOR_ROWS,
            compute=ray.data.ActorPoolStrategy(size=self._actors),
            num_gpus=min(1.0, self._gpus / self._actors) if self._gpus else None,
            num_cpus=None if self._gpus else self._cpus,
        )

    def columns(self, specs: Sequence[FeatureSpec]) -> list[str]:
        """See `Backend`."""
        return [spec.column for spec in specs]

    def features(self, specs: Sequence[FeatureSpec], columns: list[list[Any]]) -> list[npt.NDArray[Any]]:
        """See `Backend`."""
        return [np.concatenate([from_arrow(pa.array([value])) for value in column]) for column in columns]


@dataclass(frozen=True)
class Extraction:
    """What the pass found.

    Attributes:
        ledger: every file, settled.
        hits: photos whose features were in the cache.
        computed: photos put through the network.
        features_s: seconds spent in the network.
        waited_s: seconds spent waiting for the first photo and for the network to be built.
    """

    ledger: Ledger
    hits: int
    computed: int
    features_s: float
    waited_s: float


def extract(
    listing: pa.Table,
    photos: Photos,
    caches: Caches,
    backend: Backend,
    *,
    hashes: FeatureCache | None,
    settle: Callable[[pa.Table], Ledger],
    max_bad_fraction: float,
    advance: Callable[[int], None],
) -> Extraction:
    """Settles every file of a listing and fills the caches with the features of every usable photo.

    Args:
        listing: the files, schema `flowers.data.listing.LISTING`.
        photos: decodes them.
        caches: opened, one for each spec.
        backend: where the network runs.
        hashes: cache of perceptual hashes, opened; None where nobody asks for near-duplicates.
        settle: makes the ledger of all rows (schema `flowers.data.ledger.ROW`).
        max_bad_fraction: stop as soon as more files than this fraction are certain to be unusable.
        advance: told how many files are done.

    Raises:
        InputError: the data cannot be trained on; too many bad files are reported as soon as it is certain.
    """
    rows: list[pa.Table] = []
    bad, waited = 0, 0.0
    began = time.perf_counter()
    with _CacheWriter(caches, backend, hashes) as writer:
        for table in writer.tables(listing, photos):
            if not rows:
                waited = time.perf_counter() - began
            rows.append(reading.detached(table, ROW.names))
            bad += sum(code is not None and code not in HARMLESS for code in table["code"].to_pylist())
            if bad > max_bad_fraction * listing.num_rows:
                check_bad_fraction(pa.concat_tables(rows), max_bad_fraction, listing.num_rows)
            writer.take(table)
            advance(table.num_rows)
        table = pa.concat_tables(rows)
        ledger = settle(table if hashes is None else _with_hashes(table, hashes))
        writer.finish()
    usable = sum(pc.is_null(part["code"]).to_numpy().sum() for part in rows)
    hits = int(usable) - writer.computed - writer.repeats
    return Extraction(ledger, hits, writer.computed, backend.seconds, waited + backend.waited)


def fill(
    listing: pa.Table,
    photos: Photos,
    caches: Caches,
    backend: Backend,
    *,
    advance: Callable[[int], None],
) -> None:
    """Fills the caches with the features of photos that are known to be good; computes only those that are missing."""
    with _CacheWriter(caches, backend) as writer:
        for table in writer.tables(listing, photos):
            writer.take(table)
            advance(table.num_rows)
        writer.finish()


class _CacheWriter:
    """Gathers new photos into full batches, whatever the blocks they come in, and caches their features.

    Leaving it writes what is pending, also when it is stopped: what was computed is not computed again.
    """

    def __init__(self, caches: Caches, backend: Backend, hashes: FeatureCache | None = None) -> None:
        self._caches, self._backend, self._hashes = caches, backend, hashes
        self._specs = list(caches)
        self._held = {spec: set(cache.digests()) for spec, cache in caches.items()}
        self._done = set.intersection(*self._held.values())
        self._cached = frozenset(self._done)
        self._hashed = set() if hashes is None else set(hashes.digests())
        self._waiting: list[tuple[bytes, list[Any]]] = []
        self.computed = self.repeats = 0

    def __enter__(self) -> _CacheWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for cache in filter(None, (*self._caches.values(), self._hashes)):
            cache.flush()
            cache.touch()

    def tables(self, listing: pa.Table, photos: Photos) -> Iterator[pa.Table]:
        """Blocks of the backend, of all files; photos that are in the caches are not decoded."""
        known = self._cached if self._hashes is None else self._cached & self._hashed
        return reading.tables(self._backend.stream(photos(listing, list(known)), self._specs))

    def take(self, table: pa.Table) -> None:
        """Takes the photos of a block of `Backend.stream`."""
        values, digests = [table[name] for name in self._backend.columns(self._specs)], table["sha256"]
        for index in np.flatnonzero(pc.is_valid(values[0]).to_numpy()).tolist():
            digest = digests[index].as_py()
            if self._hashes is not None and digest not in self._hashed:
                self._hashed.add(digest)
                value = table["phash"][index].as_py() or _FLAT
                self._hashes.add([digest], np.frombuffer(value, np.uint8)[None])
            if digest in self._done:
                self.repeats += digest not in self._cached
                continue
            self._done.add(digest)
            self._waiting.append((digest, [column[index] for column in values]))
        while len(self._waiting) >= BATCH:
            self._run()

    def finish(self) -> None:
        """Computes what is left, a batch that is not full included."""
        while self._waiting:
            self._run()

    def _run(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        columns = [list(column) for column in zip(*(values for _, values in batch), strict=True)]
        for spec, rows in zip(self._specs, self._backend.features(self._specs, columns), strict=True):
            new = [index for index, (digest, _) in enumerate(batch) if digest not in self._held[spec]]
            if new:
                self._caches[spec].add([batch[index][0] for index in new], rows[new])
        self.computed += len(batch)


def _with_hashes(rows: pa.Table, hashes: FeatureCache) -> pa.Table:
    """Rows with the perceptual hashes also of photos that were not decoded."""
    missing = pc.and_(pc.is_null(rows["code"]), pc.is_null(rows["phash"])).to_numpy()
    if not missing.any():
        return rows
    found = rows["phash"].to_pylist()
    positions = np.flatnonzero(missing)
    digests = rows["sha256"].take(pa.array(positions)).to_pylist()
    for position, value in zip(positions.tolist(), hashes.rows(digests), strict=True):
        found[position] = None if value.tobytes() == _FLAT else value.tobytes()
    at = rows.schema.get_field_index("phash")
    return rows.set_column(at, rows.schema.field(at), pa.array(found, rows.schema.field(at).type))


def open_caches(folder: Callable[[FeatureSpec], str], specs: Iterable[FeatureSpec]) -> tuple[Caches, list[str]]:
    """Opens the caches of some specs, and names the parts that were damaged: their photos are computed again."""
    caches = {spec: FeatureCache(folder(spec)).open() for spec in specs}
    return caches, [name for cache in caches.values() for name in cache.damaged]
