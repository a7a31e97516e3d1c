"""Feature extraction: one pass; each photo is read, hashed, decoded and put through the frozen network, once."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data import near_duplicates, reading
from flowers.data.ledger import HARMLESS, ROW, Ledger, check_bad_fraction
from flowers.features.cache import FeatureCache
from flowers.features.extractor import FeatureExtractor
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import BATCH, FeatureSpec

if TYPE_CHECKING:
    import ray.data

# The hash of a picture that is too flat to have one, as it is cached.
_FLAT = bytes(near_duplicates.BYTES)

# Files still to be read for which it pays to stop before all are counted.
_WORTH_STOPPING = 1000

Caches = dict[FeatureSpec, FeatureCache]
# Makes the stream of decoded photos of a listing; those whose digests are given need no pixels.
Photos = Callable[[pa.Table, list[bytes]], "ray.data.Dataset"]


class Filling(Protocol):
    """Photos on their way into some caches; those that are there, or come a second time, are not computed."""

    computed: int  # photos put through the network

    def stream(self, photos: ray.data.Dataset) -> ray.data.Dataset:
        """Blocks for `take`, with the columns of a ledger's row, from decoded photos (schema `reading.PIXELS`)."""

    def take(self, table: pa.Table) -> None:
        """Takes a block."""

    def finish(self) -> None:
        """Computes what is left: from here on all photos that were taken are in the caches."""


class Backend(Protocol):
    """Where the frozen network runs."""

    seconds: float  # spent in the network
    waited: float  # spent waiting for it to be built

    def filling(self, caches: Caches) -> Filling:
        """Begins to fill caches, which are opened."""


class InProcess:
    """The network in the job's own process: faster on one machine without GPUs, as no pixels change their process.

    Args:
        extractor: gives the network for some specs; called when the first batch of photos is ready.
    """

    def __init__(self, extractor: Callable[[tuple[FeatureSpec, ...]], FeatureExtractor]) -> None:
        self._extractor = extractor
        self.seconds = self.waited = 0.0

    def filling(self, caches: Caches) -> Filling:
        """See `Backend`."""
        return _Here(caches, self)

    def features(self, specs: Sequence[FeatureSpec], pixels: Sequence[pa.Scalar]) -> list[npt.NDArray[Any]]:
        """An array [n, width] for each spec, from the pixels of n photos."""
        began = time.perf_counter()
        extractor = self._extractor(tuple(specs))
        ready = time.perf_counter()
        made = extractor.features(_stacked(pixels, extractor.image_size))
        self.waited += ready - began
        self.seconds += time.perf_counter() - ready
        return made


class _Here:
    """Gathers new photos into full batches, whatever the blocks they come in, and caches their features."""

    def __init__(self, caches: Caches, backend: InProcess) -> None:
        self._caches, self._backend = caches, backend
        self._held = {spec: set(cache.digests()) for spec, cache in caches.items()}
        self._done = set.intersection(*self._held.values())
        self._waiting: dict[bytes, pa.Scalar] = {}
        self.computed = 0

    def stream(self, photos: ray.data.Dataset) -> ray.data.Dataset:
        """See `Filling`."""
        return photos

    def take(self, table: pa.Table) -> None:
        """See `Filling`."""
        for digest, index in _decoded(table).items():
            if digest not in self._done:
                self._done.add(digest)
                self._waiting[digest] = table["pixels"][index]
        while len(self._waiting) >= BATCH:
            self._run()

    def finish(self) -> None:
        """See `Filling`."""
        while self._waiting:
            self._run()

    def _run(self) -> None:
        batch = list(self._waiting)[:BATCH]
        pixels = [self._waiting.pop(digest) for digest in batch]
        specs = list(self._caches)
        for spec, rows in zip(specs, self._backend.features(specs, pixels), strict=True):
            new = [index for index, digest in enumerate(batch) if digest not in self._held[spec]]
            if new:
                self._caches[spec].add([batch[index] for index in new], rows[new])
        self.computed += len(batch)


class ActorPool:
    """The network in Ray actors, on several GPUs or machines, which write what they compute.

    Args:
        network: prepared for the cuts of the specs.
        actors: how many there are.
        cpus: CPUs, and threads of the network, of each.
        gpus: GPUs of each.
    """

    def __init__(self, network: FrozenNetwork, actors: int, cpus: int, gpus: float) -> None:
        self.network, self.actors, self.cpus, self.gpus = network, actors, cpus, gpus
        self.seconds = self.waited = 0.0

    def filling(self, caches: Caches) -> Filling:
        """See `Backend`."""
        return _InActors(caches, self)


class _InActors:
    """Sends photos through actors, from which rows of a ledger come back and nothing else."""

    def __init__(self, caches: Caches, backend: ActorPool) -> None:
        self._caches, self._backend = caches, backend
        self.computed = 0

    def stream(self, photos: ray.data.Dataset) -> ray.data.Dataset:
        """See `Filling`."""
        import ray

        pool = self._backend
        held = {spec: ray.put(reading.digests_array(cache.digests())) for spec, cache in self._caches.items()}
        # Were its node lost, a photo that lies in two batches might be computed twice, and no more.
        claims = ray.remote(Claims).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        folders = {spec: cache.uri for spec, cache in self._caches.items()}
        return reading.through_actors(
            photos,
            CachingExtractor,
            (pool.network, folders, held, claims, pool.cpus),
            actors=pool.actors,
            cpus=pool.cpus,
            gpus=pool.gpus,
        )

    def take(self, table: pa.Table) -> None:
        """See `Filling`."""
        self.computed += table["computed"].to_pylist().count(True)

    def finish(self) -> None:
        """See `Filling`."""


class Claims:
    """A Ray actor that says which batch computes a photo that lies in several."""

    def __init__(self) -> None:
        self._batch_of: dict[bytes, bytes] = {}

    def take(self, batch: bytes, digests: list[bytes]) -> list[bytes]:
        """Those of the digests that are the batch's own; the same again if its task is tried again."""
        return [digest for digest in digests if self._batch_of.setdefault(digest, batch) == batch]


class CachingExtractor:
    """Runs in a Ray actor: the new photos of a block go through the network, and their features into the caches.

    They are written when it returns: what came back is kept, whatever happens next. A task that is tried again, on
    another node too, writes the same parts again.

    Args:
        network: prepared for the cuts of the specs.
        folders: URI of the cache of each spec.
        held: references to the digests that each cache holds already, sorted.
        claims: handle of a `Claims` actor.
        threads: that the network computes with.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        folders: dict[FeatureSpec, str],
        held: dict[FeatureSpec, Any],
        claims: Any,
        threads: int,
    ) -> None:
        import ray

        from flowers.cluster.nodes import keep_to_own_gpus

        keep_to_own_gpus()
        self._caches = {spec: FeatureCache(folder) for spec, folder in folders.items()}
        self._held = {spec: ray.get(reference) for spec, reference in held.items()}
        self._claims = claims
        self._network, self._threads = network, threads

    @functools.cached_property
    def _extractor(self) -> FeatureExtractor:
        """Compiled when the first new photo comes: of a folder that is known already, none does."""
        return FeatureExtractor(self._network, list(self._caches), self._threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Puts a column `computed` in the place of `pixels`: whether this row went through the network."""
        import ray

        held = {spec: reading.contained(block["sha256"], digests) for spec, digests in self._held.items()}
        everywhere = np.logical_and.reduce(list(held.values()))
        new = {digest: index for digest, index in _decoded(block).items() if not everywhere[index]}
        batch = hashlib.sha256("\0".join(block["path"].to_pylist()).encode()).digest()
        mine = ray.get(self._claims.take.remote(batch, list(new))) if new else []
        for start in range(0, len(mine), BATCH):
            digests = mine[start : start + BATCH]
            photos = _stacked([block["pixels"][new[digest]] for digest in digests], self._extractor.image_size)
            for spec, rows in zip(self._caches, self._extractor.features(photos), strict=True):
                wanted = np.flatnonzero([not held[spec][new[digest]] for digest in digests])
                if len(wanted):
                    self._caches[spec].add([digests[index] for index in wanted], rows[wanted])
        for cache in self._caches.values():
            cache.flush()
        computed = np.zeros(block.num_rows, np.bool_)
        computed[[new[digest] for digest in mine]] = True
        return block.select(ROW.names).append_column("computed", pa.array(computed))


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
        max_bad_fraction: stop as soon as more files than this fraction are certain to be unusable, if there are many
            still to be read; else `settle` counts them, also those that only show beside all others.
        advance: told how many files are done.

    Raises:
        InputError: the data cannot be trained on; too many bad files are reported as soon as it is certain.
    """
    rows: list[pa.Table] = []
    read, bad, hits, waited = 0, 0, 0, 0.0
    began = time.perf_counter()
    cached = _in_all(caches)
    hashed = set() if hashes is None else set(hashes.digests())
    skipped = cached if hashes is None else cached & hashed
    filling = backend.filling(caches)
    with _kept([*caches.values(), *([] if hashes is None else [hashes])]):
        for table in reading.tables(filling.stream(photos(listing, list(skipped)))):
            if not rows:
                waited = time.perf_counter() - began
            row = reading.detached(table, ROW.names)
            rows.append(row)
            bad += sum(code is not None and code not in HARMLESS for code in row["code"].to_pylist())
            read += table.num_rows
            if bad > max_bad_fraction * listing.num_rows and listing.num_rows - read >= _WORTH_STOPPING:
                check_bad_fraction(pa.concat_tables(rows), max_bad_fraction, listing.num_rows)
            usable = row.filter(pc.is_null(row["code"]))
            hits += sum(digest in cached for digest in usable["sha256"].to_pylist())
            if hashes is not None:
                _add_hashes(hashes, usable, hashed)
            filling.take(table)
            advance(table.num_rows)
        table = pa.concat_tables(rows)
        ledger = settle(table if hashes is None else _with_hashes(table, hashes))
        filling.finish()
    return Extraction(ledger, hits, filling.computed, backend.seconds, waited + backend.waited)


def fill(
    listing: pa.Table,
    photos: Photos,
    caches: Caches,
    backend: Backend,
    *,
    advance: Callable[[int], None],
) -> None:
    """Fills the caches with the features of photos that are known to be good; computes only those that are missing."""
    filling = backend.filling(caches)
    with _kept(list(caches.values())):
        for table in reading.tables(filling.stream(photos(listing, list(_in_all(caches))))):
            filling.take(table)
            advance(table.num_rows)
        filling.finish()


@contextmanager
def _kept(caches: Sequence[FeatureCache]) -> Iterator[None]:
    """Writes in the end what is pending, also when it is stopped: what was computed is not computed again."""
    try:
        yield
    finally:
        for cache in caches:
            cache.flush()
            cache.open().touch()  # it knows then what actors have written


def _in_all(caches: Caches) -> set[bytes]:
    """Digests of the photos that are in all caches."""
    return set.intersection(*(set(cache.digests()) for cache in caches.values()))


def _decoded(table: pa.Table) -> dict[bytes, int]:
    """The photos of a block that have pixels, and the row of each: the first, where several are the same."""
    rows: dict[bytes, int] = {}
    for index in np.flatnonzero(pc.is_valid(table["pixels"]).to_numpy()).tolist():
        rows.setdefault(table["sha256"][index].as_py(), index)
    return rows


def _stacked(pixels: Sequence[pa.Scalar], size: int) -> npt.NDArray[np.uint8]:
    """Photos uint8 [n, size, size, 3] from their pixels."""
    return np.stack([np.frombuffer(value.as_py(), np.uint8).reshape(size, size, 3) for value in pixels])


def _add_hashes(hashes: FeatureCache, usable: pa.Table, hashed: set[bytes]) -> None:
    """Adds the perceptual hashes of usable photos that have none yet, and notes which these are."""
    for digest, value in zip(usable["sha256"].to_pylist(), usable["phash"].to_pylist(), strict=True):
        if digest not in hashed:
            hashed.add(digest)
            hashes.add([digest], np.frombuffer(value or _FLAT, np.uint8)[None])


def _with_hashes(rows: pa.Table, hashes: FeatureCache) -> pa.Table:
    """Rows with the perceptual hashes also of photos that were not decoded."""
    missing = pc.and_(pc.is_null(rows["code"]), pc.is_null(rows["phash"])).to_numpy()
    if not missing.any():
        return rows
    hashes.flush()
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
