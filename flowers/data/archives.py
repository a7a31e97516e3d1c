"""Photos in archives, which are unpacked once: into a folder of photos, or one with a manifest.

An archive is a zip or a tar, here or on the network; a tar in WebDataset's form has the label of `a.jpg` in `a.cls` or
`a.json`. A folder that holds nothing but archives is all of them together.
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

from pyarrow import fs as pafs

from flowers import storage
from flowers.data import images
from flowers.data.builtin.archive import Archive, Limits, read_note, unpack, write_note
from flowers.data.builtin.download import fetch, lock
from flowers.data.layout import side_of
from flowers.data.shards import LABELS
from flowers.errors import DownloadError, InputError, first_line

MANIFEST: Final = "manifest.jsonl"
_ZIP, _TAR = (".zip",), (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
ARCHIVES: Final = (*_ZIP, *_TAR)
_ON_THE_NETWORK: Final = ("https://", "http://")
# So much more than its own size may come out of an archive of photos, which hardly get smaller.
_MOST_TIMES, _SPARE = 50, 1 << 30
_MOST_FILES: Final = 20_000_000


def _path(uri: str) -> str:
    """What the kind of a file is known by: its URI in lower case, without options."""
    return uri.partition("?")[0].lower()


def is_archive(uri: str) -> bool:
    """Whether a URI names an archive."""
    return _path(uri).endswith(ARCHIVES)


def is_on_the_network(source: str) -> bool:
    """Whether it is the address of a web server."""
    return source.lower().startswith(_ON_THE_NETWORK)


def unpacked(uris: list[str], datasets: str) -> str:
    """Unpacks archives, unless that was done before.

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
    if is_on_the_network(uri):
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
    else:
        with _local(uri, datasets) as local:
            try:
                unpack(local, archive, target, _limits(local.stat().st_size, datasets), folders=False)
            except DownloadError as error:
                raise InputError(f"--data: {first_line(error)}") from error


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


def _write_manifest(folder: Path) -> None:
    """Puts one manifest into the folder, if its parts are in WebDataset's form."""
    parts = sorted({folder, *(path for path in folder.iterdir() if path.is_dir())})
    rows = [json.dumps(row) for part in parts for row in _web_dataset(part, part.relative_to(folder))]
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
        return next((str(found[name]) for name in LABELS if found.get(name) is not None), None)
    except (ValueError, AttributeError):
        return None
