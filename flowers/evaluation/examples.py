"""Examples: photos with what a bundle said of them, and small pictures of them for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field

from flowers.data import decoding, reading
from flowers.errors import BadImage

THUMBNAIL = 160  # pixels a side
TOP = 3  # scores that are named

# The colour of what speaks for an answer, also on the server's page.
_HEAT = np.array([255, 120, 0], np.float32)


class ClassScore(BaseModel, frozen=True):
    """The probability of a class."""

    label: str
    score: float


class Example(BaseModel, frozen=True):
    """A photo and what the bundle said of it.

    Attributes:
        path: of the photo, from the folder where the photos were listed.
        label: its class.
        predicted: the class of the highest score.
        score: that score.
        label_score: the score of its class; None in reports of the first versions.
        top: the highest scores, at most three.
        thumbnail: a small picture as a data URI, for the page; it is not in the JSON.
        heat: the same with what spoke for `predicted` in colour; empty where it is not shown.
    """

    path: str
    label: str
    predicted: str
    score: float
    label_score: float | None = None
    top: list[ClassScore]
    thumbnail: str = Field(default="", exclude=True, repr=False)
    heat: str = Field(default="", exclude=True, repr=False)

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.predicted == self.label


def example(
    path: str, label: int, classes: Sequence[str], probabilities: npt.NDArray[np.float32], thumbnail: str, heat: str
) -> Example:
    """What is shown of a photo.

    Args:
        path: as it is named.
        label: index of its class.
        classes: names of the K classes.
        probabilities: float32 [K].
        thumbnail: a data URI, or empty.
        heat: the same.
    """
    top = [
        ClassScore(label=classes[at], score=float(probabilities[at]))
        for at in np.argsort(-probabilities, kind="stable")[:TOP]
    ]
    # The label that is shown is the argmax: ML.NET's F# sample shows the true one by mistake.
    return Example(
        path=path,
        label=classes[label],
        predicted=top[0].label,
        score=top[0].score,
        label_score=float(probabilities[label]),
        top=top,
        thumbnail=thumbnail,
        heat=heat,
    )


def thumbnail_of(path: str, max_pixels: int, size: int = THUMBNAIL) -> str:
    """The thumbnail of a file, `size` pixels a side; empty if it is no usable photo."""
    data = reading.read_bytes(path)
    try:
        if isinstance(data, BadImage):
            return ""
        return thumbnail(decoding.decode(data, size, max_pixels=max_pixels), size)
    except BadImage:
        return ""


def thumbnail(pixels: npt.NDArray[np.uint8], size: int = THUMBNAIL) -> str:
    """A small JPEG of uint8 [H, W, 3] pixels as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def heated(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A photo in grey, with what speaks for the answer in orange, the strongest place the most.

    Args:
        pixels: uint8 [H, W, 3].
        heat: float32 [h, w], 0 is neutral (`flowers.predictor.Prediction.heat`).

    Returns:
        uint8 [H, W, 3].
    """
    height, width, _ = pixels.shape
    small = Image.fromarray(np.maximum(heat, 0).astype(np.float32) / max(float(heat.max()), 1e-12))
    share = 0.75 * np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))[:, :, None]
    grey = pixels.mean(axis=2, keepdims=True)
    return np.asarray(grey * (1 - share) + _HEAT * share).astype(np.uint8)
