"""Packing: photos of any source become a folder of shards, each written whole by one task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from flowers import runs, storage
from flowers.cluster.access import announce
from flowers.cluster.session import ray_session
from flowers.config import PackOptions
from flowers.data import pack as packs
from flowers.data import reading, shards
from flowers.data.listing import some
from flowers.errors import FlowersError, InputError, first_line
from flowers.inference.engine import usable_cpus
from flowers.options import check_folder, wrong
from flowers.pipelines.source import list_labelled
from flowers.prediction.parts import held
from flowers.progress import progress_bar
from flowers.text import plain, several


@dataclass(frozen=True)
class Packed:
    """What was done.

    Attributes:
        files: of the source.
        photos: in shards.
        reasons: files that are in none, by reason, the most frequent first.
        list_of_left_out: the file that names these.
        shards: how many there are.
        size: bytes of all of them.
        new: whether any of it was done now.
    """

    files: int
    photos: int
    reasons: dict[str, int]
    list_of_left_out: str
    shards: int
    size: int
    new: bool

    @property
    def left_out(self) -> int:
        """Files that are in no shard."""
        return sum(self.reasons.values())


@dataclass(frozen=True)
class _Plan:
    """What goes where.

    Attributes:
        files: all files: columns of `flowers.data.listing.LISTING`, name and size.
        packed: int64 [m], those of them that are to be packed.
        shard: int64 [m], the shard of each.
        classes: sorted.
        identity: a hash of all that decides what is in the shards.
    """

    files: pa.Table
    packed: npt.NDArray[np.int64]
    shard: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    identity: str

    def of_shards(self) -> list[pa.Table]:
        """The files of each shard, columns `flowers.data.pack.PLANNED`."""
        rows = self.files.take(pa.array(self.packed)).select(list(packs.PLANNED))
        for name in ("code", "detail"):  # which only say that there is no label
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(rows.num_rows, pa.string()))
        counts = np.bincount(self.shard)
        starts = np.cumsum([0, *counts]).tolist()
        return [rows.slice(start, count).combine_chunks() for start, count in zip(starts, counts, strict=False)]


def pack(options: PackOptions, out: Console) -> Packed:
    """Packs the photos of a source.

    Args:
        options: which photos, and where they go.
        out: where progress is printed.

    Raises:
        InputError: there are no photos, or the target holds something else.
        FlowersError: it cannot be written.
    """
    target = storage.absolute(options.out)
    listing = list_labelled(options, options.data)
    if target == listing.source or storage.inside(target, listing.source):
        raise wrong("out", options.out, "a folder outside of that of the photos")
    files = listing.table
    if not files.num_rows:
        raise InputError(f"--data: found no files in {options.data!r}; give a folder, a manifest or an archive")
    for text in (f"{several(files.num_rows, 'file')} of {listing.source}", *listing.notes):
        out.print(plain(text), highlight=False, markup=False)
    folder = listing.folder or storage.absolute(options.root or storage.parent(listing.source))
    plan = _planned(files, folder, options.shard_mb)
    if not len(plan.packed):
        raise InputError(
            f"--data: none of {several(files.num_rows, 'file')} of {options.data!r} is a photo by its place and name"
        )
    announce(out)
    try:
        with held(target), storage.enough_space(f"the pack {target}"):
            whole = _opened(target, plan, out)
            if not whole:
                with storage.withdrawn(storage.join(target, packs.SOURCE)), ray_session(options.verbose):
                    _write(plan, target, out)
            about = packs.read_about(target)
    except OSError as error:
        raise InputError(f"--out: {target} cannot be written: {error.strerror or error}") from error
    return Packed(
        files=files.num_rows,
        photos=about["photos"],
        reasons=about["left_out"],
        list_of_left_out=storage.join(options.out, packs.LEFT_OUT),
        shards=len(about["shards"]),
        size=about["bytes"],
        new=not whole,
    )


def _planned(files: pa.Table, folder: str, shard_mb: float) -> _Plan:
    """Decides which file goes where. Files without a label are packed, too; hidden ones are not."""
    unlabelled = pc.fill_null(pc.equal(files["code"], "unlabelled"), False)
    packed = np.flatnonzero(pc.or_(pc.is_null(files["code"]), unlabelled).to_numpy())
    paths = files["path"].to_pylist()
    sizes, changed = np.zeros(len(paths), np.int64), np.zeros(len(paths), np.int64)
    if len(packed):
        sizes[packed], changed[packed] = np.array(reading.measured([paths[index] for index in packed])).T
    names = [_name(path, folder) for path in paths]
    known = files.append_column("name", pa.array(names, pa.string())).append_column("size", pa.array(sizes))
    shard = packs.filled(sizes[packed].tolist(), int(shard_mb * 1e6), len(packed) or 1)
    columns = [known[name].to_pylist() for name in ("name", "label", "split", "group", "code")]
    said = [packs.VERSION, shard_mb, *zip(*columns, sizes.tolist(), changed.tolist(), strict=True)]
    identity = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    classes = tuple(sorted(set(known["label"].drop_null().to_pylist())))
    return _Plan(known, packed, shard, classes, identity)


def _name(path: str, folder: str) -> str:
    """The path of a photo below a folder; all of it, without what makes it absolute, if it does not lie there."""
    name = shards.below(path, folder)
    if storage.is_remote(path) and shards.place_of(path) is None:
        name = unquote(name)
    return name.rpartition("://")[2].lstrip("/") or storage.name(path)


def _opened(target: str, plan: _Plan, out: Console) -> bool:
    """Makes the folder, or finds what an earlier call left of the same pack; returns whether that is whole.

    Raises:
        InputError: it holds something else.
    """
    check_folder("--out", target, [packs.SOURCE], "pack of this program")
    names, source = storage.names(target), storage.join(target, packs.SOURCE)
    if packs.SOURCE in names:
        whole, why = packs.MANIFEST in names, "the unfinished pack there was of other photos or options"
        try:
            same = json.loads(storage.read(source))["identity"] == plan.identity
        except (ValueError, KeyError, TypeError):
            same = False
        if whole and not same:
            raise InputError(
                f"--out: {target} is a pack of other photos or options, or these changed since; choose another --out, "
                "or remove it"
            )
        if whole:
            try:
                packs.list_pack(target, labelled=True)
                return True
            except InputError as error:
                why = str(error)
        if others := [name for name in names if name[0] != "." and not packs.is_own(name)]:
            raise InputError(
                f"--out: {target} holds {others[0]!r} beside a pack that is to be written anew; move it, or choose "
                "another --out"
            )
        if same and not whole:
            storage.sweep(target)
            there = [name for name in names if shards.has_its_name(name) and name != packs.INDEX]
            out.print(f"goes on: {several(len(there), 'shard is', 'shards are')} there", highlight=False)
            return False
        out.print(plain(f"starts over: {why}"), highlight=False, markup=False)
        for name in filter(packs.is_own, sorted(names, key=lambda name: name == packs.SOURCE)):
            storage.delete_file(storage.join(target, name))
    storage.write(source, json.dumps({"identity": plan.identity, "created": runs.now()}, indent=1).encode())
    return False


def _write(plan: _Plan, target: str, out: Console) -> None:
    """Writes the shards that are not there, and what makes them a pack."""
    from flowers.cluster.nodes import check_files

    check_files("--data", some(plan.files))
    blocks = plan.of_shards()
    uris = [storage.join(target, packs.shard_name(number)) for number in range(len(blocks))]
    blocks = [
        block.append_column("uri", pa.array([uri] * block.num_rows)) for block, uri in zip(blocks, uris, strict=True)
    ]
    classes, parts = plan.classes, list[pa.Table]()

    def write(block: pa.Table) -> pa.Table:
        return _written(block, classes)

    with progress_bar(out, "packing", len(plan.packed), speed=True) as advance:
        for table in reading.tables(reading.stream_tables(blocks, write, readers=usable_cpus())):
            if why := table["error"].drop_null().to_pylist():
                raise FlowersError(why[0])
            advance(sum(block.num_rows for block in blocks[len(parts) : len(parts) + table.num_rows]))
            parts += [table.slice(row, 1) for row in range(table.num_rows)]
    written = pa.concat_tables(parts)
    if strange := set(map(storage.name, uris)) - set(storage.names(target)):
        raise InputError(
            f"--out: {sorted(strange)[0]} was written by another node and is not in {target} here; required is a place "
            "that all nodes see: on a shared file system, or s3://BUCKET/FOLDER"
        )
    index = packs.index_of(plan.files, plan.packed, [block.num_rows for block in blocks], written)
    packs.finish(target, index, written, classes)


def _written(block: pa.Table, classes: Sequence[str]) -> pa.Table:
    """The row of `flowers.data.pack.write_shard`, with a column `error`: why there is none."""
    uri = block["uri"][0].as_py()
    nothing = pa.nulls(1, pa.string())
    try:
        with storage.enough_space(f"the pack {storage.parent(uri)}"):
            return packs.write_shard(block, uri, classes).append_column("error", nothing)
    except (OSError, FlowersError, pa.ArrowException) as error:
        why = str(error) if isinstance(error, FlowersError) else f"{uri} cannot be written: {first_line(error)}"
        return pa.table([pa.nulls(1, field.type) for field in packs.WRITTEN], schema=packs.WRITTEN).append_column(
            "error", pa.array([why])
        )
