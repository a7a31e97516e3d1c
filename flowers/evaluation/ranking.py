"""What the order of scores is worth: the area under the ROC curve, and accuracy where unsure answers are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from flowers.evaluation.metrics import Z_95, Floats, Metric, metric_of, mover, proportion

SCORES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Scores from which on answers are taken, in the table of coverage."""


class Coverage(BaseModel, frozen=True):
    """What is left where answers of lower scores are not taken.

    Attributes:
        score: the lowest that is taken.
        coverage: share of photos with such scores.
        accuracy: share of these that is right.
    """

    score: float
    coverage: Metric
    accuracy: Metric


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> Metric:
    """Area under the ROC curve: how often a positive has a higher score than a negative, equal ones counting half.

    The interval is that of DeLong et al. (Biometrics 44, 1988); there is none where the two do not overlap at all.

    Args:
        scores: float [n].
        positive: bool [n].
    """
    values, yes = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    n, ours, others = len(values), int(yes.sum()), int((~yes).sum())
    if not ours or not others:
        return metric_of(None, n, None, None)
    ranks = _midranks(values)
    above = (ranks[yes] - _midranks(values[yes])) / others  # of each positive: share of negatives below it
    below = 1 - (ranks[~yes] - _midranks(values[~yes])) / ours  # of each negative: share of positives above it
    area = float(above.mean())
    if min(ours, others) < 2 or not (variance := above.var(ddof=1) / ours + below.var(ddof=1) / others):
        return metric_of(area, n, None, None)
    half = Z_95 * float(np.sqrt(variance))
    return metric_of(area, n, max(0.0, area - half), min(1.0, area + half))


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[at]


def one_vs_rest(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], classes: Sequence[str]
) -> tuple[dict[str, Metric], Metric]:
    """The AUC of each class against all others, and their plain mean over classes that have one.

    The interval of the mean takes the areas for independent (`flowers.evaluation.metrics.mover`): an approximation.
    """
    found = {name: auc(probabilities[:, at], labels == at) for at, name in enumerate(classes)}
    known = [one for one in found.values() if one.value is not None]
    value, low, high = (
        (
            np.array([part for part in parts if part is not None], np.float64)
            for parts in zip(*((one.value, one.low, one.high) for one in known), strict=True)
        )
        if known
        else (np.empty(0),) * 3
    )
    if not len(value) or len(low) < len(value):
        return found, metric_of(float(value.mean()) if len(value) else None, len(labels), None, None)
    return found, mover(value, low, high, len(labels))


def coverage(
    score: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], scores: Sequence[float] = SCORES
) -> list[Coverage]:
    """Coverage and accuracy from each of some scores on.

    Args:
        score: the highest probability of each photo [n].
        right: [n].
        scores: the lowest that are taken.
    """
    rows = []
    for least in scores:
        taken = score >= least
        count = int(taken.sum())
        rows.append(
            Coverage(
                score=least,
                coverage=proportion(count, len(score)),
                accuracy=proportion(int((taken & right).sum()), count),
            )
        )
    return rows


def coverage_curve(score: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Coverage and accuracy as more and more photos are taken, the surest first; at most 200 points.

    Photos of equal scores are taken together.
    """
    order = np.argsort(-score, kind="stable")
    hits, n = np.cumsum(right[order]), np.arange(1, len(score) + 1)
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, [True] * bool(len(score))))
    chosen = ends[np.unique(np.linspace(0, len(ends) - 1, 200).round().astype(int))] if len(ends) else ends
    return [(float(n[at] / len(score)), float(hits[at] / n[at])) for at in chosen]
