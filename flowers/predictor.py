"""Photo bytes to predictions: the same code for the test set, bulk jobs and the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowers.bundle import Bundle
from flowers.data import decoding, images
from flowers.errors import BadImage
from flowers.inference.engine import batch_sizes, usable_cpus

BATCH = 32
Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
        label: the class of the highest probability.
        score: that probability.
        probabilities: float32 [K], in the order of the bundle's classes.
        heat: float32 [h, w], what each part of the photo's middle square adds to the logit of `label`; 0 is neutral.
    """

    label: str
    score: float
    probabilities: npt.NDArray[np.float32]
    heat: npt.NDArray[np.float32]


class Predictor:
    """Runs a bundle on photos.

    Args:
        bundle: what `flowers.bundle.load_bundle` returns.
        max_pixels: photos with more are refused before decoding.
        batch: photos that go through the network at once, at most.
        engine: that runs the network (`flowers.inference.engine.ENGINES`).
        threads: that the engine computes with; None takes all CPUs.
        features: whether it describes photos (`describe`), instead of explaining what it says of them.

    Raises:
        InputError: the network cannot be loaded.
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
    ) -> None:
        self.bundle = bundle
        self.features = features
        self.max_pixels = max_pixels
        threads = threads or usable_cpus()
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

    def prediction(self, probabilities: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> Prediction:
        """Names the class of the highest of float32 [K] probabilities."""
        best = int(np.argmax(probabilities))
        return Prediction(self.bundle.classes[best], float(probabilities[best]), probabilities, heat)

    def run(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Probabilities float32 [n, K] and heat float32 [n, h, w] of uint8 [n, size, size, 3] photos, n at least 1."""
        probabilities, heat = self.engine(pixels)
        return probabilities, heat

    def describe(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Probabilities float32 [n, K] and features float32 [n, d] of uint8 [n, size, size, 3] photos, n at least 1."""
        outputs = self.engine(pixels)
        return outputs[0], outputs[-1]
