"""Photos sorted into folders by their predicted class.

Names of classes and of files are other people's text: each becomes one plain name below the target, never a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from urllib.parse import quote, unquote

import pyarrow as pa

from flowers import storage
from flowers.data.reading import read_bytes
from flowers.errors import BadImage, InputError, first_line
from flowers.options import check_folder
from flowers.prediction.parts import changed

UNSURE, UNKNOWN, NOTE = "unsure", "none-of-these", ".sorted.json"
# Bytes of the longest name; file systems allow 255, and a mark may follow.
_LONGEST = 200
# Copied at once by one task.
_ROWS = 64

# A photo's path, the folder of its class, and the names that it may have there, the better first.
Place = tuple[str, str, tuple[str, str]]


class Folders:
    """Says where photos go; asked in the same order again, it says the same.

    Args:
        min_score: photos of lower scores are `UNSURE`; None is sure of all.
    """

    def __init__(self, min_score: float | None) -> None:
        self._min_score = min_score
        self._taken: set[tuple[str, str]] = set()

    def places(self, rows: pa.Table) -> Iterator[Place]:
        """Places of the photos among some files; a name that another photo has already gets a mark.

        Args:
            rows: columns path, label and score; null score for a bad file, which goes nowhere, null label for a photo
                that is none of the classes, which is `UNKNOWN`.
        """
        for path, label, score in zip(*(rows[name].to_pylist() for name in ("path", "label", "score")), strict=True):
            if score is None:
                continue
            unsure = self._min_score is not None and score < self._min_score
            folder = UNKNOWN if label is None else UNSURE if unsure else folder_name(label)
            name = file_name(path)
            stem, ending = os.path.splitext(name)
            marked = f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:12]}{ending}"
            if (folder, name.casefold()) in self._taken:  # some file systems do not tell cases apart
                name = marked
            self._taken.add((folder, name.casefold()))
            yield path, folder, (name, marked)


def folder_name(label: str) -> str:
    """The folder of a class: one name, another one for each class, and neither `UNSURE` nor `UNKNOWN`."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|^ |[. ]$', _escaped, label) or "%"
    if name.casefold() in (UNSURE, UNKNOWN):
        name = f"{_hex(name[0])}{name[1:]}"
    return name if len(name.encode("utf-8", "replace")) <= _LONGEST else _cut(name)


def file_name(path: str) -> str:
    """The name of a photo's copy: that of the photo, made a plain one."""
    name = storage.name(path)
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", unquote(name) if storage.is_remote(path) else name)
    name = "_" if name in ("", ".", "..") else name
    return name if len(name.encode("utf-8", "replace")) <= _LONGEST else _cut(name, *os.path.splitext(name))


def _escaped(match: re.Match[str]) -> str:
    return "".join(map(_hex, match[0]))


def _hex(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


def _cut(name: str, stem: str = "", ending: str = "") -> str:
    """A name that is too long: its start, and a hash of all of it."""
    mark, ending = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16], ending if len(ending) < 16 else ""
    return f"{(stem or name).encode('utf-8', 'replace')[: _LONGEST - 40].decode('utf-8', 'ignore')}-{mark}{ending}"


@contextmanager
def claimed(target: str, how: Mapping[str, object]) -> Iterator[None]:
    """Notes in a folder how photos are sorted into it; otherwise sorted, they would lie in two places there.

    If the block fails before any is, the note goes again.

    Args:
        target: folder or URI that they are sorted into.
        how: what decides where they go and in which form, by option.

    Raises:
        InputError: it holds other things, photos were sorted into it otherwise, or it cannot be written.
    """
    check_folder("--sort-into", target, [NOTE], "folder of sorted photos")
    uri = storage.join(target, NOTE)
    with storage.no_empty_folders(target):
        try:
            new = not storage.exists(uri)
            if new:
                with storage.enough_space(target):
                    storage.write(uri, json.dumps(how).encode())
            before = dict(json.loads(storage.read(uri)))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"--sort-into: {uri} cannot be read or written: {first_line(error)}") from error
        if changes := changed(before, how):
            raise InputError(
                f"--sort-into: photos were sorted into {target} otherwise ({changes}); give another folder"
            )
        with storage.withdrawn(uri) if new else nullcontext():
            yield


def sort_into(target: str, places: Sequence[Place], link: bool) -> int:
    """Copies photos, or links to them, by Ray tasks; what is there already stays, so it may be done again.

    Args:
        target: folder or URI that all of it lies below.
        places: of `Folders.places`.
        link: symbolic links in place of copies.

    Returns:
        How many photos could not be read any more.

    Raises:
        InputError: the target cannot be written.
    """
    import ray

    folders = sorted({folder for _, folder, _ in places})
    for folder in folders:
        place = storage.join(target, folder)
        if not storage.is_remote(target) and os.path.islink(place):
            raise InputError(f"--sort-into: {place} is a link to another place; required is a folder, or nothing yet")
        _make(place)
    # It waits for disks, not for CPUs, and must not wait for those who decode.
    task = ray.remote(num_cpus=0)(_sort_some)
    running = [task.remote(target, list(places[start : start + _ROWS]), link) for start in range(0, len(places), _ROWS)]
    return sum(ray.get(running))


def _make(folder: str) -> None:
    try:
        with storage.enough_space(folder):
            storage.make_folder(folder)
    except OSError as error:
        raise InputError(f"--sort-into: {folder} cannot be made: {error.strerror or error}") from error


def _sort_some(target: str, places: list[Place], link: bool) -> int:
    """Sorts some photos; returns how many are gone."""
    gone = 0
    for path, folder, names in places:
        data = None if link else read_bytes(path)
        if isinstance(data, BadImage):
            gone += 1
            continue
        for name in names:
            quoted = quote(name) if storage.is_remote(target) else name
            if _put(storage.join(target, folder, quoted), path, data):
                break
        else:
            raise InputError(f"--sort-into: {storage.join(target, folder)} holds other files named {names[1]!r}")
    return gone


def _put(uri: str, source: str, data: bytes | None) -> bool:
    """Puts a copy, or without data a link; returns whether it is there now, and not another file."""
    if data is None:
        if not os.path.lexists(uri):
            os.symlink(source, uri)
        return os.path.islink(uri) and os.readlink(uri) == source
    found = storage.entry(uri)
    if found is None:
        with storage.enough_space(uri):
            storage.write(uri, data)
        return True
    return not found.folder and found.size == len(data) and storage.read(uri) == data
