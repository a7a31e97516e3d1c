"""The feature spec: which output of the network, of which view of a photo, and all that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from flowers.data import near_duplicates
from flowers.data.images import DECODER_VERSION
from flowers.features.parts import FORMAT
from flowers.features.views import PLAIN

BATCH = 32  # photos that go through the network at once


@dataclass(frozen=True, order=True, kw_only=True)
class FeatureSpec:
    """A feature of a photo: the output of the frozen network at a cut.

    Attributes:
        cut: where the output is taken (`flowers.model.registry.cut_of`).
        view: what the network is shown of the photo (`flowers.features.views.seen`).
        backbone: name of the network.
        weights: key of its weights (`flowers.model.weights.weights_key`).
        image_size: height and width of the input, in pixels.
        precision: "float32" or "bfloat16".
        engine: that computes it (`flowers.inference.engine.ENGINES`): others round otherwise.
        max_pixels: larger photos have no features.
    """

    cut: str
    view: str = PLAIN
    backbone: str
    weights: str
    image_size: int
    precision: str
    engine: str
    max_pixels: int

    @property
    def column(self) -> str:
        """Its name in a block."""
        return f"{self.cut}:{self.view}"

    @property
    def key(self) -> str:
        """A short name for everything a feature depends on besides the photo; the name of its cache."""
        parts = [self.backbone, self.weights, self.image_size, self.precision, self.engine, self.max_pixels]
        parts += [self.cut, self.view, DECODER_VERSION, FORMAT]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def hashes_key(image_size: int) -> str:
    """The name of the cache of perceptual hashes, which depend on the decoded photo alone."""
    return f"{near_duplicates.VERSION}-{DECODER_VERSION}-{image_size}-{FORMAT}"
