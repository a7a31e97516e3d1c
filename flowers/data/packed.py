"""Photos in archives and shards, which are unpacked once: into a folder of photos, or one with a manifest.

An archive is a zip or a tar, here or on the network; a tar in WebDataset's form has the label of `a.jpg` in `a.cls` or
`a.json`. A shard is a Parquet file with the bytes of photos, as Hugging Face's datasets are kept. A folder that holds
nothing but such files is all of them together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import images
from flowers.data.builtin.archive import Archive, Limits, read_note, unpack, write_note
from flowers.data.builtin.download import fetch, lock
from flowers.data.layout import side_of
from flowers.errors import DownloadError, InputError, first_line

MANIFEST: Final = "manifest.jsonl"
_ZIP, _TAR = (".zip",), (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
ARCHIVES: Final = (*_ZIP, *_TAR)
_ON_THE_NETWORK: Final = ("https://", "http://")
# Names of columns and of WebDataset's files that hold a photo, a label, a group.
_PHOTOS: Final = ("image", "img", "photo", "picture", "bytes", "image_bytes", "jpg", "jpeg", "png", "data", "content")
_LABELS: Final = ("label", "labels", "class", "class_name", "category", "target", "cls", "y")
_GROUPS: Final = ("group", "patient", "patient_id", "subject", "camera", "burst")
# So much more than its own size may come out of an archive of photos, which hardly get smaller.
_MOST_TIMES, _SPARE = 50, 1 << 30
_MOST_FILES: Final = 20_000_000


def is_packed(uri: str) -> bool:
    """Whether a URI names an archive, or a Parquet file that holds photos themselves."""
    return _path(uri).endswith(ARCHIVES) or _is_shard(uri)


def _path(uri: str) -> str:
    """What the kind of a file is known by: its URI in lower case, without options."""
    return uri.partition("?")[0].lower()


def parts_of(source: str) -> list[str]:
    """What there is to unpack: an archive or a shard, or those of a folder that holds nothing else; else nothing."""
    if source.lower().startswith(_ON_THE_NETWORK):
        return [source]
    filesystem, path = storage.resolve(source)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File and is_packed(source):
        return [source]
    if kind != pafs.FileType.Directory:
        return []
    try:
        names = [name for name in storage.names(source) if not name.startswith((".", "_")) and not _is_about(name)]
    except UnicodeDecodeError:  # a name that is no text is none of an archive
        return []
    if not names or not all(name.lower().endswith((*ARCHIVES, ".parquet")) for name in names):
        return []
    uris = [storage.join(source, name) for name in names]
    return uris if all(is_packed(uri) for uri in uris) else []


def unpacked(uris: list[str], datasets: str) -> str:
    """Unpacks archives and shards, unless that was done before.

    Args:
        uris: of one or more.
        datasets: local folder in which they are kept.

    Returns:
        The folder of photos, or the manifest of photos that were not in folders of classes.

    Raises:
        InputError: one cannot be read, is not safe, or holds no photos; the text says what to do.
    """
    key = hashlib.sha256(json.dumps([_identity(uri) for uri in uris]).encode()).hexdigest()[:16]
    target = Path(datasets, f"unpacked-{key}")
    work = Path(f"{target}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(Path(datasets, f"unpacked-{key}.lock")):
            if not (target.is_dir() and read_note(target)):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                for uri in uris:
                    _unpack_one(uri, work if len(uris) == 1 else work / _stem(uri), datasets)
                _write_manifest(work)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(work, target)
                write_note(target, {"of": uris})
    except OSError as error:
        raise InputError(f"--data: {uris[0]} cannot be unpacked in {datasets}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    manifest = target / MANIFEST
    return str(manifest if manifest.exists() else target)


def _identity(uri: str) -> list[Any]:
    """What changes when the file does."""
    if uri.lower().startswith(_ON_THE_NETWORK):
        return [uri]
    filesystem, path = storage.resolve(uri)
    info = filesystem.get_file_info(path)
    return [storage.absolute(uri), info.size, info.mtime_ns]


def _unpack_one(uri: str, target: Path, datasets: str) -> None:
    path = _path(uri)
    archive = Archive(uri, None, None, "zip" if path.endswith(_ZIP) else "tar")
    if path.startswith(_ON_THE_NETWORK):
        if not path.endswith(ARCHIVES):
            raise InputError(
                f"--data: {uri!r} is no archive; required is an address that ends with {', '.join(ARCHIVES)}"
            )
        key = hashlib.sha256(uri.encode()).hexdigest()[:16]
        folder = fetch(f"web-{key}", datasets, source=archive, limits=_limits(1 << 40, datasets))
        shutil.copytree(folder, target, copy_function=os.link, dirs_exist_ok=True)
    elif path.endswith(ARCHIVES):
        with _local(uri, datasets) as local:
            try:
                unpack(local, archive, target, _limits(local.stat().st_size, datasets), folders=False)
            except DownloadError as error:
                raise InputError(f"--data: {first_line(error)}") from error
    else:
        _unpack_shard(uri, target)


@contextmanager
def _local(uri: str, datasets: str) -> Iterator[Path]:
    """A file as a local path, copied for as long as it is needed if it is remote."""
    filesystem, path = storage.resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(path)
        return
    copy = Path(datasets, f"copy-{hashlib.sha256(uri.encode()).hexdigest()[:16]}")
    try:
        with filesystem.open_input_stream(path) as source, open(copy, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 22)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _limits(size: int, datasets: str) -> Limits:
    free = shutil.disk_usage(datasets).free
    most = max(0, min(free - _SPARE, _MOST_TIMES * size + _SPARE))
    return Limits(archive_bytes=most, unpacked_bytes=most, files=_MOST_FILES)


def _stem(uri: str) -> str:
    return re.sub(r"[^\w.-]", "-", storage.name(uri)).partition(".")[0]


def _is_about(name: str) -> bool:
    """Files that say something of the shards beside them."""
    return name.lower() in {
        "readme.md",
        "license",
        "license.txt",
        "dataset_info.json",
        "state.json",
        "dataset_infos.json",
    }


def _is_shard(uri: str) -> bool:
    if not _path(uri).endswith(".parquet"):
        return False
    try:
        filesystem, path = storage.resolve(uri)
        return _photo_column(pq.read_schema(filesystem.open_input_file(path))) is not None
    except (OSError, ValueError, InputError, pa.ArrowException):
        return False  # the reader of manifests says what is wrong


def _photo_column(schema: pa.Schema) -> str | None:
    """The column with the bytes of photos: binary, or Hugging Face's structure of bytes and path."""
    for name in sorted(schema.names, key=lambda name: name.lower() not in _PHOTOS):
        kind = schema.field(name).type
        if name.lower() in _PHOTOS and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return str(name)
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(name)
    return None


def _unpack_shard(uri: str, target: Path) -> None:
    filesystem, path = storage.resolve(uri)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetFile(filesystem.open_input_file(path)) as file, open(target / MANIFEST, "a") as out:
            for row in _rows(file, target, storage.name(uri)):
                out.write(json.dumps(row) + "\n")
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"--data: {uri} cannot be read: {first_line(error)}") from error


def _rows(file: pq.ParquetFile, target: Path, name: str) -> Iterator[dict[str, str | None]]:
    """Writes the photos of a shard and yields their rows of a manifest."""
    schema = file.schema_arrow
    photo = _photo_column(schema)
    lower = {column.lower(): column for column in schema.names}
    label, group = (next((lower[known] for known in names if known in lower), None) for names in (_LABELS, _GROUPS))
    if photo is None or label is None:
        raise ValueError(f"it has the columns {', '.join(schema.names)}; required are photos, as bytes, and a label")
    split, names = lower.get("split"), _class_names(schema, label)
    side = side_of(re.sub(r"[\d_.-]+of[\d_.-]+", "", name.partition(".")[0]))
    number = 0
    for batch in file.iter_batches(64, columns=[column for column in (photo, label, group, split) if column]):
        for row in batch.to_pylist():
            held = row[photo]
            data = held.get("bytes") if isinstance(held, dict) else held
            form = images.sniff(data or b"") or "bin"
            path = target / f"{number:09}.{'jpg' if form == 'jpeg' else form}"
            path.write_bytes(data or b"")
            value = row[label]
            shown = names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
            yield {
                "path": path.name,
                "label": None if shown is None else str(shown),
                "split": row[split] if split else side,
                "group": None if group is None or row[group] is None else str(row[group]),
            }
            number += 1


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Names of classes that Hugging Face keeps beside the numbers."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][label]["names"]
        return [str(name) for name in names]
    except (ValueError, KeyError, TypeError):
        return None


def _write_manifest(folder: Path) -> None:
    """Puts one manifest into the folder, if its parts have some or are in WebDataset's form."""
    rows: list[str] = []
    for part in sorted({folder, *(path for path in folder.iterdir() if path.is_dir())}):
        at = part.relative_to(folder)
        if (own := part / MANIFEST).exists():
            for line in own.read_text().splitlines():
                row = json.loads(line)
                rows.append(json.dumps({**row, "path": str(at / row["path"])}))
        else:
            rows += [json.dumps(row) for row in _web_dataset(part, at)]
    if rows:
        (folder / MANIFEST).write_text("\n".join(rows) + "\n")


def _web_dataset(folder: Path, at: Path) -> Iterator[dict[str, str | None]]:
    """Rows for photos that lie beside a file with their label, of the same name up to the first dot."""
    labels: dict[str, str] = {}
    photos: list[Path] = []
    for path in sorted(folder.iterdir()):
        stem, _, kind = path.name.partition(".")
        if kind in ("cls", "cls.txt", "label", "cls.json"):
            labels[stem] = path.read_text("utf-8", "replace").strip().strip('"')
        elif kind == "json" and stem not in labels:
            label = _label_in_json(path)
            if label is not None:
                labels[stem] = label
        elif path.suffix.lower() in images.EXTENSIONS:
            photos.append(path)
    if not labels:
        return
    for path in photos:
        yield {
            "path": str(at / path.name),
            "label": labels.get(path.name.partition(".")[0]),
            "split": side_of(re.sub(r"[\d_.-]+$", "", folder.name)),
        }


def _label_in_json(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        return next((str(found[name]) for name in _LABELS if found.get(name) is not None), None)
    except (ValueError, AttributeError):
        return None
