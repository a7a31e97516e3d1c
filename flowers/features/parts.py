"""A part of a cache: a Parquet file of photos sorted by SHA-256, in row groups, on which any damage shows.

It is named by a hash of its footer, which holds one of its digests: opening reads these two. The pages of features have
checksums, which reading verifies. So a damaged part is not mistaken for a whole one, and only what is wanted is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flowers.errors import DamagedFile, first_line
from flowers.storage import sha256

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Changes with the format: what an earlier version wrote is computed again.
FORMAT = "2"
# A row group is what is read at least: small, so that those of a range of hashes are little more than that range.
GROUP_ROWS, GROUP_BYTES = 32, 1 << 20
# The end of a file that holds its footer; one of 64 row groups takes 13 kB.
_TAIL = 64 << 10
_DTYPE, _DIGESTS = b"dtype", b"digests"
_PREFIX, _SUFFIX = "rows-", ".parquet"

Digests = npt.NDArray[np.bytes_]


def to_arrow(rows: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """The bytes of each row of an array [n, width]: numbers one by one would take Parquet several times as long."""
    rows = np.ascontiguousarray(rows)
    width = rows.shape[1] * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows.view(np.uint8))])


def from_arrow(values: pa.FixedSizeBinaryArray, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """What `to_arrow` was given, of a type, without a copy."""
    width = values.type.byte_width
    data = np.frombuffer(values.buffers()[1], np.uint8, len(values) * width, values.offset * width)
    return data.view(dtype).reshape(len(values), width // np.dtype(dtype).itemsize)


def encode(digests: Sequence[bytes], rows: npt.NDArray[Any]) -> tuple[str, memoryview]:
    """A part that holds some photos.

    Args:
        digests: SHA-256 of each, sorted.
        rows: their features [n, width], of float32, uint8 or bfloat16.

    Returns:
        Its name and its content.
    """
    table = pa.table(
        [to_arrow(to_array(digests)[:, None]), to_arrow(rows)],
        schema=pa.schema(
            [
                pa.field("sha256", pa.binary(32), nullable=False),
                pa.field("features", pa.binary(rows[:1].nbytes), nullable=False),
            ],
            metadata={_DTYPE: rows.dtype.name, _DIGESTS: sha256(b"".join(digests))},
        ),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=int(np.clip(GROUP_BYTES // rows[:1].nbytes, 1, GROUP_ROWS)),
        compression="none",  # floats do not compress
        use_dictionary=False,
        write_statistics=["sha256"],
        write_page_checksum=True,
    )
    data = memoryview(sink.getvalue())
    return _name(bytes(data[-_TAIL:])), data


def is_part(name: str) -> bool:
    """Whether a file of that name is a part; those of an earlier format are none."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def to_array(digests: Sequence[bytes]) -> Digests:
    """Digests as a NumPy array. NumPy drops zeros at the end of a single one: `to_bytes` keeps them."""
    return np.frombuffer(b"".join(digests), "S32")


def to_bytes(digests: Digests) -> list[bytes]:
    """What `to_array` was given."""
    return to_arrow(digests[:, None]).to_pylist()


class Part:
    """A part that is open.

    Args:
        file: its file.
        name: under which it was found.

    Attributes:
        digests: of the photos that it holds, sorted.

    Raises:
        DamagedFile: its footer or its digests are not those that it was named after.
    """

    def __init__(self, file: pa.NativeFile, name: str) -> None:
        self._name = name
        with self._whole():
            size = file.size()
            tail = file.read_at(min(size, _TAIL), max(0, size - _TAIL))
            if name != _name(tail):
                raise DamagedFile(f"{name} does not have the footer that its name says")
            metadata = pq.read_metadata(pa.BufferReader(tail))
            self._file = pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, pre_buffer=True)
            found = self._file.read(["sha256"])["sha256"].combine_chunks()
        self._metadata = self._file.schema_arrow.metadata
        self.digests: Digests = from_arrow(found, "S32")[:, 0]
        if sha256(self.digests.tobytes()).encode() != self._metadata[_DIGESTS]:
            raise DamagedFile(f"{name} does not have the digests that its footer says")
        groups = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        self._ends = np.cumsum([0, *groups])

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Features [k, width] of the photos at some indices, sorted; only the row groups that hold them are read.

        Raises:
            DamagedFile: they are not what was written.
        """
        name = self._metadata[_DTYPE].decode()
        dtype = BFLOAT16 if name == BFLOAT16.name else np.dtype(name)
        if not len(indices):
            return np.empty((0, self._file.schema_arrow.field("features").type.byte_width // dtype.itemsize), dtype)
        groups, places = np.unique(np.searchsorted(self._ends, indices, side="right") - 1, return_inverse=True)
        sizes = np.diff(self._ends)[groups]
        with self._whole():
            found = self._file.read_row_groups(groups.tolist(), ["features"])
            if found.num_rows != sizes.sum():
                raise DamagedFile(f"{self._name} lacks rows")
        starts = np.cumsum([0, *sizes])[:-1]
        rows = from_arrow(found["features"].combine_chunks(), dtype)
        return rows[indices - self._ends[groups][places] + starts[places]]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise DamagedFile(f"{self._name} cannot be read: {first_line(error)}") from error


def _name(tail: bytes) -> str:
    """The name of a part, from its last bytes: its footer, the length of that in four bytes, and four more."""
    footer = tail[-int.from_bytes(tail[-8:-4], "little") - 8 :]
    return f"{_PREFIX}{sha256(footer)}{_SUFFIX}"
