"""Shards: Parquet files with the bytes of photos, as Hugging Face's datasets and our packs are kept; never unpacked.

They are listed by their small columns, and read by row groups. A photo in one has a path like any other:

    /data/pack/shard-00003.parquet#412/roses/1.jpg

its file, its row, and the name that it had where it was packed. By the row it is found without a look at the others,
and two photos of one name stay two; by the name people know it, and whatever goes by names, folders or endings goes on
as with files.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowers import storage
from flowers.data.layout import UNLABELLED, side_of
from flowers.errors import BadImage, InputError, first_line

# Names of columns that hold a photo, a label, a group, and the photo's path.
_PHOTOS: Final = ("image", "img", "photo", "picture", "bytes", "image_bytes", "jpg", "jpeg", "png", "data", "content")
LABELS: Final = ("label", "labels", "class", "class_name", "category", "target", "cls", "y")
_GROUPS: Final = ("group", "patient", "patient_id", "subject", "camera", "burst")
_PATHS: Final = ("path", "filename", "file_name", "image_path")
_PLACE: Final = re.compile(r"(.+\.parquet)#(\d+)/(.+)", re.IGNORECASE | re.DOTALL)
COLUMNS: Final = ("path", "label", "split", "group", "code", "detail")
# Photos that are in memory at once: row groups of other programs may hold a thousand.
_AT_ONCE: Final = 32
# Bytes that are asked of a bucket at once: a row group of ours.
_BUFFER: Final = 4 << 20


class Place(NamedTuple):
    """Where a photo lies: its shard, its row there, counted from 0, and the name that it had before."""

    shard: str
    row: int
    name: str


def place_of(path: str) -> Place | None:
    """The place of a photo in a shard; None for one that is a file of its own."""
    if "#" not in path:
        return None
    inside, options = storage.cut(path)
    found = _PLACE.fullmatch(inside)
    if found is None:
        return None
    name = unquote(found[3]) if storage.is_remote(path) else found[3]
    return Place(found[1] + options, int(found[2]), name)


def file_of(path: str) -> str:
    """The file that holds a photo: its shard, or itself."""
    place = place_of(path)
    return path if place is None else place.shard


def below(path: str, source: str) -> str:
    """The path of a photo below its source, or of one in a shard the name that it had before."""
    place = place_of(path)
    return storage.relative(path, source) if place is None else place.name


def paths_of(
    shards: Sequence[str], which: pa.Array, rows: pa.Array, names: pa.Array | pa.ChunkedArray
) -> pa.Array | pa.ChunkedArray:
    """The paths of photos.

    Args:
        shards: URIs.
        which: of these each photo lies in, as an index; null for one that lies in none, which gets no path.
        rows: its row there.
        names: its name.
    """
    parts = [storage.cut(uri) for uri in shards]
    starts, ends = (pa.array(list(column), pa.string()).take(which) for column in zip(*parts, strict=True))
    if any(map(storage.is_remote, shards)):
        names = quoted(names)
    return pc.binary_join_element_wise(starts, "#", rows.cast(pa.string()), "/", names, ends, "")


def quoted(names: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Names as they stand in a URI."""
    return pa.array(map(quote, names.to_pylist()), pa.string())


def has_its_name(name: str) -> bool:
    """Whether a file of that name may be a shard."""
    return name.lower().endswith(".parquet")


def is_shard(uri: str) -> bool:
    """Whether a URI names a Parquet file that holds photos themselves."""
    if not has_its_name(storage.name(uri)):
        return False
    try:
        with opened(uri) as file:
            return _photo_column(file.schema_arrow) is not None
    except (OSError, ValueError, InputError, pa.ArrowException):
        return False  # the reader of manifests says what is wrong


@contextmanager
def opened(uri: str, ahead: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, whose pages are checked as they are read.

    Args:
        uri: of the file.
        ahead: whether columns are fetched all at once, for small ones; else piece by piece.
    """
    filesystem, path = storage.resolve(uri)
    with (
        filesystem.open_input_file(path) as source,
        pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=ahead, page_checksum_verification=True) as file,
    ):
        yield file


def list_shards(uris: Sequence[str], *, labelled: bool) -> pa.Table:
    """Lists the photos of shards by their small columns.

    Args:
        uris: of the shards.
        labelled: whether labels count.

    Returns:
        Columns path, label, split, group, code and detail (`flowers.data.listing.LISTING`), in the order of the rows.

    Raises:
        InputError: one cannot be read, or has no labels.
    """
    with ThreadPoolExecutor(16) as pool:
        return pa.concat_tables(pool.map(lambda uri: _listed(uri, labelled), uris))


def _listed(uri: str, labelled: bool) -> pa.Table:
    try:
        with opened(uri, ahead=True) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
            columns = _Columns.of(schema)
            if labelled and columns.label is None:
                raise ValueError(
                    f"it has the columns {', '.join(schema.names)}; required are photos, as bytes, and a label"
                )
            table = file.read(columns.small(labelled))
        rows = pa.array(range(count), pa.int64())
        which = pa.array([0] * count, pa.int64())
        listed = {"path": paths_of([uri], which, rows, _names(table, columns, rows))}
        if labelled:
            listed |= _said(uri, table, columns, schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"--data: {uri} cannot be read: {first_line(error)}") from error
    nothing = pa.nulls(count, pa.string())
    return pa.table({name: listed.get(name, nothing) for name in COLUMNS})


def _said(uri: str, table: pa.Table, columns: _Columns, schema: pa.Schema) -> dict[str, pa.Array | pa.ChunkedArray]:
    """What a shard says of its photos: their labels, sides and groups, and of which it says nothing."""
    column = columns.label or ""
    label = _mapped(table[column], _label(schema, column))
    if columns.split:
        side = _mapped(table[columns.split], lambda value: _side(uri, value))
    else:  # train-00000-of-00003.parquet
        name = re.sub(r"[\d_.-]+of[\d_.-]+", "", storage.name(uri).partition(".")[0])
        side = pa.array([side_of(name)] * table.num_rows, pa.string())
    aside = pc.fill_null(pc.equal(side, UNLABELLED), False)
    nothing = pa.scalar(None, pa.string())
    side, label = (pc.if_else(aside, nothing, column) for column in (side, label))
    without = pc.is_null(label)
    found = {
        "label": label,
        "split": side,
        "code": pc.if_else(without, "unlabelled", nothing),
        "detail": pc.if_else(without, "the shard gives no label", nothing),
    }
    if columns.group:
        found["group"] = _mapped(table[columns.group], _text)
    return found


class _Columns(NamedTuple):
    """Which columns of a shard hold what; `photo` and `path` may lie in a structure: "image.bytes"."""

    photo: str
    label: str | None
    split: str | None
    group: str | None
    path: str | None

    @classmethod
    def of(cls, schema: pa.Schema) -> _Columns:
        photo = _photo_column(schema)
        if photo is None:
            raise ValueError(f"it has the columns {', '.join(schema.names)}; required are photos, as bytes")
        lower = {name.lower(): name for name in schema.names if name != photo.partition(".")[0]}

        def known(names: Sequence[str]) -> str | None:
            return next((lower[name] for name in names if name in lower), None)

        path = known(_PATHS)
        outer, inner, _ = photo.rpartition(".")
        if path is None and inner and schema.field(outer).type.get_field_index("path") >= 0:
            path = f"{outer}.path"
        return cls(photo, known(LABELS), known(("split",)), known(_GROUPS), path)

    def small(self, labelled: bool) -> list[str]:
        """All that is read to list the shard."""
        return [name for name in (self.path, *((self.label, self.split, self.group) if labelled else ())) if name]


def _photo_column(schema: pa.Schema) -> str | None:
    """The column with the bytes of photos: binary, or Hugging Face's structure of bytes and path."""
    for name in sorted(schema.names, key=lambda name: name.lower() not in _PHOTOS):
        kind = schema.field(name).type
        if name.lower() in _PHOTOS and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return str(name)
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{name}.bytes"
    return None


def _names(table: pa.Table, columns: _Columns, rows: pa.Array) -> pa.Array | pa.ChunkedArray:
    """The names of photos; the number of the row for one that has none."""
    numbers = pc.utf8_lpad(rows.cast(pa.string()), 9, "0")
    if columns.path is None:
        return numbers
    outer, _, inner = columns.path.rpartition(".")
    found = pc.struct_field(table[outer], inner) if outer else table[inner]
    found = pc.utf8_ltrim(found.cast(pa.string()), "/")
    return pc.coalesce(pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found), numbers)


def _mapped(column: pa.ChunkedArray, function: Callable[[Any], str | None]) -> pa.Array:
    """A column of few different values, each of which becomes a text."""
    encoded = column.combine_chunks().dictionary_encode()
    return pa.array(map(function, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


def _text(value: Any) -> str | None:
    return None if value is None else str(value).strip() or None


def _label(schema: pa.Schema, column: str) -> Callable[[Any], str | None]:
    """What makes a label of a cell: Hugging Face keeps numbers of classes, and their names beside them."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = [str(name) for name in about["info"]["features"][column]["names"]]
    except (ValueError, KeyError, TypeError):
        return _text

    def label(value: Any) -> str | None:
        if isinstance(value, int) and value < len(names):
            return None if value < 0 else names[value]  # -1: a test set whose labels are kept secret
        return _text(value)

    return label


def _side(uri: str, value: Any) -> str | None:
    text = _text(value)
    side = side_of(text) if text else None
    if text and side is None:
        raise InputError(f"--data: {uri} has the split {text!r}, allowed are train, validation and test, or none")
    return side


def sizes(places: Sequence[Place]) -> list[int]:
    """Bytes of some photos, each the mean of its row group; 0 in a shard that cannot be read."""
    means: dict[str, list[tuple[int, int]]] = {}
    for shard in {place.shard for place in places}:
        try:
            with opened(shard) as file:
                means[shard] = list(_means(file))
        except (OSError, ValueError, InputError, pa.ArrowException):
            means[shard] = []
    return [next((mean for after, mean in means[place.shard] if place.row < after), 0) for place in places]


def _means(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """Of each row group the row after its last one, and bytes of a photo."""
    photo = _Columns.of(file.schema_arrow).photo
    leaf = next(at for at in range(len(file.schema)) if file.schema.column(at).path == photo)
    after = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        after += group.num_rows
        yield after, group.column(leaf).total_uncompressed_size // max(1, group.num_rows)


def read_photos(places: Sequence[Place]) -> list[bytes | BadImage]:
    """The bytes of some photos, or why they cannot be had; of each row group that holds some, once."""
    found: dict[tuple[str, int], bytes | BadImage] = {}
    for shard, members in groupby(sorted({place[:2] for place in places}), key=lambda place: place[0]):
        rows = [row for _, row in members]
        found |= {(shard, row): data for row, data in zip(rows, _read(shard, rows), strict=True)}
    return [found[place[:2]] for place in places]


def _read(shard: str, rows: Sequence[int]) -> Iterable[bytes | BadImage]:
    """The photos at some rows of a shard, which are in their order."""
    found: dict[int, bytes | BadImage] = {}
    why = f"{storage.name(shard)} has no such row"
    try:
        with opened(shard) as file:
            photo = _Columns.of(file.schema_arrow).photo
            first = done = 0
            for group in range(file.num_row_groups):
                after = first + file.metadata.row_group(group).num_rows
                until = bisect_left(rows, after, done)
                if until > done:
                    wanted = [row - first for row in rows[done:until]]
                    found |= {first + row: data for row, data in _read_group(file, group, photo, wanted, shard)}
                first, done = after, until
                if done == len(rows):
                    break
    except (OSError, ValueError, InputError, pa.ArrowException) as error:
        why = f"{storage.name(shard)} cannot be read: {_reason(error)}"
    return [found.get(row, BadImage("unreadable", why)) for row in rows]


def _read_group(
    file: pq.ParquetFile, group: int, photo: str, wanted: Sequence[int], shard: str
) -> Iterator[tuple[int, bytes | BadImage]]:
    """The photos at some rows of a row group, with their rows, some in memory at a time."""
    first, left = 0, list(wanted)
    try:
        for batch in file.iter_batches(_AT_ONCE, row_groups=[group], columns=[photo]):
            column = batch.column(0)
            values = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
            while left and left[0] < first + batch.num_rows:
                data = values[left[0] - first].as_py()
                yield left.pop(0), data if data is not None else BadImage("empty", "the shard holds no bytes of it")
            if not left:
                return
            first += batch.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:  # the others are whole
        for row in left:
            yield row, BadImage("unreadable", f"{storage.name(shard)} is damaged: {_reason(error)}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
