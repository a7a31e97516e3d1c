"""Folds: the photos of a run split again and again, so that each is held out once by a training that never saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data.groups import kept_together
from flowers.data.ledger import Ledger
from flowers.data.split import SUBSETS, assign, key_of, place
from flowers.errors import InputError
from flowers.text import several


def fold_of(
    digests: Sequence[bytes], labels: Sequence[str], groups: Sequence[int], count: int, seed: int
) -> npt.NDArray[np.int64]:
    """The fold that holds each photo out.

    Groups go as a whole, the largest first, to the fold with the fewest photos of their classes; so the folds of a
    class differ by one photo where there are no groups. Like a split, it depends on neither names nor order of files.

    Args:
        digests: SHA-256 of each photo's bytes, no two alike.
        labels: its class.
        groups: a number for each photo; those of one number stay together.
        count: number of folds.
        seed: of the order in which photos are dealt out.

    Returns:
        int64 [n], from 0.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    key = key_of(seed)
    ordered = sorted(
        (-len(indices), min(place(digests[i], key) for i in indices), indices) for indices in members.values()
    )
    held, found = [Counter[str]() for _ in range(count)], np.zeros(len(digests), np.int64)
    for _, _, indices in ordered:
        sizes = Counter(labels[index] for index in indices)
        fold = min(range(count), key=lambda number: (sum(held[number][label] for label in sizes), held[number].total()))
        held[fold].update(sizes)
        found[indices] = fold
    return found


def fold_splits(ledger: Ledger, count: int, seed: int) -> list[pa.Table]:
    """The split of each fold: who trains, who chooses the epoch, who is held out, under the name of test.

    The run's own test photos are in none. What is not held out is divided as the run's photos are; photos of a group,
    and near-duplicates, are on one side.

    Returns:
        `count` tables of the columns of `Ledger.split`.

    Raises:
        InputError: there are too few photos for so many folds.
    """
    used = ledger.used()
    rows = used.filter(pc.not_equal(used["status"], "test")).sort_by("sha256")
    digests, labels = rows["sha256"].to_pylist(), rows["label"].to_pylist()
    groups = kept_together(rows)
    folds = fold_of(digests, labels, groups.tolist(), count, seed)
    share = pc.sum(pc.equal(rows["status"], "validation")).as_py() / len(digests)
    tables = []
    for number in range(count):
        rest = np.flatnonzero(folds != number)
        subsets = np.full(len(digests), SUBSETS.index("test"), np.int64)
        subsets[rest] = assign(
            [digests[index] for index in rest],
            [labels[index] for index in rest],
            (1 - share, share, 0.0),
            seed + number,
            groups=groups[rest].tolist(),
        )
        if missing := [subset for at, subset in enumerate(SUBSETS) if not (subsets == at).any()]:
            raise InputError(
                f"--folds: received {count} for {several(len(digests), 'photo')} besides the test photos, in "
                f"{several(len(set(groups.tolist())), 'group')}; fold {number + 1} would have none for "
                f"{missing[0]}; give fewer folds or more photos"
            )
        split = pa.array(np.asarray(SUBSETS, object)[subsets], pa.string())
        tables.append(rows.select(["sha256", "label", "path"]).add_column(2, "split", split))
    return tables
