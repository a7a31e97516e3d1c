"""Where photos come from: a folder, a manifest or a named set becomes a listing of files; nothing is opened yet."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import archives, images, manifest, pack, shards
from flowers.data.builtin import download, sample
from flowers.data.groups import from_paths
from flowers.data.layout import UNLABELLED, understand
from flowers.data.ledger import check_classes
from flowers.data.left_beside import left_beside
from flowers.data.look_alikes import look_alikes
from flowers.errors import InputError, few
from flowers.text import several

# What a listing says of a file; `code` is set where there is already a reason not to read it.
LISTING = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
    ]
)


# Files that say something of the archives or shards beside them.
_ABOUT = {"readme.md", "license", "license.txt", "dataset_info.json", "state.json", "dataset_infos.json"}
# Names that count when the meaning of folders is found out: of pictures, read or not, and without an ending.
_LIKE_A_PHOTO = images.EXTENSIONS | images.OTHER_EXTENSIONS | {""}


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        source: the folder or manifest they were listed from, absolute.
        table: schema `LISTING`, ordered by path (a manifest: in its own order).
        listed: files in the source before `--per-class`.
        drawn: whether the pictures are drawn ones.
        notes: what was understood of its folders, a line each.
        warnings: what looks wrong with its folders, a line each.
        folder: the folder that was walked; None where a manifest lists the files.
    """

    source: str
    table: pa.Table
    listed: int
    drawn: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    folder: str | None = None


def some(table: pa.Table) -> list[str]:
    """A few files from all over a listing; of photos in shards these."""
    paths = table["path"][:: max(1, table.num_rows // 16)].to_pylist()
    return list(dict.fromkeys(map(shards.file_of, paths)))


def list_photos(
    data: str,
    *,
    datasets: str,
    per_class: int | None,
    seed: int,
    layout: str = "auto",
    runs: str | None = None,
    run_files: frozenset[str] = frozenset(),
    group_by: str | None = None,
    root: str | None = None,
    class_names: str | None = None,
) -> Listing:
    """Lists a source and checks that it can be trained on at all.

    Args:
        data: as the option ``--data``.
        datasets: local folder in which named sets are kept.
        per_class: at most so many files a class, chosen by a hash of seed and file name; None takes all.
        seed: of that choice.
        layout: as the option ``--layout``.
        runs: storage of runs, absolute: it may lie among the photos, and holds none.
        run_files: names of files that make a folder a run, wherever it lies.
        group_by: as the option ``--group-by``; None takes groups from the manifest, if it gives any.
        root: folder that relative paths of a manifest start at; None takes the manifest's.
        class_names: file with the names of a manifest's numbered classes.

    Raises:
        InputError: no such place, not a manifest, no photos, one class only, or a class of one file.
    """
    found = list_files(
        data, datasets=datasets, layout=layout, runs=runs, run_files=run_files, root=root, class_names=class_names
    )
    table, folder = found.table, found.folder
    if per_class is not None:
        table = _subset(table, per_class, seed)
    if table.num_rows == 0 or table["label"].null_count == table.num_rows:
        raise no_photos(found, data)
    check_classes(table)
    if group_by is not None:
        below = [
            unquote(shards.below(path, folder)) if folder else shards.below(path, "")
            for path in table["path"].to_pylist()
        ]
        groups = from_paths(below, table["label"].to_pylist(), group_by)
        table = table.set_column(LISTING.get_field_index("group"), "group", pa.array(groups, pa.string()))
    warnings = (*found.warnings, *look_alikes(sorted(set(table["label"].drop_null().to_pylist()))))
    return dataclasses.replace(found, table=table, warnings=warnings)


def no_photos(found: Listing, data: str) -> InputError:
    """The error of a source without labelled photos."""
    return InputError(
        f"--data: found no photos in {data!r} ({several(found.listed, 'file')}); "
        + (
            "put the photos of each class into a sub-folder of its own"
            if found.folder
            else "give each a path and a label"
        )
    )


def list_files(
    data: str,
    *,
    datasets: str,
    labelled: bool = True,
    layout: str = "auto",
    runs: str | None = None,
    run_files: frozenset[str] = frozenset(),
    root: str | None = None,
    class_names: str | None = None,
) -> Listing:
    """Lists a source, whatever it holds.

    Args:
        data: as the option ``--data``; without labels also a single photo.
        datasets: local folder in which named sets and what was unpacked are kept.
        labelled: whether folders and columns name classes; else nobody looks at them, and no row has a label.
        layout: as the option ``--layout``.
        runs: storage of runs, absolute: it may lie among the photos, and holds none.
        run_files: names of files that make a folder a run, wherever it lies.
        root: folder that relative paths of a manifest start at; None takes the manifest's.
        class_names: file with the names of a manifest's numbered classes.

    Raises:
        InputError: no such place, or not a manifest.
    """
    drawn = data == "sample"
    notes, warnings = list[str](), list[str]()
    folder = None
    if drawn:
        source = folder = os.path.join(datasets, "sample")
        sample.draw_sample(source)
    elif data in download.ARCHIVES:
        source = folder = download.fetch(data, datasets)
    else:
        source, packed = storage.absolute(data), _packed(data)
        if packed and (archives.is_on_the_network(packed[0]) or archives.is_archive(packed[0])):
            source, packed = archives.unpacked(packed, datasets), []
            notes.append(f"unpacked into {source}")
        filesystem, path = storage.resolve(source)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.NotFound:
            named = ", ".join(["sample", *download.ARCHIVES])
            raise InputError(f"--data: there is nothing at {data!r}; give a folder, a manifest or one of {named}")
        if packed:
            if root:
                raise InputError(f"--root belongs to a manifest, {data!r} holds photos in shards; leave it out")
            table, line = _list_shards(source, packed, labelled, class_names)
            notes.append(line)
        elif kind == pafs.FileType.Directory:
            folder = source
        elif path.lower().endswith(manifest.SUFFIXES):
            rows, said = manifest.read_manifest(source, root and storage.absolute(root), class_names, labelled)
            notes += said
            table = _table(rows)
        elif not labelled and os.path.splitext(path)[1].lower() in _LIKE_A_PHOTO - {""}:
            table = _table([(source, None, None, None, None, None)])
        else:
            raise InputError(
                f"--data: received the file {data!r}, required is a folder, a manifest "
                f"({', '.join(manifest.SUFFIXES)}) or an archive ({', '.join(archives.ARCHIVES)})"
            )
    if folder:
        if root or class_names:
            raise InputError(f"--root and --class-names belong to a manifest, {data!r} is a folder; leave them out")
        table, said, warnings = _list_folder(folder, layout if labelled else None, runs, run_files)
        notes += said
    return Listing(source, table, table.num_rows, drawn, tuple(notes), tuple(warnings), folder)


def _packed(source: str) -> list[str]:
    """The archives or shards that a source is: itself, those of a folder that holds nothing else, or of a pack."""
    if archives.is_on_the_network(source):
        return [source]
    source = storage.absolute(source)
    filesystem, path = storage.resolve(source)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        return [source] if archives.is_archive(source) or shards.is_shard(source) else []
    if kind != pafs.FileType.Directory:
        return []
    try:
        names = storage.names(source)
    except UnicodeDecodeError:  # a name that is no text is none of an archive
        return []
    if pack.is_pack(names):
        return [storage.join(source, pack.MANIFEST)]
    names = [name for name in names if not name.startswith((".", "_")) and name.lower() not in _ABOUT]
    uris = [storage.join(source, name) for name in names]
    if not names or all(map(archives.is_archive, names)):
        return uris
    return uris if all(map(shards.has_its_name, names)) and shards.is_shard(uris[0]) else []


def _list_shards(source: str, uris: list[str], labelled: bool, class_names: str | None) -> tuple[pa.Table, str]:
    """The photos of shards, or of a pack, and a line on these."""
    if storage.name(uris[0]) == pack.MANIFEST:
        table, about = pack.list_pack(source, labelled=labelled)
        said = f"a pack of {several(about['photos'], 'photo')} in {several(len(about['shards']), 'shard')}"
    else:
        table = shards.list_shards(uris, labelled=labelled)
        said = f"{several(table.num_rows, 'photo')} in {several(len(uris), 'shard')}"
    if labelled and class_names is not None:
        labels = pa.array(manifest.named(table["label"].to_pylist(), class_names), pa.string())
        table = table.set_column(table.schema.get_field_index("label"), "label", labels)
    return table.cast(LISTING).combine_chunks(), said


def listing_of(rows: pa.Table) -> pa.Table:
    """A table of schema `LISTING` that lists the files of a ledger's `rows` again."""
    nothing = pa.nulls(rows.num_rows, pa.string())
    return pa.table([rows["path"], rows["label"], nothing, nothing, nothing, nothing], schema=LISTING)


@dataclass
class _Found:
    """What a walk finds: relative paths of files, sorted, each with what is wrong with it, and those of folders."""

    files: list[tuple[str, str | None]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _list_folder(
    root: str, layout: str | None, runs: str | None, run_files: frozenset[str]
) -> tuple[pa.Table, list[str], list[str]]:
    """All files below `root`; what was understood of its folders, and warnings about them.

    Without a layout folders mean nothing, and no file has a label.
    """
    remote = storage.is_remote(root)
    found = _without_runs(_walk_remote(root) if remote else _walk_local(root), root, runs, run_files)
    split = [(relative, tuple(relative.split("/")), problem) for relative, problem in found.files]
    if layout is None:
        return _table(_plain_row(root, remote, *row) for row in split), [], []
    photos = [parts for _, parts, problem in split if problem is None and left_beside(parts) is None]
    named = [parts for parts in photos if os.path.splitext(parts[-1])[1].lower() in _LIKE_A_PHOTO]
    understood = understand(named or photos, layout, f"--data {root}")
    rows, seen = [], set()
    for relative, parts, problem in split:
        label, side, depth = understood.place(parts)
        code, detail = None, problem
        if problem is not None:
            code = "unreadable"
        elif (what := left_beside(parts, depth)) is not None:
            code, label, detail = "hidden", None, what
        elif label is None:
            code, detail = "unlabelled", "lies in no class folder"
        if label is not None:
            seen.add(label)
        path = storage.join(root, quote(relative) if remote else relative)
        rows.append((path, label, None if side == UNLABELLED else side, None, code, detail))
    notes = [understood.said] if understood.said else []
    empty = set()
    for folder in found.folders:
        parts = (*folder.split("/"), "")
        label, _, depth = understood.place(parts)
        if label is not None and depth == len(parts) - 1 and label not in seen and left_beside(parts) is None:
            empty.add(label)
    warnings = [f"class folders without a file: {few(sorted(empty))}; left out"] if empty else []
    return _table(rows), notes, warnings


def _plain_row(root: str, remote: bool, relative: str, parts: tuple[str, ...], problem: str | None) -> manifest.Row:
    """A file of a folder whose folders mean nothing."""
    hidden = left_beside(parts) if problem is None else None
    code = "unreadable" if problem is not None else "hidden" if hidden is not None else None
    return storage.join(root, quote(relative) if remote else relative), None, None, None, code, problem or hidden


def _without_runs(found: _Found, root: str, runs: str | None, run_files: frozenset[str]) -> _Found:
    """Leaves out runs and their storage: they are no class, and grow with each run."""
    names: dict[str, set[str]] = {}
    for relative, _ in found.files:
        folder, _, name = relative.rpartition("/")
        names.setdefault(folder, set()).add(name)
    ours = {folder for folder, held in names.items() if folder and run_files and held >= run_files}
    ours |= {run.rpartition("/")[0] for run in ours if "/" in run}
    if runs == root.rstrip("/"):
        ours |= {"cache", "datasets"}
    elif runs is not None and storage.join(root, inside := storage.relative(runs, root)) == runs:
        ours.add(inside)
    if not ours:
        return found

    def outside(path: str) -> bool:
        parts = path.split("/")
        return not any("/".join(parts[:depth]) in ours for depth in range(1, len(parts) + 1))

    return _Found(
        [(path, problem) for path, problem in found.files if outside(path)],
        [folder for folder in found.folders if outside(folder)],
    )


def _walk_local(root: str) -> _Found:
    """Follows links, and enters each real folder once: by its own path, if that lies below `root`."""
    found, locked = _Found(), list[OSError]()
    real_root = os.path.realpath(root)
    entered = {real_root}
    for folder, folders, files in os.walk(root, onerror=locked.append, followlinks=True):
        folders.sort()
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            below = os.path.commonpath([real, real_root]) == real_root
            if real in entered or (below and os.path.islink(path)):
                folders.remove(name)
            else:
                entered.add(real)
        prefix = "" if folder == root else os.path.relpath(folder, root) + "/"
        if prefix:
            found.folders.append(_readable(prefix[:-1]))
        for name in sorted(files):
            relative, problem = prefix + name, None
            try:
                relative.encode()
                if not stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode):
                    problem = "not a regular file"
            except UnicodeEncodeError:
                relative, problem = _readable(relative), "its name is not valid UTF-8"
            except OSError as error:
                problem = error.strerror or type(error).__name__
            found.files.append((relative, problem))
    for failure in locked:
        relative = _readable(os.path.relpath(failure.filename, root))
        found.files.append((relative, f"a folder that cannot be listed: {failure.strerror}"))
    return found


def _readable(relative: str) -> str:
    return relative.encode("utf-8", "backslashreplace").decode()


def _walk_remote(root: str) -> _Found:
    filesystem, base = storage.resolve(root)
    base = base.rstrip("/") + "/"
    found = _Found()
    for info in sorted(filesystem.get_file_info(pafs.FileSelector(base, recursive=True)), key=lambda info: info.path):
        if info.type == pafs.FileType.File:
            found.files.append((info.path[len(base) :], None))
        elif info.type == pafs.FileType.Directory:
            found.folders.append(info.path[len(base) :])
    return found


def _subset(table: pa.Table, per_class: int, seed: int) -> pa.Table:
    """At most `per_class` readable files of each label; files without a label or with a problem stay."""
    key = seed.to_bytes(8, "big")
    names = [storage.name(shards.below(path, "")) for path in table["path"].to_pylist()]
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
