"""Photo bytes to predictions: the same code for the test set, bulk jobs and the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowers.bundle import Bundle
from flowers.data import images
from flowers.errors import BadImage

SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
        label: the class of the highest probability.
        score: that probability.
        probabilities: float32 [K], in the order of the bundle's classes.
    """

    label: str
    score: float
    probabilities: npt.NDArray[np.float32]


class Predictor:
    """Runs a bundle on photos, in batches padded to a few fixed sizes.

    Args:
        bundle: what `flowers.bundle.load_bundle` returns.
        max_pixels: photos with more are refused before decoding.
    """

    def __init__(self, bundle: Bundle, max_pixels: int = images.MAX_PIXELS) -> None:
        import tensorflow as tf

        self.bundle = bundle
        self.max_pixels = max_pixels
        self._forward = tf.function(lambda pixels: bundle.model(pixels, training=False))

    def predict(self, photos: Sequence[bytes]) -> list[Prediction | BadImage]:
        """One answer for each photo, in order; a bad photo gets its `BadImage` and disturbs no other."""
        answers: list[Prediction | BadImage | None] = [None] * len(photos)
        decoded, places = [], []
        for place, data in enumerate(photos):
            try:
                decoded.append(images.decode(data, self.bundle.image_size, max_pixels=self.max_pixels))
                places.append(place)
            except BadImage as error:
                answers[place] = error
        if decoded:
            for place, row in zip(places, self.probabilities(np.stack(decoded)), strict=True):
                answers[place] = self.prediction(row)
        return [answer for answer in answers if answer is not None]

    def prediction(self, probabilities: npt.NDArray[np.float32]) -> Prediction:
        """Names the class of the highest of float32 [K] probabilities."""
        best = int(np.argmax(probabilities))
        return Prediction(self.bundle.classes[best], float(probabilities[best]), probabilities)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities of uint8 [n, size, size, 3] photos: float32 [n, K]."""
        import tensorflow as tf

        outputs = []
        for start in range(0, len(pixels), SIZES[-1]):
            chunk = pixels[start : start + SIZES[-1]]
            # After a full batch its remainder is filled up as well: a second shape would be traced for nothing.
            size = SIZES[-1] if start else next(size for size in SIZES if size >= len(chunk))
            padded = np.zeros((size, *chunk.shape[1:]), np.uint8)
            padded[: len(chunk)] = chunk
            outputs.append(self._forward(tf.constant(padded)).numpy()[: len(chunk)])
        return np.concatenate(outputs) if outputs else np.zeros((0, len(self.bundle.classes)), np.float32)
