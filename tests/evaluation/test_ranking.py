"""Areas under ROC curves and coverage, by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.metrics import Z_95
from flowers.evaluation.ranking import auc, coverage, coverage_curve, one_vs_rest


def test_area_by_hand() -> None:
    # Of four pairs the positive is higher in three, and equal in one.
    found = auc([0.7, 0.5, 0.2, 0.5], [True, True, False, False])
    assert found.value == 3.5 / 4
    # Shares below each positive: 1 and 3/4; above each negative: 1 and 3/4. Both have the variance 1/32.
    assert found.low == pytest.approx(3.5 / 4 - Z_95 * math.sqrt(1 / 32 / 2 + 1 / 32 / 2))
    assert found.high == 1.0
    assert found.n == 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_area_is_the_share_of_pairs(photos: list[tuple[int, bool]]) -> None:
    ours = [score for score, positive in photos if positive]
    others = [score for score, positive in photos if not positive]
    pairs = [(one > two) + (one == two) / 2 for one in ours for two in others]
    found = auc(*zip(*photos, strict=True))
    assert found.value == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
    if found.low is not None and found.high is not None and found.value is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_three_classes_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3]], np.float32)
    areas, mean = one_vs_rest(labels, p, ["a", "b", "c"])
    # b: 0.7 and 0.2 against 0.2 and 0.4: higher, higher, equal, lower.
    assert (areas["a"].value, areas["b"].value, areas["c"].value) == (0.875, 0.625, None)
    assert mean.value == 0.75
    assert one_vs_rest(labels[:2], p[:2], ["a", "b", "c"])[1].value is None


def test_coverage_by_hand() -> None:
    score, right = np.array([0.9, 0.8, 0.5, 0.35], np.float32), np.array([True, False, True, False])
    rows = coverage(score, right, [0.0, 0.5, 0.85, 0.99])
    assert [row.coverage.value for row in rows] == [1, 0.75, 0.25, 0]
    assert [row.accuracy.value for row in rows] == [0.5, pytest.approx(2 / 3), 1, None]
    assert [row.accuracy.n for row in rows] == [4, 3, 1, 0]
    assert coverage_curve(score, right) == [(0.25, 1), (0.5, 0.5), (0.75, pytest.approx(2 / 3)), (1, 0.5)]
    assert coverage_curve(np.ones(4, np.float32), right) == [(1, 0.5)]  # of equal scores none comes first
