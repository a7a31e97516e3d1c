"""The scorer: each file of a listing is read, hashed, decoded and put through a bundle's network, once and in order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageStat

from flowers import storage
from flowers.bundle import MANIFEST, Bundle
from flowers.cluster.placement import (
    Node,
    Pool,
    gpu_count,
    in_words,
    network_pool,
    on_device,
    pool_of_the_rest,
    reading_tasks,
)
from flowers.cluster.session import background
from flowers.data import decoding, reading
from flowers.data.listing import some
from flowers.errors import ProcessLost
from flowers.inference.engine import resolve_engine, usable_cpus
from flowers.predictor import Predictor

# Files that go through one Ray dataset: its blocks are all listed in the object store.
_ROUND = 1 << 16

# What is known of a file besides its scores. Width and height are in pixels as stored, brightness is the mean grey
# level (0 to 255) of what the network sees. All three, and `pixels`, are null where there is a `code`.
_FOUND = (
    *(("path", pa.string()), ("label", pa.string()), ("split", pa.string()), ("group", pa.string())),
    *(("sha256", pa.binary(32)), ("code", pa.string()), ("detail", pa.string())),
    *(("width", pa.int32()), ("height", pa.int32()), ("brightness", pa.float32())),
)
DECODED = pa.schema([*_FOUND, ("pixels", pa.large_binary())])


def scored_schema(classes: int, features: bool = False) -> pa.Schema:
    """The schema of scored files: `scores` are the probabilities float32 [K], null where there is a `code`.

    `typicality` is null there, too, and everywhere if nobody asked for it (`flowers.predictor.Outputs`). With features
    also these, float32 [d], null at the same places.
    """
    more = [("features", pa.list_(pa.float32()))] if features else []
    return pa.schema([*_FOUND, ("scores", pa.list_(pa.float32(), classes)), ("typicality", pa.float32()), *more])


@dataclass(frozen=True)
class Machine:
    """Where a network runs, and who feeds it.

    Attributes:
        engine: that runs it.
        pool: the processes that do.
        readers: tasks that read and decode at once.
        words: for people: what computes, with which engine and why.
    """

    engine: str
    pool: Pool
    readers: int
    words: str

    @classmethod
    def of(cls, nodes: Sequence[Node], engine: str = "auto", actors: str = "auto", device: str = "auto") -> Machine:
        """The best use of the nodes of a cluster, as far as the options leave it open.

        Raises:
            NoRoom: there is no GPU, though `device` asks for one.
        """
        usable = on_device(nodes, device)
        chosen, why = resolve_engine(engine, gpu_count(usable))
        pool = network_pool(actors, usable, usable_cpus())
        return cls(chosen, pool, reading_tasks(usable, pool), f"{in_words(usable, device)}; {chosen}: {why}")

    def after_loss(self, nodes: Sequence[Node]) -> Machine:
        """The best use of the nodes that are left, by the same engine."""
        if not self.pool.actors:
            return self
        pool = pool_of_the_rest(self.pool, nodes)
        return dataclasses.replace(self, pool=pool, readers=reading_tasks(nodes, pool))


class Scorer:
    """Runs a bundle on the files of listings.

    On one machine without GPUs the network runs in this process; else in actors, and only scores come here.

    Args:
        bundle: the network.
        machine: where it runs.
        max_pixels: photos with more are refused before decoding.
        features: whether photos get their features, too (`flowers.predictor.Predictor.describe`).
        unknown: of `flowers.predictor.Predictor`; not beside features.
        say: told when a node was lost.
    """

    def __init__(
        self,
        bundle: Bundle,
        machine: Machine,
        max_pixels: int,
        features: bool = False,
        unknown: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._say = say
        self.bundle, self.machine, self.max_pixels = bundle, machine, max_pixels
        self.features, self.unknown = features, unknown
        self.schema = scored_schema(len(bundle.classes), features)

    @functools.cached_property
    def _predictor(self) -> Callable[[], Predictor]:
        """Gives the network in this process, which is compiled while the first photos are read."""
        make = functools.partial(
            Predictor,
            engine=self.machine.engine,
            threads=self.machine.pool.cpus,
            features=self.features,
            unknown=self.unknown,
        )
        return background(lambda: make(self.bundle, self.max_pixels), "compile the network").result

    @property
    def predictor(self) -> Predictor:
        """The network in this process, also where actors run it."""
        return self._predictor()

    def tables(self, listing: pa.Table, skipped: reading.Known = reading.NONE_KNOWN) -> Iterator[pa.Table]:
        """Blocks of scored files, in the order of the listing.

        Args:
            listing: schema `flowers.data.listing.LISTING`.
            skipped: sorted digests of photos that get no scores (`flowers.data.reading.digests_array`).

        Raises:
            InputError: a node of the cluster does not see the files, or the bundle, as they are here.
            ProcessLost: nodes were lost too often.
        """
        from flowers.cluster.nodes import alive_ids, check_files, nodes_left

        check_files("--data", some(listing))
        if self.machine.pool.actors:
            check_files("--bundle", [storage.join(self.bundle.uri, MANIFEST)])
        done = losses = 0
        while done < listing.num_rows:
            before = alive_ids()
            try:
                for table in self._round(listing.slice(done, _ROUND), skipped):
                    done += table.num_rows
                    yield table
            except ProcessLost as error:
                losses += 1
                if losses > reading.LOSSES:
                    raise
                self.machine = self.machine.after_loss(nodes_left(before))
                if self._say:
                    self._say(f"{error}; goes on after {done} files with the nodes that are left")

    def _round(self, listing: pa.Table, skipped: reading.Known) -> Iterator[pa.Table]:
        import ray

        size, max_pixels = self.bundle.image_size, self.max_pixels
        reference = ray.put(skipped) if len(skipped) else None

        def decode(block: pa.Table) -> pa.Table:
            known = reading.NONE_KNOWN if reference is None else ray.get(reference)
            return decode_block(reading.read_block(block), size=size, max_pixels=max_pixels, skipped=known)

        pool = self.machine.pool
        held = pool.actors and not pool.gpus
        photos = reading.stream_blocks(
            listing, decode, readers=self.machine.readers, num_cpus=reading.BESIDE_ACTORS if held else 1
        )
        if not pool.actors:
            predictor = self._predictor
            yield from (score(table, predictor()) for table in reading.tables(photos))
            return
        scored = reading.through_actors(
            photos,
            _Actor,
            (self.bundle, self.machine.engine, self.max_pixels, pool.cpus, self.features, self.unknown),
            actors=pool.actors,
            cpus=pool.cpus,
            gpus=pool.gpus,
        )
        yield from reading.tables(scored)


class _Actor:
    """The network in a Ray actor."""

    def __init__(
        self, bundle: Bundle, engine: str, max_pixels: int, threads: int, features: bool, unknown: float | None
    ) -> None:
        from flowers.cluster.nodes import keep_to_own_gpus

        keep_to_own_gpus()
        self._predictor = Predictor(
            bundle, max_pixels, engine=engine, threads=threads, features=features, unknown=unknown
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        return score(block, self._predictor)


def decode_block(
    block: pa.Table, *, size: int, max_pixels: int, skipped: reading.Known = reading.NONE_KNOWN
) -> pa.Table:
    """Decodes the photos of one block, and measures them.

    Args:
        block: schema `flowers.data.reading.BYTES`.
        size: height and width of the result, in pixels.
        max_pixels: refuse larger pictures.
        skipped: sorted digests of photos that are not decoded; they get no code.

    Returns:
        A table of schema `DECODED`.
    """
    columns = {
        name: block[name].to_pylist() for name in ("path", "label", "split", "group", "sha256", "code", "detail")
    }
    measured = ("width", "height", "brightness", "pixels")
    made: dict[str, list[object]] = {name: [None] * block.num_rows for name in measured}

    def decode(_: int, data: bytes) -> decoding.Decoded:
        return decoding.decode_with_extent(data, size, max_pixels=max_pixels)

    for index, (pixels, extent) in reading.decoded(block, columns["code"], columns["detail"], decode, skipped):
        grey = ImageStat.Stat(Image.fromarray(pixels).convert("L")).mean[0]
        for name, value in zip(measured, (*extent, grey, pixels.tobytes()), strict=True):
            made[name][index] = value
    return pa.table({**columns, **made}, schema=DECODED)


def score(block: pa.Table, predictor: Predictor) -> pa.Table:
    """Replaces the pixels of a block of schema `DECODED` by scores, and by features if the predictor describes."""
    size, classes = predictor.bundle.image_size, len(predictor.bundle.classes)
    good = pc.is_valid(block["pixels"]).to_numpy()
    scores, more = np.zeros((block.num_rows, classes), np.float32), np.zeros((0, 0), np.float32)
    typicality = np.full(block.num_rows, np.nan, np.float32)
    if good.any():
        values = (value.as_buffer() for value in block["pixels"] if value.is_valid)
        photos = [np.frombuffer(value, np.uint8).reshape(size, size, 3) for value in values]
        if predictor.features:
            scores[good], more = predictor.describe(np.stack(photos))
        else:
            found = predictor.run(np.stack(photos))
            scores[good], typicality[good] = found.probabilities, found.typicality
    column = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), classes, mask=pa.array(~good))
    # Copies: a view of the other columns would keep the pixels in the object store.
    kept = reading.detached(block, [name for name, _ in _FOUND])
    columns = [*kept.columns, column, pa.array(typicality, from_pandas=True)]  # null for NaN
    if predictor.features:
        rows = pa.array(np.cumsum(good) - 1, mask=~good)
        columns.append(pa.array(list(more), pa.list_(pa.float32())).take(rows))
    return pa.table(columns, schema=scored_schema(classes, predictor.features))


def scores_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """The scores of rows that all have some: float32 [n, K]."""
    column = table["scores"].combine_chunks()
    return column.flatten().to_numpy().reshape(table.num_rows, column.type.list_size)
