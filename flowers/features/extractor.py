"""The feature extractor: the frozen part of the network, run once a photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FeatureSpec
from flowers.features.views import seen
from flowers.model.registry import PIXELS, POOL


class FeatureExtractor:
    """Runs the frozen network over decoded photos.

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
            shown = seen(photos, view)
            made[view, PIXELS] = shown
            if self._engine is not None:
                made |= {(view, cut): rows for cut, rows in zip(self._computed, self._engine(shown), strict=True)}
        return [_rows(made[spec.view, spec.cut], spec) for spec in self.specs]


def cuts_of(specs: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """The cuts of some specs, each once."""
    return tuple({spec.cut: None for spec in specs})


def _rows(output: npt.NDArray[Any], spec: FeatureSpec) -> npt.NDArray[Any]:
    """An output as it is cached: [n, width], the head's input in float32, others in the precision of the network."""
    rows = output.reshape(len(output), -1)
    if spec.cut in (PIXELS, POOL) or spec.precision == "float32":
        return rows
    return rows.astype(ml_dtypes.bfloat16, copy=False)
