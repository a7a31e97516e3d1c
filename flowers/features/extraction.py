"""One pass over photos: each is read, hashed, decoded and put through the frozen network, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers.data import reading
from flowers.data.ledger import HARMLESS, ROW, Ledger, check_bad_fraction
from flowers.features.cache import BATCH, FeatureCache, FrozenPart, Target, from_arrow
from flowers.plan import Plan
from flowers.progress import progress_bar

if TYPE_CHECKING:
    import ray.data

# Rows that an actor takes at once: its last, filled-up batch of 32 then costs little.
_ACTOR_ROWS = 256


@dataclass(frozen=True)
class Frozen:
    """The frozen network and where it runs.

    Attributes:
        local: gives the network in this process; asked when the first batch of photos is ready.
        make: makes its Keras model in an actor; can be pickled.
        actors: how many actors; 0 runs it in this process.
        gpus: GPUs in the cluster, shared by the actors.
    """

    local: Callable[[tuple[Target, ...]], FrozenPart]
    make: Callable[[], Any]
    actors: int
    gpus: int


@dataclass(frozen=True)
class Ingested:
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


def open_caches(plan: Plan, targets: tuple[Target, ...], out: Console) -> dict[Target, FeatureCache]:
    """Opens the caches of some targets; a damaged part is removed and named."""
    caches = {target: FeatureCache(plan.cache(target)).open() for target in targets}
    for name in [name for cache in caches.values() for name in cache.damaged]:
        out.print(f"[yellow]warning[/]: the cache part {name} was damaged; its photos are computed again")
    return caches


def ingest(
    listing: pa.Table,
    plan: Plan,
    caches: dict[Target, FeatureCache],
    frozen: Frozen,
    settle: Callable[[pa.Table], Ledger],
    out: Console,
) -> Ingested:
    """Settles every file of a listing and fills the caches with the features of every usable photo.

    Args:
        listing: the files, schema `flowers.data.listing.LISTING`.
        plan: of the run.
        caches: opened, one for each target.
        frozen: the network.
        settle: makes the ledger of all rows (schema `flowers.data.ledger.ROW`).
        out: where progress is shown.

    Raises:
        InputError: the data cannot be trained on; too many bad files are reported as soon as it is certain.
    """
    limit, total = plan.config.max_bad_fraction, listing.num_rows
    network = _Network(plan, caches, frozen)
    rows: list[pa.Table] = []
    bad = 0
    began = time.perf_counter()
    try:
        with progress_bar(out, "reading, decoding, features", total) as advance:
            for table in reading.tables(network.stream(listing)):
                if not rows:
                    network.waited = time.perf_counter() - began
                rows.append(reading.detached(table, ROW.names))
                bad += sum(code is not None and code not in HARMLESS for code in table["code"].to_pylist())
                if bad > limit * total:
                    check_bad_fraction(pa.concat_tables(rows), limit, total)
                network.take(table)
                advance(table.num_rows)
            ledger = settle(pa.concat_tables(rows))
            network.finish()
    finally:
        network.flush()  # also when it is stopped: what was computed is not computed again
    usable = sum(pc.is_null(part["code"]).to_numpy().sum() for part in rows)
    hits = int(usable) - network.computed - network.repeats
    return Ingested(ledger, hits, network.computed, network.seconds, network.waited)


def fill(listing: pa.Table, plan: Plan, caches: dict[Target, FeatureCache], frozen: Frozen, out: Console) -> None:
    """Fills the caches with the features of photos that are known to be good; reads only those that are missing."""
    network = _Network(plan, caches, frozen)
    try:
        with progress_bar(out, "validation photos", listing.num_rows) as advance:
            for table in reading.tables(network.stream(listing)):
                network.take(table)
                advance(table.num_rows)
            network.finish()
    finally:
        network.flush()


class _Network:
    """Gathers new photos into full batches, whatever the blocks they come in, and caches their features."""

    def __init__(self, plan: Plan, caches: dict[Target, FeatureCache], frozen: Frozen) -> None:
        self._plan, self._caches, self._frozen = plan, caches, frozen
        self._held = {target: set(cache.digests()) for target, cache in caches.items()}
        self._done = set.intersection(*self._held.values())
        self._waiting: list[tuple[bytes, list[Any]]] = []
        self.computed = self.repeats = 0
        self.seconds = self.waited = 0.0

    def stream(self, listing: pa.Table) -> ray.data.Dataset:
        """The photos of a listing, with their pixels (schema `PIXELS`), or, from actors, a column for each target."""
        import ray.data

        plan, frozen = self._plan, self._frozen
        photos = reading.stream_pixels(
            listing,
            size=plan.image_size,
            max_pixels=plan.config.max_pixels,
            known=reading.digests_array(list(self._done)),
            readers=plan.readers,
        )
        if not frozen.actors:
            return photos
        return photos.map_batches(
            FrozenPart,
            fn_constructor_args=(frozen.make, plan.config.backbone, plan.image_size, tuple(self._caches)),
            batch_format="pyarrow",
            batch_size=_ACTOR_ROWS,
            compute=ray.data.ActorPoolStrategy(size=frozen.actors),
            num_gpus=min(1.0, frozen.gpus / frozen.actors) if frozen.gpus else None,
            num_cpus=None if frozen.gpus else 1,
        )

    def take(self, table: pa.Table) -> None:
        """Takes the photos of a block of `stream`."""
        columns = [target.column for target in self._caches] if self._frozen.actors else ["pixels"]
        values, digests = [table[column] for column in columns], table["sha256"]
        for index in np.flatnonzero(pc.is_valid(values[0]).to_numpy()).tolist():
            digest = digests[index].as_py()
            if digest in self._done:
                self.repeats += 1
                continue
            self._done.add(digest)
            self._waiting.append((digest, [column[index] for column in values]))
        while len(self._waiting) >= BATCH:
            self._run(BATCH)

    def finish(self) -> None:
        """Runs what is left, a batch that is not full included."""
        while self._waiting:
            self._run(BATCH)

    def flush(self) -> None:
        """Writes what the caches have not written yet."""
        for cache in self._caches.values():
            cache.flush()

    def _run(self, count: int) -> None:
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        columns = zip(*(values for _, values in batch), strict=True)
        if self._frozen.actors:
            made = [np.concatenate([from_arrow(pa.array([value])) for value in column]) for column in columns]
        else:
            began = time.perf_counter()
            network = self._frozen.local(tuple(self._caches))
            ready = time.perf_counter()
            size = self._plan.image_size
            photos = [np.frombuffer(value.as_py(), np.uint8).reshape(size, size, 3) for value in next(columns)]
            made = network.features(np.stack(photos))
            self.waited += ready - began
            self.seconds += time.perf_counter() - ready
        for (target, cache), rows in zip(self._caches.items(), made, strict=True):
            new = [place for place, (digest, _) in enumerate(batch) if digest not in self._held[target]]
            if new:
                cache.add([batch[place][0] for place in new], rows[new])
        self.computed += len(batch)
