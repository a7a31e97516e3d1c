"""Folds: every photo that is not a test photo is held out once, with all that shows the same."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.data.folds import fold_of, fold_splits
from flowers.data.groups import by_name, connected
from flowers.data.ledger import ROW, Ledger, settle
from flowers.errors import InputError


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def ledger(sizes: dict[str, int], groups: dict[int, str] | None = None, **options: object) -> Ledger:
    """Photos of some classes, numbered through; `groups` names the group of some."""
    labels = [label for label, size in sizes.items() for _ in range(size)]
    rows = [
        {
            "path": f"/{label}/{number}.jpg",
            "label": label,
            "sha256": digest(number),
            "group": (groups or {}).get(number),
        }
        for number, label in enumerate(labels)
    ]
    fractions = options.get("fractions", (0.7, 0.2, 0.1))
    return settle(pa.Table.from_pylist(rows, schema=ROW), fractions, 0, 0.0)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=80), st.integers(2, 7), st.integers(0, 9))
def test_folds_of_a_class_differ_by_one_photo(classes: list[int], count: int, seed: int) -> None:
    digests, labels = [digest(number) for number in range(len(classes))], [str(number) for number in classes]
    folds = fold_of(digests, labels, range(len(digests)), count, seed)
    for label in set(labels):
        held = [
            sum(fold == number for fold, of in zip(folds, labels, strict=True) if of == label)
            for number in range(count)
        ]
        assert max(held) - min(held) <= 1
    totals = np.bincount(folds, minlength=count)
    assert totals.max() - totals.min() <= len(set(labels))
    order = np.random.default_rng(seed).permutation(len(digests))
    again = fold_of([digests[i] for i in order], [labels[i] for i in order], range(len(digests)), count, seed)
    assert again.tolist() == folds[order].tolist(), "the order of the files changes nothing"


def test_each_photo_is_held_out_once_and_test_photos_never() -> None:
    photos = ledger({"a": 50, "b": 30})
    splits = fold_splits(photos, 4, seed=0)
    tested = set(photos.subset("test")["sha256"].to_pylist())
    held = Counter[bytes]()
    for split in splits:
        sides = {side: split.filter(pa.compute.equal(split["split"], side)) for side in ("train", "validation", "test")}
        assert not tested & set(split["sha256"].to_pylist())
        assert split.num_rows == 72
        assert [sides[side].num_rows for side in sides] == [42, 12, 18], "divided as the run is: 56 to 16"
        assert all(set(side["label"].to_pylist()) == {"a", "b"} for side in sides.values())
        held.update(sides["test"]["sha256"].to_pylist())
    assert len(tested) == 8
    assert set(held.values()) == {1}
    assert len(held) == 72
    assert fold_splits(photos, 4, seed=0) == splits
    assert fold_splits(photos, 4, seed=1) != splits


def test_groups_stay_on_one_side_in_every_fold() -> None:
    names = {number: f"plant {number % 12}" for number in range(60)}  # of both classes
    photos = ledger({"a": 40, "b": 40}, names, fractions=(0.7, 0.3, 0.0))
    alike = [row["path"] for row in photos.table.to_pylist()][70:73]
    marked = [alike[0] if path in alike else None for path in photos.table["path"].to_pylist()]
    table = photos.table.set_column(photos.table.column_names.index("like"), "like", pa.array(marked, pa.string()))
    photos = Ledger(table, photos.classes)
    used = photos.used().sort_by("sha256")
    groups = connected(80, [*by_name(used["group"].to_pylist()), *by_name(used["like"].to_pylist())])
    for split in fold_splits(photos, 3, seed=0):
        assert split["sha256"] == used["sha256"]
        sides = split["split"].to_pylist()
        for group in set(groups.tolist()):
            assert len({sides[index] for index in np.flatnonzero(groups == group)}) == 1
        assert min(Counter(sides).values()) >= 8


def test_more_folds_than_groups_are_refused() -> None:
    names = {number: f"plant {number % 3}" for number in range(30)}
    photos = ledger({"a": 15, "b": 15}, names, fractions=(0.7, 0.3, 0.0))
    with pytest.raises(InputError, match=r"--folds: received 4 for 30 photos .* in 3 groups; fold \d would have none"):
        fold_splits(photos, 4, seed=0)
