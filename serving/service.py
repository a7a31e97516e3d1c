"""The service behind all protocols: what it is asked, what it answers, and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flowers.predictor import Prediction


@dataclass(frozen=True, kw_only=True)
class Answer(Prediction):
    """What a version of the model says of one photo.

    Attributes:
        queue_ms: time from the decoded photo to the start of its batch.
        decode_ms: time that decoding took, 0 for pixels.
        infer_ms: time that its batch took in the network.
    """

    queue_ms: float
    decode_ms: float
    infer_ms: float


@dataclass(frozen=True)
class Refusal:
    """Why one photo has no answer; the others of its request have theirs.

    Attributes:
        code: reason code of the decoder, e.g. "truncated" (`flowers.data.ledger`).
        detail: one line for a person.
    """

    code: str
    detail: str


@dataclass(frozen=True)
class ModelDescription:
    """A model that answers.

    Attributes:
        name: what it is called in URLs, "flowers".
        version: its number.
        versions: all numbers that could be served, ascending.
        classes: names of the K outputs, in order.
        image_size: height and width of the input, in pixels.
        manifest: the bundle's manifest.
        last_reload_error: one line on the newest version that could not be loaded; None if the last attempt succeeded.
        keeps_photos: whether some photos are kept.
        unknown: share of photos of the classes that may be taken for none of them; None if all get a label.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    classes: tuple[str, ...]
    image_size: int
    manifest: dict[str, Any]
    last_reload_error: str | None
    keeps_photos: bool = False
    unknown: float | None = None


class ServingError(Exception):
    """Base of what a whole request is refused for; each protocol has its own shape for it.

    Attributes:
        status: the HTTP status.
        code: one word for programs.
        detail: one line for a person: what was received, what is required.
    """

    status, code = 500, "internal"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(ServingError):
    """The request is malformed."""

    status, code = 400, "bad_request"


class UnknownVersion(ServingError):
    """The version asked for is not the one that is loaded."""

    status, code = 404, "unknown_version"


class TooLarge(ServingError):
    """More bytes or more items than a request may have."""

    status, code = 413, "too_large"


class Overloaded(ServingError):
    """More is waiting than will be answered in time: try again after `RETRY_AFTER_S`."""

    status, code = 503, "overloaded"


RETRY_AFTER_S = 1


class Service(Protocol):
    """What a protocol needs of the replica that it is spoken in."""

    max_items: int

    async def classify(
        self, photos: Sequence[bytes], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer | Refusal]]:
        """The model that answered, and one answer for each photo, in order.

        Args:
            photos: bytes of image files, 1 to `max_items`.
            version: the model's version; None takes the one that is loaded.

        Raises:
            ServingError: the whole request is refused.
        """

    async def classify_pixels(
        self, pixels: npt.NDArray[np.uint8], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer]]:
        """The same for photos that are decoded already: uint8 [n, image_size, image_size, 3], RGB."""

    def describe(self) -> ModelDescription:
        """The model that answers now."""

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and warm."""
