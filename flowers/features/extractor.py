"""The feature extractor: the frozen part of the network, run once a photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from flowers.features.cache import to_arrow
from flowers.features.spec import BATCH, FLIP, FeatureSpec
from flowers.model import cuts


class FeatureExtractor:
    """Runs the frozen network over decoded photos; callable, so that Ray can run it in an actor as well.

    Args:
        model: what `build_backbone` returns.
        specs: what to make of each photo; all of one backbone and image size.
    """

    def __init__(self, model: Any, specs: Sequence[FeatureSpec]) -> None:
        self.model = model
        self.specs, self.image_size = tuple(specs), specs[0].image_size
        parts = {
            view: cuts.below(self.model, specs[0].backbone, [spec.cut for spec in specs if spec.view == view])
            for view in {spec.view: None for spec in specs}
        }

        def forward(pixels: Any) -> Any:
            outputs = {
                view: part(tf.reverse(pixels, [2]) if view == FLIP else pixels, training=False)
                for view, part in parts.items()
            }
            return [outputs[spec.view][spec.cut] for spec in specs]

        shape = (BATCH, self.image_size, self.image_size, 3)
        # One fixed shape: traced once, and a photo's numbers do not depend on how many travel with it.
        self._forward = tf.function(forward, input_signature=[tf.TensorSpec(shape, tf.uint8)])

    def prepare(self) -> None:
        """Traces the network, so that the first batch does not have to wait for that."""
        self._forward.get_concrete_function()

    def features(self, photos: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """What the specs are for uint8 [n, size, size, 3], n at least 1: an array [n, width] each."""
        outputs = []
        for start in range(0, len(photos), BATCH):
            chunk = photos[start : start + BATCH]
            if len(chunk) < BATCH:
                chunk = np.concatenate([chunk, np.zeros((BATCH - len(chunk), *chunk.shape[1:]), np.uint8)])
            made = self._forward(chunk)
            outputs.append([rows.numpy()[: len(photos) - start].reshape(-1, _width(rows)) for rows in made])
        return [np.concatenate(rows) for rows in zip(*outputs, strict=True)]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Replaces the column `pixels` of a block by one for each spec, null where there are no pixels."""
        pixels = block["pixels"].to_pylist()
        todo = [index for index, data in enumerate(pixels) if data is not None]
        shape = (self.image_size, self.image_size, 3)
        photos = [np.frombuffer(pixels[index], np.uint8).reshape(shape) for index in todo] or [
            np.zeros(shape, np.uint8)
        ]
        indices = np.full(block.num_rows, -1)
        indices[todo] = np.arange(len(todo))
        rows = pa.array(indices, mask=indices < 0)
        block = block.drop_columns("pixels")
        for spec, values in zip(self.specs, self.features(np.stack(photos)), strict=True):
            block = block.append_column(spec.column, to_arrow(values).take(rows))
        return block


def _width(rows: Any) -> int:
    return int(np.prod(rows.shape[1:]))
