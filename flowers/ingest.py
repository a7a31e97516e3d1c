"""One pass over all photos: each is read, hashed, decoded and put through the frozen network, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers.config import TrainConfig
from flowers.data import dataset
from flowers.data.ledger import HARMLESS, ROW, Ledger, check_bad_fraction
from flowers.data.sources import Listing
from flowers.model.features import BATCH, FeatureCache, FrozenPart
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

    local: Callable[[], FrozenPart]
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


def ingest(
    listing: Listing,
    config: TrainConfig,
    image_size: int,
    readers: int,
    cache: FeatureCache,
    frozen: Frozen,
    settle: Callable[[pa.Table], Ledger],
    out: Console,
) -> Ingested:
    """Settles every file of `listing` and fills `cache` with the features of every usable photo.

    Args:
        listing: the files.
        config: of the run.
        image_size: height and width to decode to, in pixels.
        readers: files are read and decoded in so many tasks at once.
        cache: an opened feature cache.
        frozen: the network.
        settle: makes the ledger of all rows (schema `flowers.data.ledger.ROW`).
        out: where progress is shown.

    Raises:
        InputError: the data cannot be trained on; too many bad files are reported as soon as it is certain.
    """
    held = cache.digests()
    photos = dataset.stream_pixels(
        listing.table,
        size=image_size,
        max_pixels=config.max_pixels,
        known=dataset.digests_array(held),
        readers=readers,
    )
    if frozen.actors:
        photos = _through_actors(photos, image_size, frozen)
    network = _Network(cache, frozen, image_size, set(held))
    rows: list[pa.Table] = []
    bad = 0
    began = time.perf_counter()
    try:
        with progress_bar(out, "reading, decoding, features", listing.table.num_rows) as advance:
            for table in dataset.tables(photos):
                if not rows:
                    network.waited = time.perf_counter() - began
                rows.append(dataset.detached(table, ROW.names))
                bad += sum(code is not None and code not in HARMLESS for code in table["code"].to_pylist())
                if bad > config.max_bad_fraction * listing.table.num_rows:
                    check_bad_fraction(pa.concat_tables(rows), config.max_bad_fraction, listing.table.num_rows)
                network.take(table)
                advance(table.num_rows)
            ledger = settle(pa.concat_tables(rows))
            network.finish()
    finally:
        cache.flush()  # also when it is stopped: what was computed is not computed again
    usable = sum(pc.is_null(part["code"]).to_numpy().sum() for part in rows)
    hits = int(usable) - network.computed - network.repeats
    return Ingested(ledger, hits, network.computed, network.seconds, network.waited)


class _Network:
    """Gathers new photos into full batches, whatever the blocks they come in, and caches their features."""

    def __init__(self, cache: FeatureCache, frozen: Frozen, image_size: int, done: set[bytes]) -> None:
        self._cache, self._frozen, self._done = cache, frozen, done
        self._shape = (image_size, image_size, 3)
        self._waiting: list[tuple[bytes, bytes]] = []
        self.computed = self.repeats = 0
        self.seconds = self.waited = 0.0

    def take(self, table: pa.Table) -> None:
        """Takes the photos of a block (schema `PIXELS`, or with `features` in the place of the pixels)."""
        column = "features" if self._frozen.actors else "pixels"
        values, digests = table[column], table["sha256"]
        for index in np.flatnonzero(pc.is_valid(values).to_numpy()).tolist():
            digest = digests[index].as_py()
            if digest in self._done:
                self.repeats += 1
                continue
            self._done.add(digest)
            self._waiting.append((digest, values[index].as_py()))
        while len(self._waiting) >= BATCH:
            self._run(BATCH)

    def finish(self) -> None:
        """Runs what is left, a batch that is not full included."""
        while self._waiting:
            self._run(BATCH)

    def _run(self, count: int) -> None:
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        digests = [digest for digest, _ in batch]
        if self._frozen.actors:
            features = np.stack([np.frombuffer(data, np.float32) for _, data in batch])
        else:
            began = time.perf_counter()
            network = self._frozen.local()
            ready = time.perf_counter()
            features = network.features(
                np.stack([np.frombuffer(data, np.uint8).reshape(self._shape) for _, data in batch])
            )
            self.waited += ready - began
            self.seconds += time.perf_counter() - ready
        self._cache.add(digests, features)
        self.computed += len(batch)


def _through_actors(photos: ray.data.Dataset, image_size: int, frozen: Frozen) -> ray.data.Dataset:
    """The same network in a pool of Ray actors: `pixels` become `features` on the way."""
    import ray.data

    return photos.map_batches(
        FrozenPart,
        fn_constructor_args=(frozen.make, image_size),
        batch_format="pyarrow",
        batch_size=_ACTOR_ROWS,
        compute=ray.data.ActorPoolStrategy(size=frozen.actors),
        num_gpus=min(1.0, frozen.gpus / frozen.actors) if frozen.gpus else None,
        num_cpus=None if frozen.gpus else 1,
    )
