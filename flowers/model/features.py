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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.data.images import DECODER_VERSION
from flowers.errors import DamagedFile

BATCH = 32
PART_ROWS = 1024
IN_MEMORY_BYTES = 1 << 30


def cache_key(
    *, backbone: str, weights: str, image_size: int, precision: str, max_pixels: int, cut: str = "pool"
) -> str:
    """A short name for everything a feature depends on besides the image, and for what is not decoded at all."""
    parts = [backbone, weights, image_size, precision, max_pixels, cut, DECODER_VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class FrozenPart:
    """Runs the frozen network over decoded photos; callable, so that Ray can run it in an actor as well.

    Args:
        model: what `build_backbone` returns, or a function without arguments that makes it.
        image_size: height and width of the photos, in pixels.
    """

    def __init__(self, model: Any, image_size: int) -> None:
        import keras
        import tensorflow as tf

        self.model = model if isinstance(model, keras.Model) else model()
        self.image_size = image_size
        shape = (BATCH, image_size, image_size, 3)
        # One fixed shape: traced once, and a photo's numbers do not depend on how many travel with it.
        self._forward = tf.function(
            lambda pixels: self.model(pixels, training=False), input_signature=[tf.TensorSpec(shape, tf.uint8)]
        )

    def prepare(self) -> None:
        """Traces the network, so that the first batch does not have to wait for that."""
        self._forward.get_concrete_function()

    def features(self, photos: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of uint8 [n, size, size, 3]: float32 [n, d]."""
        outputs = []
        for start in range(0, len(photos), BATCH):
            chunk = photos[start : start + BATCH]
            if len(chunk) < BATCH:
                chunk = np.concatenate([chunk, np.zeros((BATCH - len(chunk), *chunk.shape[1:]), np.uint8)])
            outputs.append(self._forward(chunk).numpy()[: len(photos) - start])
        return np.concatenate(outputs) if outputs else np.zeros((0, self.model.output_shape[-1]), np.float32)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Replaces the column `pixels` of a block by `features` (float32 bytes, null where there are no pixels)."""
        index = block.schema.get_field_index("pixels")
        pixels = block["pixels"].to_pylist()
        todo = [place for place, data in enumerate(pixels) if data is not None]
        values: list[bytes | None] = [None] * block.num_rows
        if todo:
            shape = (self.image_size, self.image_size, 3)
            photos = np.stack([np.frombuffer(pixels[place], np.uint8).reshape(shape) for place in todo])
            for place, row in zip(todo, self.features(photos), strict=True):
                values[place] = row.tobytes()
        return block.set_column(index, "features", pa.array(values, pa.large_binary()))


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
    _pending: dict[bytes, npt.NDArray[np.float32]] = field(default_factory=dict)

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

    def add(self, digests: Sequence[bytes], features: npt.NDArray[np.float32]) -> None:
        """Adds float32 [n, d] features of n photos; written out every `PART_ROWS` photos."""
        self._pending.update(zip(digests, features, strict=True))
        if len(self._pending) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one part."""
        if not self._pending:
            return
        rows = np.stack(list(self._pending.values()))
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        digests = pa.array(list(self._pending), pa.binary(32))
        sink = pa.BufferOutputStream()
        # Floats do not compress; without a dictionary Parquet writes them as fast as they are copied.
        table = pa.table({"sha256": digests, "features": values})
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        data = sink.getvalue().to_pybytes()
        name = f"part-{storage.sha256(data)}.parquet"
        storage.write(storage.join(self.uri, name), data)
        self._parts[name] = list(self._pending)
        self._pending.clear()

    def rows(self, digests: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Features of the given photos, in their order: float32 [n, d].

        Raises:
            DamagedFile: a part was changed after `open`, or does not hold a photo.
        """
        place = {digest: index for index, digest in enumerate(digests)}
        result: npt.NDArray[np.float32] | None = None
        missing = set(digests)
        for name, held in self._parts.items():
            wanted = [(row, place[digest]) for row, digest in enumerate(held) if digest in place]
            if not wanted:
                continue
            values = self._read(name, ["features"])["features"].combine_chunks()
            matrix = values.flatten().to_numpy().reshape(-1, values.type.list_size)
            if result is None:
                result = _matrix(len(digests), matrix.shape[1])
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


def _matrix(rows: int, width: int) -> npt.NDArray[np.float32]:
    """An empty float32 matrix: in memory if small, else in an unlinked file the system pages in and out."""
    if rows * width * 4 <= IN_MEMORY_BYTES:
        return np.empty((rows, width), np.float32)
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR")) as file:
        return np.memmap(file.name, np.float32, "w+", shape=(rows, width))
