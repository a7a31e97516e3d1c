"""The feature cache: what the frozen part of the network made of each photo, by content.

A cache is a folder of Parquet parts named by the SHA-256 of their own bytes, so a damaged part cannot be
mistaken for a whole one. Its key holds everything the numbers depend on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.errors import DamagedFile

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PART_ROWS, PART_BYTES = 1024, 64 << 20
IN_MEMORY_BYTES = 1 << 30


def to_arrow(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """An array [n, width] of float32, uint8 or bfloat16, the last as its bits in uint16: Parquet does not know it."""
    plain = rows.view(np.uint16) if rows.dtype == BFLOAT16 else rows
    return pa.FixedSizeListArray.from_arrays(pa.array(plain.reshape(-1)), rows.shape[1])


def from_arrow(values: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """What `to_arrow` was given, without a copy."""
    rows = values.flatten().to_numpy().reshape(-1, values.type.list_size)
    return rows.view(BFLOAT16) if rows.dtype == np.uint16 else rows


@dataclass
class FeatureCache:
    """Features of photos by content, kept as Parquet parts in one folder.

    Attributes:
        uri: the folder; made when the first part is written.
        damaged: names of parts that failed their hash; their photos are computed again.
    """

    uri: str
    damaged: list[str] = field(default_factory=list)
    _parts: dict[str, list[bytes]] = field(default_factory=dict)
    _pending: dict[bytes, npt.NDArray[Any]] = field(default_factory=dict)

    def open(self) -> FeatureCache:
        """Checks every part against its name and learns which photos it holds; a damaged part is removed."""
        for name in storage.names(self.uri):
            if not name.endswith(".parquet") or name in self._parts:
                continue
            try:
                self._parts[name] = self._read(name, ["sha256"])["sha256"].to_pylist()
            except DamagedFile:
                self.damaged.append(name)
                filesystem, path = storage.resolve(storage.join(self.uri, name))
                with suppress(FileNotFoundError):  # another process was first
                    filesystem.delete_file(path)
        return self

    def digests(self) -> list[bytes]:
        """SHA-256 of all photos that are in the cache."""
        return [digest for part in self._parts.values() for digest in part] + list(self._pending)

    def add(self, digests: Sequence[bytes], features: npt.NDArray[Any]) -> None:
        """Adds features [n, d] of n photos; written out every `PART_ROWS` photos or `PART_BYTES`."""
        self._pending.update(zip(digests, features, strict=True))
        if len(self._pending) >= min(PART_ROWS, PART_BYTES // features[:1].nbytes):
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one part."""
        if not self._pending:
            return
        rows = np.stack(list(self._pending.values()))
        digests = pa.array(list(self._pending), pa.binary(32))
        sink = pa.BufferOutputStream()
        # Floats do not compress; without a dictionary Parquet writes them as fast as they are copied.
        table = pa.table({"sha256": digests, "features": to_arrow(rows)})
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        data = sink.getvalue().to_pybytes()
        name = f"part-{storage.sha256(data)}.parquet"
        with storage.enough_space(f"the feature cache {self.uri}"):
            storage.write(storage.join(self.uri, name), data)
        self._parts[name] = list(self._pending)
        self._pending.clear()

    def touch(self) -> None:
        """Notes that it is used now: what was not used for long is cleaned away first."""
        if self._parts:
            storage.write(storage.join(self.uri, ".used"), b"")

    def rows(self, digests: Sequence[bytes]) -> npt.NDArray[Any]:
        """Features of the given photos, in their order: [n, d], in the type in which they were added.

        Raises:
            DamagedFile: a part was changed after `open`, or does not hold a photo.
        """
        index_of = {digest: index for index, digest in enumerate(digests)}
        result: npt.NDArray[Any] | None = None
        missing = set(digests)
        for name, held in self._parts.items():
            wanted = [(row, index_of[digest]) for row, digest in enumerate(held) if digest in index_of]
            if not wanted:
                continue
            matrix = from_arrow(self._read(name, ["features"])["features"].combine_chunks())
            if result is None:
                result = _matrix((len(digests), matrix.shape[1]), matrix.dtype)
            source, target = (list(part) for part in zip(*wanted, strict=True))
            result[target] = matrix[source]
            missing -= {held[row] for row in source}
        if missing or result is None:
            raise DamagedFile(f"the feature cache {self.uri} lacks {len(missing)} photos; run the same command again")
        return result if len(index_of) == len(digests) else result[[index_of[digest] for digest in digests]]

    def _read(self, name: str, columns: list[str]) -> pa.Table:
        try:
            data = storage.read(storage.join(self.uri, name))
        except OSError as error:
            raise DamagedFile(f"{name} cannot be read: {error}") from error
        if name != f"part-{storage.sha256(data)}.parquet":
            raise DamagedFile(f"{name} does not have the content that its name says")
        return pq.read_table(pa.BufferReader(data), columns=columns)


def _matrix(shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An empty matrix: in memory if small, else in an unlinked file the system pages in and out."""
    if shape[0] * shape[1] * np.dtype(dtype).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR")) as file:
        return np.memmap(file.name, dtype, "w+", shape=shape)
