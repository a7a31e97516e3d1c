"""Cleaning: what lies beside the runs and can be made again is removed when nobody has used it for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from flowers import runs, storage
from flowers.config import CleanOptions
from flowers.errors import InputError
from flowers.text import plain, several

_CACHES = {"features": "features", "phash": "hashes", "networks": "network"}
_KEPT, _MAY_GO = "stays", "may go"


@dataclass(frozen=True)
class Item:
    """What can be removed as a whole.

    Attributes:
        kind: what it is, in a word or two.
        place: its path below the storage.
        uris: its files and folders.
        size: bytes of all its files.
        age: seconds since it was last used, as far as that is known.
    """

    kind: str
    place: str
    uris: tuple[str, ...]
    size: int
    age: float


def clean(options: CleanOptions, out: Console) -> list[Item]:
    """Shows what lies beside the runs, and removes what may go if that is asked for.

    Args:
        options: where, and what may go.
        out: gets a line an item, and a sum.

    Returns:
        What may go, or is gone.

    Raises:
        InputError: there is no such storage, or something in it cannot be removed.
    """
    folder = storage.absolute(options.storage)
    if not storage.exists(folder):
        raise InputError(f"--storage: received {options.storage!r}, required is the folder of all runs; there is none")
    items = sorted(_items(folder), key=lambda item: -item.age)
    going, total = [], sum(item.size for item in items)
    left = total
    for item in items:
        user = _user(folder, item)
        too_much = options.max_size is not None and left > options.max_size * 1e9
        goes = not user and (item.age >= options.oldest_s or too_much)
        if goes:
            going.append(item)
            left -= item.size
        if goes and options.delete:
            _remove(item)
        state = f"used by the run {user}" if user else _KEPT if not goes else "removed" if options.delete else _MAY_GO
        line = f"{item.kind:<10} {_size(item.size):>9}  {_age(item.age):>8}  {state:<8}  {item.place}"
        out.print(plain(line), highlight=False, markup=False)
    why = f"not used for {options.older_than}" + (
        f", or beyond {options.max_size:g} GB" if options.max_size is not None else ""
    )
    said = "removed" if options.delete else "may go; --delete removes that"
    out.print(
        f"{_size(total)} in {several(len(items), 'item')}; {_size(total - left)} in {len(going)} ({why}) {said}",
        highlight=False,
        markup=False,
    )
    return going


def _items(folder: str) -> Iterator[Item]:
    now = time.time()

    def item(kind: str, place: str, *names: str) -> Item:
        """What has these names in `place`."""
        uris = [
            storage.join(folder, *place.split("/"), name) if place else storage.join(folder, name) for name in names
        ]
        files = [entry for uri in uris if (entry := storage.entry(uri))]
        for uri, entry in zip(tuple(uris), tuple(files), strict=False):
            if entry.folder:
                files += storage.entries(uri, below=True)
        changed = [file.changed for file in files if file.changed is not None]
        age = max(0.0, now - max(changed)) if changed else 0.0
        shown = "/".join(filter(None, (place, names[0])))
        return Item(kind, shown, tuple(uris), sum(file.size for file in files if not file.folder), age)

    for inner, kind in _CACHES.items():
        for name in storage.names(storage.join(folder, "cache", inner)):
            yield item("left over" if storage.is_left_over(name) else kind, f"cache/{inner}", name)
    sets: dict[str, list[str]] = {}
    for name in storage.names(storage.join(folder, "datasets")):
        sets.setdefault(name.split(".")[0], []).append(name)
    for names in sets.values():
        yield item("data set", "datasets", *names)
    places = [run.name for run in runs.runs_of(folder)]
    for place in ("", *places, *(f"{place}/checkpoints" for place in places)):
        for name in storage.names(storage.join(folder, *place.split("/")) if place else folder):
            if storage.is_left_over(name) or name.startswith(".probe-"):
                yield item("left over", place, name)


def _user(folder: str, item: Item) -> str:
    """The name of a run in progress that uses it, else ""; looked up for each item, as runs begin meanwhile."""
    for run in runs.runs_in_progress(folder):
        used = run.used()
        if used is None or item.kind == "left over":  # it may be writing it just now
            return run.name
        for uri in item.uris:
            if any(f"{one}/".startswith(f"{uri}/") or f"{uri}/".startswith(f"{one}/") for one in used):
                return run.name
    return ""


def _remove(item: Item) -> None:
    try:
        for uri in item.uris:
            storage.delete(uri)
            storage.delete_file(uri)
    except OSError as error:
        raise InputError(f"--storage: {item.place} cannot be removed: {error.strerror or error}") from error


def _size(size: int) -> str:
    for unit, bytes_of in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_of / 10:
            return f"{size / bytes_of:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
