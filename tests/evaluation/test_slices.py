"""Slices: every photo is in one slice of each kind, with its answer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from flowers.evaluation.metrics import wilson
from flowers.evaluation.slices import MOST, slices


def rows(**changes: list[object]) -> pa.Table:
    columns: dict[str, list[object]] = {
        "path": ["/p/a/1.jpg", "/p/b/1.jpg", "/p/b/2.jpg"], "label": ["a", "b", "b"], "width": [100, 3000, 400],
        "height": [200, 3000, 100], "brightness": [10.0, 64.0, 250.0], "split": [None] * 3, "group": ["x", None, "x"],
    }  # fmt: skip
    return pa.table(columns | changes)


def test_by_hand() -> None:
    found = {one.name: one for one in slices(rows(), np.array([True, False, True]), "/p")}
    counts = {
        name: {one.value: (one.accuracy.value, one.accuracy.n) for one in kind.slices} for name, kind in found.items()
    }
    assert counts == {
        "class": {"b": (0.5, 2), "a": (1, 1)},
        "width x height": {"below 0.1 megapixels": (1, 2), "8 and more": (0, 1)},
        "aspect, width to height": {"upright: to 4:5": (1, 1), "near square: to 5:4": (0, 1), "very wide": (1, 1)},
        "brightness": {"dark: below 64 of 255": (1, 1), "64 to 128": (0, 1), "bright: from 192 on": (1, 1)},
        "group": {"x": (1, 2), "none": (0, 1)},
    }
    low, high = wilson(1, 2)
    assert found["class"].slices[0].accuracy.low == float(low)
    assert found["class"].slices[0].accuracy.high == float(high)


def test_folders_that_say_more_than_the_class_and_many_values() -> None:
    found = {one.name: one for one in slices(rows(label=["c", "b", "b"]), np.array([True] * 3), "/p")}
    assert [one.value for one in found["folder"].slices] == ["b", "a"]
    many = pa.concat_tables([rows(group=[str(index)] * 3) for index in range(MOST + 5)])
    group = {one.name: one for one in slices(many, np.ones(many.num_rows, np.bool_), "/p")}["group"]
    assert (len(group.slices), group.more) == (MOST, 5)
