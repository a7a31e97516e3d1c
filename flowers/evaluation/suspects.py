"""Suspects: photos whose label is probably wrong, as what was learned from the other photos contradicts it.

Each photo is classified by a linear head that was trained without it and without its near-duplicates. How many labels
are wrong is estimated by confident learning (Northcutt et al., JAIR 70, 2021, as cleanlab has it); which ones, by the
probability that the head gives to the label.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cleanlab.count import num_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from flowers.inference.engine import usable_cpus

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FOLDS: Final = 5
# Inverse strengths of the L2 penalty, the strongest first: a head without much of it learns wrong labels by heart.
_STRENGTHS: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
_STEPS: Final = 200
# Photos to look at for each label that is estimated to be wrong: the right ones among them cost a glance, and of those
# that are wrong 93 % are among twice as many, 78 % among just as many (docs/decisions.md).
_LISTED: Final = 2


@dataclass(frozen=True)
class Suspects:
    """What is suspected of n photos.

    Attributes:
        indices: int64 [s], of the suspects, the likeliest to be wrong first.
        suggested: int64 [s], the likeliest class of each.
        score: float64 [s], the probability of its label.
        suggested_score: float64 [s], of the suggested class.
        estimated: labels that are wrong by confident learning, of those that are judged.
        judged: photos of which anything can be said: others of their class were there to learn from.
        agreement: share of these to whose label the head gives the highest probability.
    """

    indices: Labels
    suggested: Labels
    score: Floats
    suggested_score: Floats
    estimated: int
    judged: int
    agreement: float


def standardized(features: Features) -> Features:
    """Features float32 [n, d], each of mean 0 and, unless it hardly differs, variance 1."""
    mean, variance = features.mean(axis=0, dtype=np.float64), features.var(axis=0, dtype=np.float64)
    scale = np.sqrt(variance + 0.01 * variance.mean() + 1e-14)
    return ((features - mean.astype(np.float32)) / scale.astype(np.float32)).astype(np.float32, copy=False)


def out_of_sample(features: Features, labels: Labels, groups: Labels, classes: int, seed: int = 0) -> Floats:
    """What a head says of each photo that was trained on others.

    The penalty is the one with which the heads are right most surely: the lowest log-loss over all photos.

    Args:
        features: float32 [n, d], standardized.
        labels: int64 [n].
        groups: int64 [n], the same number for photos that stay in one fold.
        classes: how many there are, K.
        seed: of the folds.

    Returns:
        Probabilities float64 [n, K]; NaN for a photo whose class was not among those the head learned from.
    """
    folds = min(_FOLDS, int(np.bincount(labels, minlength=classes).max()), len(np.unique(groups)))
    nothing = np.full((len(labels), classes), np.nan)
    if folds < 2:
        return nothing
    if len(features) < features.shape[1]:  # the same distances and products in fewer dimensions
        factor: Any = np.linalg.qr(features.T, mode="r")
        features = np.ascontiguousarray(factor.T)
    best, lowest = nothing, np.inf
    # Threads of a matrix product wait for each other on a busy machine: two minutes instead of seconds. Folds do not.
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(usable_cpus()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class")
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [(train, held) for train, held in splitter.split(features, labels, groups) if len(held)]
        parts = [(train, held) for train, held in parts if len(np.unique(labels[train])) > 1]
        heads = [LogisticRegression(max_iter=_STEPS, tol=1e-3, warm_start=True) for _ in parts]
        for strength in _STRENGTHS:
            found = nothing.copy()

            def learn(head: Any, part: Any, strength: float = strength, found: Floats = found) -> None:
                train, held = part
                head.set_params(C=strength).fit(features[train], labels[train])
                held = held[np.isin(labels[held], head.classes_)]
                if len(held):
                    found[held] = 0.0
                    found[np.ix_(held, head.classes_)] = head.predict_proba(features[held])

            list(pool.map(learn, heads, parts))
            judged = ~np.isnan(found[:, 0])
            right = found[judged, labels[judged]]
            loss = -np.log(np.maximum(right, 1e-12)).mean() if len(right) else np.inf
            if loss >= lowest:
                break
            best, lowest = found, loss
    return best


def find_suspects(
    labels: Labels, probabilities: Floats, count: int | None, confirmed: npt.NDArray[np.bool_] | None = None
) -> Suspects:
    """The photos whose labels are to be looked at.

    Args:
        labels: int64 [n].
        probabilities: what `out_of_sample` returned.
        count: how many, at most; None takes twice as many as labels are estimated to be wrong, less those that are
            confirmed.
        confirmed: bool [n], photos whose label somebody looked at and kept: no suspects.
    """
    judged = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    said, given = probabilities[judged], labels[judged]
    if not len(judged) or len(np.unique(given)) < 2:
        none = np.empty(0, np.int64)
        return Suspects(none, none, none.astype(float), none.astype(float), 0, len(judged), 1.0)
    likeliest = said.argmax(axis=1)
    estimated = int(num_label_issues(given, said))
    order = np.argsort(get_label_quality_scores(given, said, method="self_confidence"), kind="stable")
    chosen = order[(likeliest != given)[order]]
    if count is None:
        chosen = chosen[: _LISTED * estimated]
    if confirmed is not None:
        chosen = chosen[~confirmed[judged[chosen]]]
    chosen = chosen[:count]
    return Suspects(
        indices=judged[chosen],
        suggested=likeliest[chosen].astype(np.int64),
        score=said[chosen, given[chosen]],
        suggested_score=said[chosen, likeliest[chosen]],
        estimated=estimated,
        judged=len(judged),
        agreement=float((likeliest == given).mean()),
    )


def nearest(
    features: Features, labels: Labels, photos: Labels, wanted: Labels, others: npt.NDArray[np.bool_], count: int
) -> list[list[int]]:
    """The nearest photos of a class for each of some photos.

    Args:
        features: float32 [n, d], standardized.
        labels: int64 [n].
        photos: int64 [s], indices of the photos.
        wanted: int64 [s], the class to look among.
        others: bool [n], who may be found.
        count: how many, at most.

    Returns:
        Indices, the nearest first.
    """
    found: list[list[int]] = [[] for _ in photos]
    for label in np.unique(wanted):
        among, asked = np.flatnonzero(others & (labels == label)), np.flatnonzero(wanted == label)
        if not len(among):
            continue
        search = NearestNeighbors(n_neighbors=min(count + 1, len(among)), algorithm="brute").fit(features[among])
        rows = search.kneighbors(features[photos[asked]], return_distance=False)
        for at, row in zip(asked, rows, strict=True):
            found[at] = [int(index) for index in among[row] if index != photos[at]][:count]
    return found
