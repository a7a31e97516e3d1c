"""Exact classification metrics from counts that add.

Each worker counts its own rows (`Counts.of`), the counts are summed in any order, and `summarize` divides
once at the end. The result is therefore the same however the rows were spread over workers and batches,
which is not true of averaged per-batch metrics.

Definitions follow ML.NET's `MulticlassClassificationMetrics` (MicroAccuracy, MacroAccuracy, LogLoss,
LogLossReduction, TopKAccuracy, PerClassLogLoss, ConfusionMatrix). Every metric carries its number of rows
and a 95 % interval, so that 23 right of 27 is not mistaken for a precise 85.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

EPSILON = 1e-15
"""Smallest probability taken into a logarithm; the value ML.NET's evaluator uses."""

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: two-sided 95 % intervals."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Sums over rows from which every metric follows; two of them add.

    Attributes:
        confusion: int64[K, K], rows by true class (first axis) and predicted class (second axis).
        rank_counts: int64[K], rows whose true class had rank 0, 1, .. K-1 among the scores. Among equal
            scores the lower class index ranks first, so rank 0 is what `np.argmax` picks.
        log_loss: float64[K], sum of -ln(p of the true class) by true class, in nats.
        log_loss_sq: float64[K], sum of the squares of the same.
    """

    confusion: Ints
    rank_counts: Ints
    log_loss: Floats
    log_loss_sq: Floats

    @classmethod
    def zero(cls, k: int) -> Counts:
        """The neutral element of the addition, for K = `k` classes."""
        return cls(np.zeros((k, k), np.int64), np.zeros(k, np.int64), np.zeros(k), np.zeros(k))

    @classmethod
    def of(cls, labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Counts:
        """Count one batch.

        Args:
            labels: int[n], true class indices in 0..K-1.
            probabilities: float[n, K], one row of class probabilities per image.

        Raises:
            ValueError: the shapes do not fit, a label is no class, or a row is not made of probabilities
                (NaN, or outside 0..1 by more than half-precision rounding); the text names the row.
        """
        true, p = np.asarray(labels), np.asarray(probabilities)
        if p.ndim != 2 or p.shape[1] < 1 or true.shape != p.shape[:1]:
            raise ValueError(f"need labels [n] and probabilities [n, K], got {true.shape} and {p.shape}")
        n, k = p.shape
        if n == 0:
            return cls.zero(k)
        if not np.issubdtype(true.dtype, np.integer):
            raise ValueError(f"labels must be integers, got {true.dtype}")
        if len(bad := np.flatnonzero((true < 0) | (true >= k))):
            raise ValueError(f"row {bad[0]}: label {true[bad[0]]} is not one of {k} classes")
        p = p.astype(np.float64, copy=False)
        if len(bad := np.flatnonzero(np.isnan(p).any(axis=1))):
            raise ValueError(f"row {bad[0]}: a probability is NaN")
        if len(bad := np.flatnonzero(((p < -1e-2) | (p > 1 + 1e-2)).any(axis=1))):
            raise ValueError(f"row {bad[0]}: not probabilities (outside 0..1): were logits passed?")
        true = true.astype(np.int64, copy=False)
        own = p[np.arange(n), true][:, None]
        before = np.arange(k) < true[:, None]
        rank = (p > own).sum(axis=1) + ((p == own) & before).sum(axis=1)
        loss = -np.log(np.clip(own[:, 0], EPSILON, 1.0))
        return cls(
            np.bincount(true * k + p.argmax(axis=1), minlength=k * k).reshape(k, k).astype(np.int64),
            np.bincount(rank, minlength=k).astype(np.int64),
            np.bincount(true, weights=loss, minlength=k).astype(np.float64),
            np.bincount(true, weights=loss**2, minlength=k).astype(np.float64),
        )

    def __add__(self, other: Counts) -> Counts:
        if (k := len(self.log_loss)) != len(other.log_loss):
            raise ValueError(f"cannot add counts of {k} and {len(other.log_loss)} classes")
        return Counts(
            self.confusion + other.confusion,
            self.rank_counts + other.rank_counts,
            self.log_loss + other.log_loss,
            self.log_loss_sq + other.log_loss_sq,
        )

    @property
    def n(self) -> int:
        """Number of rows counted."""
        return int(self.confusion.sum())

    def to_vector(self) -> Floats:
        """All sums as float64[K * K + 3 K], for one all-reduce; counts below 2**53 are exact in it."""
        parts = [self.confusion.ravel(), self.rank_counts, self.log_loss, self.log_loss_sq]
        return np.concatenate(parts).astype(np.float64)

    @classmethod
    def from_vector(cls, v: npt.ArrayLike, k: int) -> Counts:
        """The inverse of `to_vector`, also of a sum of such vectors; float64[K * K + 3 K]."""
        vector = np.asarray(v, np.float64)
        if vector.shape != (k * k + 3 * k,):
            raise ValueError(f"need {k * k + 3 * k} numbers for {k} classes, got shape {vector.shape}")
        ints = np.rint(vector[: k * k + k]).astype(np.int64)
        return cls(ints[: k * k].reshape(k, k), ints[k * k :], vector[-2 * k : -k], vector[-k:])


class Metric(BaseModel, frozen=True):
    """A measured number and its 95 % interval; all but `n` are None where it is undefined, never NaN.

    Attributes:
        value: the metric.
        n: rows it was measured on.
        low: lower limit of the interval.
        high: upper limit.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None


class ClassSummary(BaseModel, frozen=True):
    """The metrics of one class; `n` is the number of its rows."""

    n: int
    precision: Metric
    recall: Metric
    f1: Metric
    log_loss: Metric


class ConfusedPair(BaseModel, frozen=True):
    """How often rows of class `true` were taken for class `predicted`."""

    true: str
    predicted: str
    count: int


class Summary(BaseModel, frozen=True):
    """The metrics of a set of rows.

    Attributes:
        n: rows.
        accuracy: share of rows that were right (ML.NET's MicroAccuracy).
        macro_accuracy: mean recall of the classes that occur (ML.NET's MacroAccuracy).
        macro_f1: mean F1 of the classes that occur or are predicted.
        log_loss: mean log-loss, in nats.
        log_loss_reduction: (H - log-loss) / H with H the entropy of the class frequencies (ML.NET's
            LogLossReduction, as a fraction of 1); undefined when only one class occurs.
        top_k: by k, share of rows whose class was among the k highest scores.
        per_class: metrics by class.
        classes: K class names in index order.
        confusion_matrix: K rows by true class, of K columns by predicted class.
        most_confused: the most frequent mistakes, at most ten.
    """

    n: int
    accuracy: Metric
    macro_accuracy: Metric
    macro_f1: Metric
    log_loss: Metric
    log_loss_reduction: Metric
    top_k: dict[int, Metric]
    per_class: dict[str, ClassSummary]
    classes: list[str]
    confusion_matrix: list[list[int]]
    most_confused: list[ConfusedPair]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return self.model_dump(mode="json")


def wilson(hits: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Floats, Floats]:
    """95 % score interval of proportions `hits` / `n`; needs n > 0.

    Wilson, "Probable inference, the law of succession, and statistical inference" (J. Am. Stat. Assoc. 22,
    1927), recommended without continuity correction by Newcombe, "Two-sided confidence intervals for the
    single proportion" (Statistics in Medicine 17, 1998), method 3:
    (2 n p + z^2 -+ z sqrt(z^2 + 4 n p q)) / (2 (n + z^2)).

    Returns:
        Lower and upper limits, float64, of the shape of the arguments.
    """
    x, m = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z2 = Z_95**2
    root = Z_95 * np.sqrt(z2 + 4 * x * (m - x) / m)
    low, high = (2 * x + z2 - root) / (2 * (m + z2)), (2 * x + z2 + root) / (2 * (m + z2))
    # Exactly 0 and 1 at the ends, where rounding leaves a few 1e-17.
    return np.where(x == 0, 0.0, low), np.where(x == m, 1.0, high)


def summarize(counts: Counts, classes: Sequence[str], top_k: int = 5) -> Summary:
    """Every metric with its number of rows and 95 % interval.

    The intervals of the macro metrics and of F1 are described at `mover` and `_f1`.

    Args:
        counts: the summed counts of K classes.
        classes: K class names in index order.
        top_k: largest k of `top_k`, which holds 2 .. min(top_k, K - 1).

    Raises:
        ValueError: the names are not K distinct ones.
    """
    matrix, n, k = counts.confusion, counts.n, len(counts.log_loss)
    if len(classes) != k or len(set(classes)) != k:
        raise ValueError(f"need {k} distinct class names, got {list(classes)}")
    support, predicted, hits = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    union = support + predicted - hits
    occurs, seen = support > 0, union > 0
    recall = hits[occurs] / support[occurs]
    jaccard = hits[seen] / union[seen], *wilson(hits[seen], union[seen])
    log_loss = _mean(counts.log_loss.sum(), counts.log_loss_sq.sum(), n)
    shares = support[occurs] / max(1, n)
    entropy = float(-(shares * np.log(shares)).sum())
    reduction = metric_of(None, n, None, None)
    if entropy > 0:
        reduction = _mapped(log_loss, lambda loss: (entropy - loss) / entropy)
    off = matrix - np.diag(hits)
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    confused = [(int(i) // k, int(i) % k) for i in order if off.flat[i]]
    return Summary(
        n=n,
        accuracy=proportion(int(hits.sum()), n),
        macro_accuracy=mover(recall, *wilson(hits[occurs], support[occurs]), n),
        macro_f1=mover(_f1(jaccard[0]), _f1(jaccard[1]), _f1(jaccard[2]), n),
        log_loss=log_loss,
        log_loss_reduction=reduction,
        top_k={i: proportion(int(counts.rank_counts[:i].sum()), n) for i in range(2, min(top_k, k - 1) + 1)},
        per_class={
            name: ClassSummary(
                n=int(support[i]),
                precision=proportion(hits[i], predicted[i]),
                recall=proportion(hits[i], support[i]),
                f1=_mapped(proportion(hits[i], union[i]), _f1),
                log_loss=_mean(counts.log_loss[i], counts.log_loss_sq[i], support[i]),
            )
            for i, name in enumerate(classes)
        },
        classes=list(classes),
        confusion_matrix=matrix.tolist(),
        most_confused=[ConfusedPair(true=classes[i], predicted=classes[j], count=int(off[i, j])) for i, j in confused],
    )


def metric_of(value: float | None, n: int, low: float | None, high: float | None) -> Metric:
    """A metric of plain numbers; rounding must not push the value out of its own interval."""
    if value is not None and low is not None and high is not None:
        low, high = float(min(low, value)), float(max(high, value))
    return Metric(value=None if value is None else float(value), n=int(n), low=low, high=high)


def _mapped(metric: Metric, f: Callable[[Any], Any]) -> Metric:
    """A metric through a monotone map, limits included (a falling map swaps them)."""
    value, low, high = (None if x is None else f(x) for x in (metric.value, metric.low, metric.high))
    if low is not None and low > high:
        low, high = high, low
    return metric_of(value, metric.n, low, high)


def _f1(jaccard: Any) -> Any:
    """F1 = 2 TP / (2 TP + FP + FN) as the monotone map 2 J / (1 + J) of J = TP / (TP + FP + FN).

    The Wilson limits of J, with its denominator taken as given, pass through the same map.
    """
    return 2 * jaccard / (1 + jaccard)


def proportion(hits: int, n: int) -> Metric:
    """`hits` of `n` with Wilson's interval."""
    if not n:
        return metric_of(None, 0, None, None)
    low, high = wilson(hits, n)
    return metric_of(hits / n, n, float(low), float(high))


def mover(values: Floats, low: Floats, high: Floats, n: int) -> Metric:
    """Plain mean of class values, float64[K], with the interval recovered from theirs (MOVER).

    Zou & Donner, "Construction of confidence limits about effect measures" (Statistics in Medicine 27,
    2008): mean - sqrt(sum((v_i - l_i)^2)) / K and mean + sqrt(sum((u_i - v_i)^2)) / K. It holds for
    independent estimates: recalls are (they share no rows); F1 values share errors, so there it is an
    approximation.
    """
    if not len(values):
        return metric_of(None, 0, None, None)
    mean, k = values.mean(), len(values)
    below, above = np.sqrt(((values - low) ** 2).sum()), np.sqrt(((high - values) ** 2).sum())
    return metric_of(mean, n, max(0.0, mean - below / k), min(1.0, mean + above / k))


def _mean(total: float, total_sq: float, n: int) -> Metric:
    """Mean log-loss +- 1.96 s / sqrt(n), s the sample standard deviation; one row has no interval."""
    if n < 2:
        return metric_of(total / n if n else None, n, None, None)
    mean = total / n
    half = Z_95 * math.sqrt(max(0.0, (total_sq - total * mean) / (n - 1)) / n)
    return metric_of(mean, n, max(0.0, mean - half), mean + half)
