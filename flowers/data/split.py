"""Who trains, who validates, who tests: a pure function of the photos' content, their labels and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

SUBSETS = ("train", "validation", "test")


def apportion(sizes: Sequence[int], fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    """Whole numbers of photos for each class and side.

    Every cell is its exact share rounded down or up, so it is off by less than one image. What rounding one class
    leaves over is carried to the next (error diffusion), so the totals of the sides are right as well. A class of two
    or more photos has at least one for training and one for validation, taken from where there are most.

    Args:
        sizes: photos of each class.
        fractions: shares of the three sides, adding up to 1.

    Returns:
        int64 [classes, 3], rows adding up to `sizes`.
    """
    shares = np.outer(np.asarray(sizes, dtype=np.float64), np.asarray(fractions, dtype=np.float64))
    # 0.57 * 100 is 56.99999999999999: without this, a whole share would lose one image.
    shares = np.where(np.abs(shares - np.round(shares)) < 1e-6, np.round(shares), shares)
    cells = np.floor(shares).astype(np.int64)
    owed = np.zeros(len(SUBSETS))
    for row, size in enumerate(sizes):
        owed += shares[row] - cells[row]
        missing = int(size - cells[row].sum())
        may_grow = shares[row] > cells[row]
        for side in sorted(range(len(SUBSETS)), key=lambda side: (not may_grow[side], -owed[side], side))[:missing]:
            cells[row, side] += 1
            owed[side] -= 1
        for side in (0, 1):
            if size >= 2 and cells[row, side] == 0:
                donor = int(np.argmax(cells[row] - (1, 1, 0)))  # not the last one of the other side
                cells[row, donor] -= 1
                cells[row, side] += 1
                owed[donor] += 1
                owed[side] -= 1
    return cells


def assign(
    digests: Sequence[bytes],
    labels: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    known: Mapping[bytes, int] | None = None,
) -> npt.NDArray[np.int8]:
    """The side of each photo.

    Photos are ordered within their class by a hash of seed and content and dealt out by `apportion`, so the result
    depends neither on file names nor on their order. Photos in `known` keep their side; the others fill what is
    missing to the shares.

    Args:
        digests: SHA-256 of each photo's bytes, no two alike.
        labels: its class.
        fractions: shares of training, validation and test.
        seed: of the order.
        known: side (an index into `SUBSETS`) of photos assigned earlier, by digest.

    Returns:
        int8 [n], indices into `SUBSETS`.
    """
    known = known or {}
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    classes = sorted(members)
    quotas = apportion([len(members[label]) for label in classes], fractions)
    sides = np.empty(len(digests), dtype=np.int8)
    key = seed.to_bytes(8, "big")
    for label, quota in zip(classes, quotas, strict=True):
        open_places = quota.copy()
        new = []
        for index in members[label]:
            side = known.get(digests[index])
            if side is None:
                new.append(index)
            else:
                sides[index] = side
                open_places[side] -= 1
        new.sort(key=lambda index: hashlib.blake2b(digests[index], digest_size=16, key=key).digest())
        if (open_places < 0).any():  # known photos overfill a side
            open_places = _shrink(open_places, len(new))
        sides[new] = np.repeat(np.arange(len(SUBSETS)), open_places)
    return sides


def _shrink(places: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Removes negative places and takes the surplus from the largest of the others, of equal ones from test first."""
    places = np.maximum(places, 0)
    while places.sum() > total:
        places[::-1][int(np.argmax(places[::-1]))] -= 1
    return places
