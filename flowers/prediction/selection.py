"""What to label next: photos of which the network is unsure, and that are not all the same."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.cluster import kmeans_plusplus
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

Floats = npt.NDArray[np.float32]

# So many times the photos wanted, the least sure ones, are chosen from.
CANDIDATES: Final = 10


def uncertainty(scores: Floats) -> Floats:
    """How unsure the network is of each photo: 1 less the margin between its two highest probabilities, float32 [n].

    Args:
        scores: probabilities float32 [n, K], K at least 2.
    """
    highest = np.partition(scores, -2, axis=1)[:, -2:]
    return np.asarray(1 - np.abs(highest[:, 1] - highest[:, 0]), np.float32)


def least_sure(unsure: Floats, count: int) -> npt.NDArray[np.int64]:
    """Indices of those that `choose` chooses from, the least sure first."""
    return np.argsort(-unsure, kind="stable")[: CANDIDATES * count]


def choose(features: Floats, unsure: Floats, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Chooses photos to label.

    Of the least sure ones each next photo is drawn with a chance that grows with how unsure the network is of it and
    with the square of its distance to those already chosen: the seeding of k-means++ (Arthur and Vassilvitskii 2007),
    weighted by uncertainty, as Ash et al. (BADGE, 2020) and Zhdanov (2019, who proposes the first cut) choose batches.

    Args:
        features: float32 [n, d]; only their directions count, as in `flowers.typicality`.
        unsure: float32 [n], what `uncertainty` returned.
        count: how many, at most.
        seed: of the draws.

    Returns:
        Their indices, the least sure first.
    """
    candidates = least_sure(unsure, count)
    if len(candidates) > count:
        weights = unsure[candidates].astype(np.float64) + 1e-6
        directions = normalize(features[candidates])
        with threadpool_limits(1):
            _, drawn = kmeans_plusplus(directions, count, sample_weight=weights, random_state=seed)
        drawn = list(dict.fromkeys(drawn.tolist()))
        # Where all others look like one that is chosen, the same one is drawn again.
        others = [index for index in range(len(candidates)) if index not in set(drawn)]
        candidates = candidates[np.sort([*drawn, *others[: count - len(drawn)]])]
    return candidates
