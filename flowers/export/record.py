"""The record of an export, `export.json`: what it is, and how it did on photos in its own runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from flowers.inference.engine import Photos

# Scores that are closer are a tie, and either class may be the top one.
_TIE = 1e-3
# Batches of a network before it is another one's turn: threads of that one may still wait busily during the first.
_TURN = 5
Run = Callable[[Photos], npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float32]


class Agreement(BaseModel, frozen=True):
    """How answers of an export compare with those of its bundle on the same photos.

    Attributes:
        n: photos.
        top_class: part of them with the same top class, or another one of nearly the same score.
        largest_difference: between two scores.
    """

    n: int
    top_class: float
    largest_difference: float

    @classmethod
    def of(cls, found: Floats, expected: Floats) -> Agreement:
        """Compares probabilities float32 [n, K], n at least 1."""
        chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
        same = chosen >= expected.max(axis=1) - _TIE
        return cls(n=len(found), top_class=float(same.mean()), largest_difference=float(np.abs(found - expected).max()))


class Export(BaseModel, frozen=True):
    """An export.

    Attributes:
        created: when, ISO 8601.
        format: name of the format.
        quantize: "none", "float16" or "int8".
        layout: "plain", "triton" or "tensorflow-serving".
        network: path of the file or folder that holds the network, below the export.
        bundle: URI of the bundle it was made from.
        bundle_sha256: hash of that bundle's manifest, which holds those of its files.
        classes: names of the K outputs, in order.
        image_size: height and width of the input, in pixels.
        takes: inputs, in words.
        gives: outputs, in words.
        bytes: size of the network.
        sha256: hash of each of its files, by path.
        photos: on which it was tried, in words.
        agreement: with the bundle, on the same pixels.
        files_agreement: with the bundle, where the network decodes files itself; None where it does not.
        not_decoded: photos that it could not decode itself.
        calibration: photos by which int8 chose its scales, in words.
        images_per_s: photos a second in its runtime, on this machine, in batches of what the bundle computes at once.
        bundle_images_per_s: the same of the bundle in float32, on as many threads.
        runtime: package and version that ran it.
    """

    created: str
    format: str
    quantize: str
    layout: str
    network: str
    bundle: str
    bundle_sha256: str
    classes: list[str]
    image_size: int
    takes: str
    gives: str
    bytes: int
    sha256: dict[str, str]
    photos: str
    agreement: Agreement
    files_agreement: Agreement | None
    not_decoded: int
    calibration: str | None
    images_per_s: float
    bundle_images_per_s: float
    runtime: str


def side_by_side(
    runs: Sequence[Run], pixels: Photos, size: int, advance: Callable[[int], Any]
) -> tuple[list[Floats], list[float]]:
    """The answers of several networks to the same photos, and photos a second of each.

    They take turns of a few batches, and the median batch counts: whatever else the machine does then slows all alike.
    One after the other, the same network was anything from three quarters to nearly twice as fast as itself.

    Args:
        runs: the networks.
        pixels: uint8 [n, size, size, 3], n at least 1.
        size: photos in a batch.
        advance: called with the number of photos that a network has answered.
    """
    answers: list[list[Floats]] = [[] for _ in runs]
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(pixels[:size])  # what it prepares at first
    for turn in range(0, len(pixels), _TURN * size):
        for run, found, took in zip(runs, answers, seconds, strict=True):
            for start in range(turn, min(turn + _TURN * size, len(pixels)), size):
                batch, began = pixels[start : start + size], time.perf_counter()
                found.append(run(batch))
                took.append((time.perf_counter() - began) / len(batch))
                advance(len(batch))
    return [np.concatenate(found) for found in answers], [1 / float(np.median(took)) for took in seconds]
