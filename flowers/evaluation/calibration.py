"""Calibration: whether a score of 0.9 is right nine times of ten, and the one number that helps where it is not.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): the expected calibration error over bins of equal
width, and temperature scaling, which divides all logits by one number and so changes no prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from flowers.evaluation.metrics import EPSILON

BINS = 15
"""Bins of equal width over 0..1; the edge between two belongs to the lower one."""

# Temperatures that are looked among. Photos that all are right would ask for 0.
_LOWEST, _HIGHEST = 0.05, 20.0


class Bin(BaseModel, frozen=True):
    """Photos whose highest score lies in a range.

    Attributes:
        low: its lower limit, not in it.
        high: its upper limit, in it.
        n: photos.
        score: their mean score; None without photos.
        accuracy: share of them that is right; None without photos.
    """

    low: float
    high: float
    n: int
    score: float | None
    accuracy: float | None


def reliability(score: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> list[Bin]:
    """Score against accuracy, bin by bin.

    Args:
        score: float [n], the highest probability of each photo.
        right: bool [n].
        bins: how many.
    """
    scores, hits = np.asarray(score, np.float64), np.asarray(right, np.bool_)
    at = np.clip(np.ceil(scores * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(at, minlength=bins)
    sums, rights = np.bincount(at, scores, bins), np.bincount(at, hits, bins)
    return [
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            n=int(n[index]),
            score=float(sums[index] / n[index]) if n[index] else None,
            accuracy=float(rights[index] / n[index]) if n[index] else None,
        )
        for index in range(bins)
    ]


def expected_error(bins: Sequence[Bin]) -> float | None:
    """The expected calibration error: the mean of |accuracy - score| over photos; None without any."""
    n = sum(one.n for one in bins)
    gaps = (one.n * abs(one.accuracy - one.score) for one in bins if one.accuracy is not None and one.score is not None)
    return sum(gaps) / n if n else None


def tempered(probabilities: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities float64 [n, K] as if the logits had been divided by `temperature`."""
    logits = np.log(np.clip(np.asarray(probabilities, np.float64), EPSILON, 1.0)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature of the lowest log-loss, between 0.05 and 20.

    The log-loss is convex in 1 / temperature, so its slope has one zero at most, which is found by halving.

    Args:
        probabilities: float [n, K], n at least 1.
        labels: int [n], true class indices.
    """
    logits = np.log(np.clip(np.asarray(probabilities, np.float64), EPSILON, 1.0))
    true = np.asarray(labels)
    own = logits[np.arange(len(true)), true].mean()

    def slope(inverse: float) -> float:
        return float((tempered(probabilities, 1 / inverse) * logits).sum(axis=1).mean() - own)

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    if slope(low) >= 0:
        return _HIGHEST
    if slope(high) <= 0:
        return _LOWEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5
