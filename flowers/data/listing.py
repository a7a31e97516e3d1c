"""Where photos come from: a folder, a manifest or a named set becomes a listing of files; nothing is opened yet."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import manifest
from flowers.data.builtin import download, sample
from flowers.data.ledger import check_classes
from flowers.errors import InputError

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
        per_class: at most so many files a class, chosen by a hash of seed and file name; None takes all.
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
        elif path.lower().endswith(manifest.SUFFIXES):
            table = _table(manifest.read_manifest(source))
        else:
            raise InputError(
                f"--data: received the file {data!r}, required is a folder or a manifest, "
                + " or ".join(f"FILE{suffix}" for suffix in manifest.SUFFIXES)
            )
    listed = table.num_rows
    if per_class is not None:
        table = _subset(table, per_class, seed)
    candidates = table.filter(pc.is_null(table["code"]))
    if candidates.num_rows == 0:
        raise InputError(
            f"--data: found no photos in {data!r} ({listed} files); "
            + ("put the photos of each class into a sub-folder of its own" if root else "give each a path and a label")
        )
    sizes = Counter(candidates["label"].to_pylist())
    if len(sizes) == 1 and root:
        paths = [storage.relative(path, root).split("/") for path in candidates["path"].to_pylist()]
        inner = {parts[1] for parts in paths if len(parts) > 2}
        if len(inner) > 1:
            label = next(iter(sizes))
            raise InputError(
                f"--data: all photos of {data!r} lie in one class folder, {label!r}; it holds {len(inner)} folders: "
                f"is {storage.join(root, label)} what you mean?"
            )
    check_classes(sizes)
    return Listing(source, table, listed, drawn)


def listing_of(rows: pa.Table) -> pa.Table:
    """A table of schema `LISTING` that lists the files of a ledger's `rows` again."""
    nothing = pa.nulls(rows.num_rows, pa.string())
    return pa.table([rows["path"], rows["label"], nothing, nothing, nothing], schema=LISTING)


def _list_folder(root: str) -> pa.Table:
    """All files below `root`; the first folder below it names the class, however deep the file lies."""
    rows = []
    remote = storage.is_remote(root)
    for relative, problem in _walk_remote(root) if remote else _walk_local(root):
        parts = relative.split("/")
        label = parts[0] if len(parts) > 1 else None
        code, detail = None, problem
        if problem is not None:
            code = "unreadable"
        elif any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts):
            code, label, detail = "hidden", None, "a hidden file or lies in a hidden folder"
        elif label is None:
            code, detail = "unlabelled", "lies beside the class folders, not in one"
        rows.append((storage.join(root, quote(relative) if remote else relative), label, None, code, detail))
    return _table(rows)


def _walk_local(root: str) -> Iterator[tuple[str, str | None]]:
    """Relative paths of all files, sorted, following links; with what is wrong with a path, if anything."""
    above: dict[str, tuple[str, ...]] = {}
    locked: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=locked.append, followlinks=True):
        outer = above.get(os.path.dirname(folder), ())
        real = os.path.realpath(folder)
        if real in outer:  # a link to a folder that it lies in
            folders.clear()
            continue
        above[folder] = (*outer, real)
        folders.sort()
        prefix = "" if folder == root else os.path.relpath(folder, root) + "/"
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
    for failure in locked:
        relative = os.path.relpath(failure.filename, root).encode("utf-8", "backslashreplace").decode()
        yield relative, f"a folder that cannot be listed: {failure.strerror}"


def _walk_remote(root: str) -> Iterator[tuple[str, str | None]]:
    filesystem, base = storage.resolve(root)
    base = base.rstrip("/") + "/"
    for info in sorted(filesystem.get_file_info(pafs.FileSelector(base, recursive=True)), key=lambda info: info.path):
        if info.type == pafs.FileType.File:
            yield info.path[len(base) :], None


def _subset(table: pa.Table, per_class: int, seed: int) -> pa.Table:
    """At most `per_class` readable files of each label; files without a label or with a problem stay."""
    key = seed.to_bytes(8, "big")
    names = [storage.name(path) for path in table["path"].to_pylist()]
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


def _table(rows: Iterable[tuple[str | None, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(LISTING)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)], LISTING)
