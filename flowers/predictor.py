"""Photo bytes to predictions: the same code for the test set, bulk jobs and the server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flowers.bundle import Bundle
from flowers.data import decoding, images
from flowers.errors import BadImage
from flowers.inference.engine import batch_sizes, usable_cpus
from flowers.typicality import none_of_these

BATCH = 32
Floats = npt.NDArray[np.float32]


class Outputs(NamedTuple):
    """What the network makes of n photos.

    Attributes:
        probabilities: float32 [n, K], in the order of the bundle's classes.
        heat: float32 [n, h, w], what each part of a photo's middle square adds to the logit of the likeliest class; 0
            is neutral.
        typicality: float32 [n], how usual a photo is among those of the classes (`flowers.typicality`); NaN if nobody
            asked.
    """

    probabilities: Floats
    heat: Floats
    typicality: Floats


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
        label: the class of the highest probability; None if the photo is none of the classes.
        score: that probability.
        probabilities: float32 [K], in the order of the bundle's classes.
        heat: float32 [h, w], of `Outputs`.
        typicality: of `Outputs`; None if nobody asked.
        reason: why there is no label; None if there is one.
    """

    label: str | None
    score: float
    probabilities: Floats
    heat: Floats
    typicality: float | None = None
    reason: str | None = None


class Predictor:
    """Runs a bundle on photos.

    Args:
        bundle: what `flowers.bundle.load_bundle` returns.
        max_pixels: photos with more are refused before decoding.
        batch: photos that go through the network at once, at most.
        engine: that runs the network (`flowers.inference.engine.ENGINES`).
        threads: that the engine computes with; None takes all CPUs.
        features: whether it can `describe` photos, also by a bundle of an earlier version.
        unknown: share of photos of the classes that may be taken for none of them; None asks of no photo whether it is.

    Raises:
        InputError: the network cannot be loaded, or the bundle cannot tell photos of other things.
        DamagedFile: a file of the bundle is not what was saved.
    """

    def __init__(
        self,
        bundle: Bundle,
        max_pixels: int = images.MAX_PIXELS,
        batch: int = BATCH,
        engine: str = "openvino",
        threads: int | None = None,
        features: bool = False,
        unknown: float | None = None,
    ) -> None:
        self.bundle, self.features, self.unknown = bundle, features, unknown
        self.max_pixels = max_pixels
        threads = threads or usable_cpus()
        self._typicality = None if unknown is None else bundle.typicality(unknown)
        self.engine = bundle.engine(
            engine, sizes=batch_sizes(engine, batch, threads), threads=threads, features=features
        )

    @property
    def largest_batch(self) -> int:
        """Photos that the engine computes at once; more of them are no faster together."""
        return self.engine.sizes[-1]

    def warm(self) -> float:
        """Runs a batch of each size, so that no photo has to wait for it; returns seconds a photo, in the largest."""
        return self.engine.warm()

    def check(self) -> None:
        """Compares answers with those that were stored in the bundle (`flowers.bundle.Bundle.check`)."""
        self.bundle.check(self.engine)

    def decode(self, photo: bytes) -> npt.NDArray[np.uint8]:
        """The pixels that the network sees of a photo: uint8 [size, size, 3].

        Raises:
            BadImage: it is no usable photo.
        """
        return decoding.decode(photo, self.bundle.image_size, max_pixels=self.max_pixels)

    def predict(self, photos: Sequence[bytes]) -> list[Prediction | BadImage]:
        """One answer for each photo, in order; a bad photo gets its `BadImage` and disturbs no other."""
        answers: list[Prediction | BadImage | None] = [None] * len(photos)
        decoded, indices = [], []
        for index, data in enumerate(photos):
            try:
                decoded.append(self.decode(data))
                indices.append(index)
            except BadImage as error:
                answers[index] = error
        if decoded:
            for index, *row in zip(indices, *self.run(np.stack(decoded)), strict=True):
                answers[index] = self.prediction(*row)
        return [answer for answer in answers if answer is not None]

    def prediction(self, probabilities: Floats, heat: Floats, typicality: float = math.nan) -> Prediction:
        """Names the class of the highest of float32 [K] probabilities, if the photo is of one; see `Outputs`."""
        best = int(np.argmax(probabilities))
        label, score = self.bundle.classes[best], float(probabilities[best])
        if self.unknown is None:
            return Prediction(label, score, probabilities, heat)
        reason = none_of_these(float(typicality), self.unknown)
        return Prediction(None if reason else label, score, probabilities, heat, float(typicality), reason)

    def run(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """What the network makes of uint8 [n, size, size, 3] photos, n at least 1."""
        probabilities, heat, *features = self.engine(pixels)
        if self._typicality is None:
            return Outputs(probabilities, heat, np.full(len(pixels), np.nan, np.float32))
        return Outputs(probabilities, heat, self._typicality.of(features[0], probabilities))

    def describe(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Probabilities float32 [n, K] and features float32 [n, d] of uint8 [n, size, size, 3] photos, n at least 1."""
        probabilities, _, features = self.engine(pixels)
        return probabilities, features
