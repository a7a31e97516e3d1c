"""The frozen part of the network, run once an image, and the cache of what it gave.

A cache is a folder of Parquet parts named by the SHA-256 of their own bytes, so a damaged part cannot be
mistaken for a whole one. Its key holds everything the numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
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
from flowers.data.images import DECODER_VERSION
from flowers.errors import DamagedFile
from flowers.model.cuts import POOL, front

PLAIN, FLIP = "plain", "flip"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BATCH = 32
PART_ROWS, PART_BYTES = 1024, 64 << 20
IN_MEMORY_BYTES = 1 << 30


def cache_key(
    *, backbone: str, weights: str, image_size: int, precision: str, max_pixels: int, cut: str = POOL, view: str = PLAIN
) -> str:
    """A short name for everything a feature depends on besides the image, and for what is not decoded at all."""
    parts = [backbone, weights, image_size, precision, max_pixels, cut, view, DECODER_VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, order=True)
class Target:
    """One of the things the frozen part makes of a photo: its output at `cut`, of the photo's `view`."""

    cut: str
    view: str = PLAIN

    @property
    def column(self) -> str:
        """Its name in a block."""
        return f"{self.cut}:{self.view}"


class FrozenPart:
    """Runs the frozen network over decoded photos; callable, so that Ray can run it in an actor as well.

    Args:
        model: what `build_backbone` returns, or a function without arguments that makes it.
        backbone: its name.
        image_size: height and width of the photos, in pixels.
        targets: what to make of each photo.
    """

    def __init__(self, model: Any, backbone: str, image_size: int, targets: Sequence[Target]) -> None:
        import keras
        import tensorflow as tf

        self.model = model if isinstance(model, keras.Model) else model()
        self.image_size = image_size
        self.targets = tuple(targets)
        parts = {
            view: front(self.model, backbone, [target.cut for target in targets if target.view == view])
            for view in {target.view: None for target in targets}
        }

        def forward(pixels: Any) -> Any:
            outputs = {
                view: part(tf.reverse(pixels, [2]) if view == FLIP else pixels, training=False)
                for view, part in parts.items()
            }
            return [outputs[target.view][target.cut] for target in targets]

        shape = (BATCH, image_size, image_size, 3)
        # One fixed shape: traced once, and a photo's numbers do not depend on how many travel with it.
        self._forward = tf.function(forward, input_signature=[tf.TensorSpec(shape, tf.uint8)])

    def prepare(self) -> None:
        """Traces the network, so that the first batch does not have to wait for that."""
        self._forward.get_concrete_function()

    def features(self, photos: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """What the targets are for uint8 [n, size, size, 3], n at least 1: an array [n, width] each."""
        outputs = []
        for start in range(0, len(photos), BATCH):
            chunk = photos[start : start + BATCH]
            if len(chunk) < BATCH:
                chunk = np.concatenate([chunk, np.zeros((BATCH - len(chunk), *chunk.shape[1:]), np.uint8)])
            made = self._forward(chunk)
            outputs.append([rows.numpy()[: len(photos) - start].reshape(-1, _width(rows)) for rows in made])
        return [np.concatenate(rows) for rows in zip(*outputs, strict=True)]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Replaces the column `pixels` of a block by one for each target, null where there are no pixels."""
        pixels = block["pixels"].to_pylist()
        todo = [place for place, data in enumerate(pixels) if data is not None]
        shape = (self.image_size, self.image_size, 3)
        photos = [np.frombuffer(pixels[place], np.uint8).reshape(shape) for place in todo] or [
            np.zeros(shape, np.uint8)
        ]
        places = np.full(block.num_rows, -1)
        places[todo] = np.arange(len(todo))
        rows = pa.array(places, mask=places < 0)
        block = block.drop_columns("pixels")
        for target, values in zip(self.targets, self.features(np.stack(photos)), strict=True):
            block = block.append_column(target.column, to_arrow(values).take(rows))
        return block


def _width(rows: Any) -> int:
    return int(np.prod(rows.shape[1:]))


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

    def rows(self, digests: Sequence[bytes]) -> npt.NDArray[Any]:
        """Features of the given photos, in their order: [n, d], in the type in which they were added.

        Raises:
            DamagedFile: a part was changed after `open`, or does not hold a photo.
        """
        place = {digest: index for index, digest in enumerate(digests)}
        result: npt.NDArray[Any] | None = None
        missing = set(digests)
        for name, held in self._parts.items():
            wanted = [(row, place[digest]) for row, digest in enumerate(held) if digest in place]
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
        return result if len(place) == len(digests) else result[[place[digest] for digest in digests]]

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
