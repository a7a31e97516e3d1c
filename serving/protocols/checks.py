"""Checks that the protocols share: the model that a URL names, how many items are taken, refused photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.protocols.body import shown
from serving.service import (
    Answer,
    BadRequest,
    ModelDescription,
    Refusal,
    Service,
    ServingError,
    TooLarge,
    UnknownVersion,
)

_NO_PHOTO = ("unsupported_format", "not_a_photo")


class UnknownModel(ServingError):
    """The URL names a model that is not served here."""

    status, code = 404, "unknown_model"


class PhotoRefused(ServingError):
    """The only photo of a request has no answer; the code is that of the decoder."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.status = 415 if refusal.code in _NO_PHOTO else 400
        self.code = refusal.code


def find_model(service: Service, name: str, version: str | None = None) -> tuple[ModelDescription, int | None]:
    """The model that the parts of a URL name, and the version to ask for; None if the URL names none.

    Raises:
        UnknownModel: it has another name.
        UnknownVersion: it is loaded in another version.
    """
    model = service.describe()
    if name != model.name:
        raise UnknownModel(f"there is no model {shown(name)} here, only {shown(model.name)}")
    if version is None:
        return model, None
    if version != str(model.version):
        raise UnknownVersion(f"version {shown(version)} is not loaded; the one that is: {model.version}")
    return model, model.version


def check_count(items: int, limit: int) -> None:
    """Raises TooLarge if there are more items than a request may have."""
    if items > limit:
        raise TooLarge(f"{shown(items)} items; a request may have at most {limit}")


def all_answered(answers: Sequence[Answer | Refusal], what: str) -> list[Answer]:
    """The answers of a request that one refused photo fails.

    Args:
        answers: of all of its photos, in order.
        what: what the protocol calls a photo.

    Raises:
        BadRequest: photos are refused; names the first and counts the others.
    """
    refused = [(index, answer) for index, answer in enumerate(answers) if isinstance(answer, Refusal)]
    if refused:
        index, first = refused[0]
        others = f" ({len(refused) - 1} more refused)" if len(refused) > 1 else ""
        raise BadRequest(f"{what} {index}: {first.code}: {first.detail}{others}")
    return [answer for answer in answers if isinstance(answer, Answer)]


def top_k(probabilities: npt.NDArray[np.float32], count: int) -> list[int]:
    """The places of the `count` highest probabilities, or of all if there are fewer, highest first."""
    order: list[int] = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return order
