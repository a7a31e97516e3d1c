"""The feature extractor: the frozen part of the network, run once a photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers.features.cache import to_arrow
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FLIP, FeatureSpec
from flowers.model.registry import PIXELS, POOL


class FeatureExtractor:
    """Runs the frozen network over decoded photos; callable, so that Ray can run it in an actor as well.

    Args:
        network: prepared for the cuts of the specs.
        specs: what to make of each photo; all of this network.
        threads: that the network computes with.
    """

    def __init__(self, network: FrozenNetwork, specs: Sequence[FeatureSpec], threads: int) -> None:
        self.specs, self.image_size = tuple(specs), network.image_size
        cuts = cuts_of(specs)
        self._computed = [cut for cut in cuts if cut != PIXELS]
        self._engine = network.engine(cuts, threads)

    def features(self, photos: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """What the specs are for uint8 [n, size, size, 3], n at least 1: an array [n, width] each."""
        made: dict[tuple[str, str], npt.NDArray[Any]] = {}
        for view in {spec.view: None for spec in self.specs}:
            seen = np.ascontiguousarray(photos[:, :, ::-1]) if view == FLIP else photos
            made[view, PIXELS] = seen
            if self._engine is not None:
                made |= {(view, cut): rows for cut, rows in zip(self._computed, self._engine(seen), strict=True)}
        return [_rows(made[spec.view, spec.cut], spec) for spec in self.specs]

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


def cuts_of(specs: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """The cuts of some specs, each once."""
    return tuple({spec.cut: None for spec in specs})


def _rows(output: npt.NDArray[Any], spec: FeatureSpec) -> npt.NDArray[Any]:
    """An output as it is cached: [n, width], the head's input in float32, others in the precision of the network."""
    rows = output.reshape(len(output), -1)
    if spec.cut in (PIXELS, POOL) or spec.precision == "float32":
        return rows
    return rows.astype(ml_dtypes.bfloat16, copy=False)
