"""Who trains, who validates, who tests: a pure function of the photos' content, their labels and a seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

SUBSETS = ("train", "validation", "test")
_OPEN = -1  # not assigned yet


def apportion(sizes: Sequence[int], fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    """Whole numbers of photos for each class and subset.

    Every cell is its exact fraction rounded down or up, so it is off by less than one image. What rounding one class
    leaves over is carried to the next (error diffusion), so the totals of the subsets are right as well. A class of two
    or more photos has at least one for training and one for validation, taken from where there are most; a subset whose
    fraction is 0 gets none.

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
            if size >= 2 and cells[row, subset] == 0 and fractions[subset] > 0:
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
    groups: Sequence[int] | None = None,
) -> npt.NDArray[np.int8]:
    """The subset of each photo.

    Photos are ordered within their class by a hash of seed and content and dealt out by `apportion`, so the result
    depends neither on file names nor on their order. Photos in `known` keep their subset; the others fill what is
    missing to the fractions. Groups are dealt out first, each as a whole, so the fractions are met as far as their
    sizes allow.

    Args:
        digests: SHA-256 of each photo's bytes, no two alike.
        labels: its class.
        fractions: of training, validation and test.
        seed: of the order.
        known: subset (an index into `SUBSETS`) of photos assigned earlier, by digest.
        groups: a number for each photo; those of one number stay together, also across classes. A group of which
            some are known follows those, of several subsets the last. None: each photo is a group.

    Returns:
        int8 [n], indices into `SUBSETS`.
    """
    known = known or {}
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    classes = sorted(members)
    quotas = apportion([len(members[label]) for label in classes], fractions)
    subsets = np.full(len(digests), _OPEN, dtype=np.int8)
    key = key_of(seed)
    left = dict(zip(classes, quotas.copy(), strict=True))
    for index, digest in enumerate(digests):
        if (subset := known.get(digest)) is not None:
            subsets[index] = subset
            left[labels[index]][subset] -= 1
    if groups is not None:
        _assign_groups(digests, labels, fractions, key, groups, subsets, left)
    for label in classes:
        new = [index for index in members[label] if subsets[index] == _OPEN]
        new.sort(key=lambda index: place(digests[index], key))
        quota = left[label]
        if (quota < 0).any():  # known photos or groups overfill a subset
            quota = _shrink(quota, len(new))
        subsets[new] = np.repeat(np.arange(len(SUBSETS)), quota)
    return subsets


def _assign_groups(
    digests: Sequence[bytes],
    labels: Sequence[str],
    fractions: Sequence[float],
    key: bytes,
    groups: Sequence[int],
    subsets: npt.NDArray[np.int8],
    left: Mapping[str, npt.NDArray[np.int64]],
) -> None:
    """Fills in `subsets` for all groups of two photos or more, and takes them out of `left`: the largest first.

    Each aims at a subset drawn by its hash, with the fractions as chances; where there is no room for it, it goes to
    training, and where there is none either, to where there is most.
    """
    together: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        together.setdefault(group, []).append(index)
    several = [indices for indices in together.values() if len(indices) > 1]
    ordered = sorted((-len(indices), place(min(digests[i] for i in indices), key), indices) for indices in several)
    bounds = np.cumsum(np.asarray(fractions, np.float64))
    for _, order, indices in ordered:
        new = [index for index in indices if subsets[index] == _OPEN]
        if len(new) < len(indices):
            subset = int(max(subsets[index] for index in indices))
        else:
            sizes = Counter(labels[index] for index in new)
            room = [min(int(left[label][subset]) - size for label, size in sizes.items()) for subset in range(3)]
            chance = int.from_bytes(order, "big") / 256 ** len(order) * bounds[-1]
            drawn = min(int(np.searchsorted(bounds, chance, side="right")), len(SUBSETS) - 1)
            fits = [subset for subset in (drawn, 0) if room[subset] >= 0]
            subset = fits[0] if fits else max(range(len(SUBSETS)), key=lambda subset: (room[subset], subset == 1))
        for index in new:
            subsets[index] = subset
            left[labels[index]][subset] -= 1


def key_of(seed: int) -> bytes:
    """The key of `place` for a seed."""
    return seed.to_bytes(8, "big")


def place(digest: bytes, key: bytes) -> bytes:
    """Where a photo comes when photos are shuffled by their content: the order of these bytes."""
    return hashlib.blake2b(digest, digest_size=16, key=key).digest()


def _shrink(quota: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Removes negative numbers and takes the surplus from the largest of the others, of equal ones from test first."""
    quota = np.maximum(quota, 0)
    while quota.sum() > total:
        quota[::-1][int(np.argmax(quota[::-1]))] -= 1
    return quota
