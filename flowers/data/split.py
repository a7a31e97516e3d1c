"""Who trains, who validates, who tests: a pure function of the photos' content, their labels and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

SUBSETS = ("train", "validation", "test")


def apportion(sizes: Sequence[int], fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    """Whole numbers of photos for each class and subset.

    Every cell is its exact fraction rounded down or up, so it is off by less than one image. What rounding one class
    leaves over is carried to the next (error diffusion), so the totals of the subsets are right as well. A class of two
    or more photos has at least one for training and one for validation, taken from where there are most.

    Args:
        sizes: photos of each class.
        fractions: of the three subsets, adding up to 1.

    Returns:
        int64 [classes, 3], rows adding up to `sizes`.
    """
    exact = np.outer(np.asarray(sizes, dtype=np.float64), np.asarray(fractions, dtype=np.float64))
    # 0.57 * 100 is 56.99999999999999: without this, a whole number would lose one image.
    exact = np.where(np.abs(exact - np.round(exact)) < 1e-6, np.round(exact), exact)
    cells = np.floor(exact).astype(np.int64)
    owed = np.zeros(len(SUBSETS))
    for row, size in enumerate(sizes):
        owed += exact[row] - cells[row]
        missing = int(size - cells[row].sum())
        may_grow = exact[row] > cells[row]
        first = sorted(range(len(SUBSETS)), key=lambda subset: (not may_grow[subset], -owed[subset], subset))
        for subset in first[:missing]:
            cells[row, subset] += 1
            owed[subset] -= 1
        for subset in (0, 1):
            if size >= 2 and cells[row, subset] == 0:
                donor = int(np.argmax(cells[row] - (1, 1, 0)))  # not the last one of the other subset
                cells[row, donor] -= 1
                cells[row, subset] += 1
                owed[donor] += 1
                owed[subset] -= 1
    return cells


def assign(
    digests: Sequence[bytes],
    labels: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    known: Mapping[bytes, int] | None = None,
) -> npt.NDArray[np.int8]:
    """The subset of each photo.

    Photos are ordered within their class by a hash of seed and content and dealt out by `apportion`, so the result
    depends neither on file names nor on their order. Photos in `known` keep their subset; the others fill what is
    missing to the fractions.

    Args:
        digests: SHA-256 of each photo's bytes, no two alike.
        labels: its class.
        fractions: of training, validation and test.
        seed: of the order.
        known: subset (an index into `SUBSETS`) of photos assigned earlier, by digest.

    Returns:
        int8 [n], indices into `SUBSETS`.
    """
    known = known or {}
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    classes = sorted(members)
    quotas = apportion([len(members[label]) for label in classes], fractions)
    subsets = np.empty(len(digests), dtype=np.int8)
    key = seed.to_bytes(8, "big")
    for label, quota in zip(classes, quotas, strict=True):
        left = quota.copy()
        new = []
        for index in members[label]:
            subset = known.get(digests[index])
            if subset is None:
                new.append(index)
            else:
                subsets[index] = subset
                left[subset] -= 1
        new.sort(key=lambda index: hashlib.blake2b(digests[index], digest_size=16, key=key).digest())
        if (left < 0).any():  # known photos overfill a subset
            left = _shrink(left, len(new))
        subsets[new] = np.repeat(np.arange(len(SUBSETS)), left)
    return subsets


def _shrink(quota: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Removes negative numbers and takes the surplus from the largest of the others, of equal ones from test first."""
    quota = np.maximum(quota, 0)
    while quota.sum() > total:
        quota[::-1][int(np.argmax(quota[::-1]))] -= 1
    return quota
