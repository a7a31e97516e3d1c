"""The feature cache: what the frozen part of the network made of each photo, by content.

A cache is a folder of parts (`flowers.features.parts`). Its key holds everything the numbers depend on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers import storage
from flowers.errors import DamagedFile, few
from flowers.features.parts import Digests, Part, encode, is_part, to_array, to_bytes
from flowers.text import several

PART_ROWS, PART_BYTES = 1024, 64 << 20
IN_MEMORY_BYTES = 1 << 30
# Parts that are opened at once: a bucket answers slowly but many at once.
_OPENED_AT_ONCE = 16
# What is added to the name of a damaged part until its photos are computed again.
_DAMAGED = ".damaged"


@dataclass
class FeatureCache:
    """Features of photos by content, kept as Parquet parts in one folder.

    Attributes:
        uri: the folder; made when the first part is written.
        damaged: names of parts that turned out to be damaged, now or when their rows were read; their photos are
            computed again.
    """

    uri: str
    damaged: list[str] = field(default_factory=list)
    _parts: dict[str, Digests] = field(default_factory=dict)
    _pending: dict[bytes, npt.NDArray[Any]] = field(default_factory=dict)

    def open(self) -> FeatureCache:
        """Learns which photos it holds, from the footers and digests of its parts; damaged ones are put aside."""
        names = storage.names(self.uri)
        new = [name for name in names if is_part(name) and name not in self._parts]
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            held = dict(zip(new, pool.map(self._held, new), strict=True))
        self._parts |= {name: digests for name, digests in held.items() if digests is not None}
        aside = {name.removesuffix(_DAMAGED) for name in names if name.endswith(_DAMAGED)}
        aside |= {name for name, digests in held.items() if digests is None}
        self.damaged += sorted(aside - set(self.damaged))
        return self

    def digests(self) -> list[bytes]:
        """SHA-256 of all photos that are in the cache; one that was written twice is there twice."""
        return [digest for part in self._parts.values() for digest in to_bytes(part)] + list(self._pending)

    def add(self, digests: Sequence[bytes], features: npt.NDArray[Any]) -> None:
        """Adds features [n, d] of n photos; written out every `PART_ROWS` photos or `PART_BYTES`."""
        self._pending.update(zip(digests, features, strict=True))
        if len(self._pending) >= min(PART_ROWS, PART_BYTES // features[:1].nbytes):
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one part."""
        if not self._pending:
            return
        digests = sorted(self._pending)
        name, data = encode(digests, np.stack([self._pending[digest] for digest in digests]))
        with storage.enough_space(f"the feature cache {self.uri}"):
            storage.write(storage.join(self.uri, name), data)
        self._parts[name] = to_array(digests)
        self._pending.clear()

    def touch(self) -> None:
        """Notes that it is used now, and forgets damage: what was not used for long is cleaned away first."""
        if self._parts:
            storage.write(storage.join(self.uri, ".used"), b"")
        for name in self.damaged:
            storage.delete_file(storage.join(self.uri, name + _DAMAGED))

    def rows(self, digests: Sequence[bytes]) -> npt.NDArray[Any]:
        """Features of the given photos, in their order: [n, d], in the type in which they were added.

        Reads only the row groups that hold one of them.

        Raises:
            DamagedFile: a part turns out to be damaged, or none holds a photo.
        """
        wanted, first, inverse = np.unique(to_array(digests), return_index=True, return_inverse=True)
        missing = np.ones(len(wanted), np.bool_)
        result: npt.NDArray[Any] | None = None
        for name, held in self._parts.items():
            places = np.searchsorted(wanted, held)
            here = np.flatnonzero(places < len(wanted))
            here = here[wanted[places[here]] == held[here]]
            here = here[missing[places[here]]]  # a photo may be in two parts
            if not len(here) and (len(wanted) or result is not None):
                continue
            with self._part(name) as part:
                rows = part.rows(here)
            if result is None:
                result = _matrix((len(digests), rows.shape[1]), rows.dtype)
            result[first[places[here]]] = rows
            missing[places[here]] = False
        if missing.any() or result is None:
            why = f", as {few(self.damaged)} turned out to be damaged" if self.damaged else ""
            raise DamagedFile(
                f"the feature cache {self.uri} lacks {several(int(missing.sum()), 'photo')}{why}; run the same "
                "command again"
            )
        return result if len(wanted) == len(digests) else result[first[inverse]]

    def _held(self, name: str) -> Digests | None:
        """Digests of the photos in a part; None if it is damaged."""
        with suppress(DamagedFile), self._part(name) as part:
            return part.digests
        return None

    @contextmanager
    def _part(self, name: str) -> Iterator[Part]:
        """Opens a part. If it turns out to be damaged it is put aside, so that the next command computes it again."""
        filesystem, path = storage.resolve(storage.join(self.uri, name))
        try:
            with self._file(filesystem, path) as file:
                yield Part(file, name)
        except (DamagedFile, OSError) as error:
            with suppress(FileNotFoundError):  # another process was first
                filesystem.move(path, path + _DAMAGED)
            raise DamagedFile(
                f"the feature cache {self.uri} is damaged ({error}); run the same command again: what is lost is "
                "computed again"
            ) from error

    def _file(self, filesystem: pa.fs.FileSystem, path: str) -> pa.NativeFile:
        return filesystem.open_input_file(path)


def _matrix(shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An empty matrix: in memory if small, else in an unlinked file the system pages in and out."""
    if shape[0] * shape[1] * np.dtype(dtype).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR")) as file:
        return np.memmap(file.name, dtype, "w+", shape=shape)
