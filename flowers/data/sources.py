"""Where photos come from: a folder, a manifest or a named set becomes a listing of files; nothing is opened yet."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import download, sample
from flowers.data.ledger import check_classes
from flowers.data.split import SIDES
from flowers.errors import InputError

MANIFESTS = (".csv", ".jsonl", ".parquet")
_SIDE_NAMES = {"val": "validation", "valid": "validation", **{side: side for side in SIDES}}

# What a listing says of a file; `code` is set where there is already a reason not to read it.
LISTING = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        source: the folder or manifest they were listed from, absolute.
        table: schema `LISTING`, ordered by path (a manifest: in its own order).
        listed: files in the source before `--per-class`.
        drawn: whether the pictures are drawn ones.
    """

    source: str
    table: pa.Table
    listed: int
    drawn: bool = False


def list_photos(data: str, *, datasets: str, per_class: int | None, seed: int) -> Listing:
    """Lists a source and checks that it can be trained on at all.

    Args:
        data: as the option ``--data``.
        datasets: local folder in which named sets are kept.
        per_class: at most so many files a class, chosen by a hash of seed and path; None takes all.
        seed: of that choice.

    Raises:
        InputError: no such place, not a manifest, no photos, one class only, or a class of one file.
    """
    drawn = data == "sample"
    root = ""
    if drawn:
        source = os.path.join(datasets, "sample")
        sample.draw_sample(source)
        table = _list_folder(source)
    elif data in download.ARCHIVES:
        source = download.fetch(data, datasets)
        table = _list_folder(source)
    else:
        source = storage.absolute(data)
        filesystem, path = storage.resolve(source)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.NotFound:
            named = ", ".join(["sample", *download.ARCHIVES])
            raise InputError(f"--data: there is nothing at {data!r}; give a folder, a manifest or one of {named}")
        if kind == pafs.FileType.Directory:
            root = source
            table = _list_folder(source)
        elif source.lower().endswith(MANIFESTS):
            table = _read_manifest(source)
        else:
            raise InputError(
                f"--data: received the file {data!r}, required is a folder or a {', '.join(MANIFESTS)} manifest"
            )
    listed = table.num_rows
    if per_class is not None:
        table = _subset(table, per_class, seed)
    candidates = table.filter(pc.is_null(table["code"]))
    if candidates.num_rows == 0:
        raise InputError(f"--data: found no photos in {data!r} ({listed} files){_look_deeper(root)}")
    sizes = Counter(candidates["label"].to_pylist())
    if len(sizes) < 2 and root:
        hint = _look_deeper(storage.join(root, *sizes))
        if hint:
            raise InputError(f"--data: all photos of {data!r} lie in one class folder, {next(iter(sizes))!r}{hint}")
    check_classes(sizes)
    return Listing(source, table, listed, drawn)


def listing_of(rows: pa.Table) -> pa.Table:
    """A table of schema `LISTING` that lists the files of a ledger's `rows` again."""
    nothing = pa.nulls(rows.num_rows, pa.string())
    return pa.table([rows["path"], rows["label"], nothing, nothing, nothing], schema=LISTING)


def _list_folder(root: str) -> pa.Table:
    """All files below `root`; the first folder below it names the class, however deep the file lies."""
    rows = []
    walk = _walk_remote(root) if storage.is_remote(root) else _walk_local(root)
    for relative, problem in walk:
        parts = relative.split("/")
        label = parts[0] if len(parts) > 1 else None
        code, detail = None, problem
        if problem is not None:
            code = "unreadable"
        elif any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts):
            code, label, detail = "hidden", None, "a hidden file or lies in a hidden folder"
        elif label is None:
            code, detail = "unlabelled", "lies beside the class folders, not in one"
        rows.append((storage.join(root, relative), label, None, code, detail))
    return _table(rows)


def _walk_local(root: str) -> Iterator[tuple[str, str | None]]:
    """Relative paths of all files, sorted, following links once; with what is wrong with a path, if anything."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        prefix = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        for name in sorted(files):
            relative, problem = prefix + name, None
            try:
                relative.encode()
                if not stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode):
                    problem = "not a regular file"
            except UnicodeEncodeError:
                relative = relative.encode("utf-8", "backslashreplace").decode()
                problem = "its name is not valid UTF-8"
            except OSError as error:
                problem = error.strerror or type(error).__name__
            yield relative, problem


def _walk_remote(root: str) -> Iterator[tuple[str, str | None]]:
    filesystem, base = storage.resolve(root)
    base = base.rstrip("/") + "/"
    for info in sorted(filesystem.get_file_info(pafs.FileSelector(base, recursive=True)), key=lambda info: info.path):
        if info.type == pafs.FileType.File:
            yield info.path[len(base) :], None


def _read_manifest(source: str) -> pa.Table:
    try:
        data = storage.read(source)
        table = _parse_manifest(source, data)
    except (ValueError, AttributeError, OSError) as error:  # ArrowInvalid and JSONDecodeError are ValueErrors
        raise InputError(f"--data: {source} cannot be read: {str(error).strip().splitlines()[0]}") from error
    missing = [name for name in ("path", "label") if name not in table.column_names]
    if missing:
        raise InputError(
            f"--data: {source} has the columns {', '.join(table.column_names) or 'none'}, "
            f"required are path and label, optionally split; {missing[0]} is missing"
        )
    columns = [table[name].cast(pa.string()).to_pylist() for name in ("path", "label")]
    splits = table["split"].cast(pa.string()).to_pylist() if "split" in table.column_names else [None] * table.num_rows
    folder = source.rsplit("/", 1)[0]
    rows = []
    for number, (path, label, split) in enumerate(zip(*columns, splits, strict=True), start=1):
        if not path:
            raise InputError(f"--data: row {number} of {source} has no path")
        if split and split.lower() not in _SIDE_NAMES:
            raise InputError(
                f"--data: row {number} of {source} has the split {split!r}, allowed are {', '.join(SIDES)} or none"
            )
        if "://" not in path and not os.path.isabs(path):
            path = storage.join(folder, path)
        side = _SIDE_NAMES[split.lower()] if split else None
        code, detail = (None, None) if label else ("unlabelled", f"row {number} gives no label")
        rows.append((path, label or None, side, code, detail))
    return _table(rows)


def _parse_manifest(source: str, data: bytes) -> pa.Table:
    """All values as text: a label 007 stays 007."""
    stream = io.BytesIO(data)
    if source.lower().endswith(".parquet"):
        return pq.read_table(stream)
    if source.lower().endswith(".jsonl"):
        rows = [json.loads(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        names = {name for row in rows for name in row}
        return pa.table({name: [_text(row.get(name)) for row in rows] for name in sorted(names)})
    if not data.strip():
        return pa.table({})
    names = pyarrow.csv.open_csv(io.BytesIO(data)).schema.names
    text = dict.fromkeys(names, pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""])
    return pyarrow.csv.read_csv(stream, convert_options=options)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _subset(table: pa.Table, per_class: int, seed: int) -> pa.Table:
    """At most `per_class` readable files of each label; files without a label or with a problem stay."""
    key = seed.to_bytes(8, "big")
    names = [path.rsplit("/", 1)[-1] for path in table["path"].to_pylist()]
    ranked: dict[str, list[tuple[bytes, int]]] = {}
    keep = []
    for index, (name, label, code) in enumerate(
        zip(names, table["label"].to_pylist(), table["code"].to_pylist(), strict=True)
    ):
        if code is None:
            order = hashlib.blake2b(name.encode(), digest_size=16, key=key).digest()
            ranked.setdefault(label, []).append((order, index))
        else:
            keep.append(index)
    for candidates in ranked.values():
        keep += [index for _, index in sorted(candidates)[:per_class]]
    return table.take(pa.array(sorted(keep), pa.int64()))


def _look_deeper(root: str) -> str:
    """A hint when the class folders lie one level below."""
    if not root:
        return "; put the photos of each class into a sub-folder of its own"
    inside = [name for name in storage.names(root) if not name.startswith(".")]
    folders = [name for name in inside if storage.names(storage.join(root, name))]
    if len(folders) > 1:
        return f"; it holds {len(folders)} folders: is {root} what you mean?"
    return "" if "/" in root else "; put the photos of each class into a sub-folder of its own"


def _table(rows: Iterable[tuple[str | None, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(LISTING)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)], LISTING)
