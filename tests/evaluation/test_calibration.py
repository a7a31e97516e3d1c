"""Calibration against sums that can be done by hand, and against its meaning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.calibration import BINS, expected_error, fit_temperature, reliability, tempered


def test_expected_error_by_hand() -> None:
    bins = reliability([0.9, 0.8, 0.55, 0.35], [True, False, True, False], bins=2)
    # Up to 0.5: one photo, score 0.35, none right. Above: three, score 0.75, two right.
    assert [(one.low, one.high, one.n) for one in bins] == [(0, 0.5, 1), (0.5, 1, 3)]
    assert (bins[0].score, bins[0].accuracy) == (0.35, 0)
    assert bins[1].score == pytest.approx(0.75)
    assert bins[1].accuracy == pytest.approx(2 / 3)
    assert expected_error(bins) == pytest.approx((1 * 0.35 + 3 * (0.75 - 2 / 3)) / 4)


def test_an_edge_belongs_to_the_lower_bin() -> None:
    assert [one.n for one in reliability([0.5, 0.0, 1.0, 0.50001], [True] * 4, bins=2)] == [2, 2]
    empty = reliability([], [])
    assert len(empty) == BINS == 15
    assert expected_error(empty) is None
    assert empty[0].score is empty[0].accuracy is None


def test_temperature_by_hand() -> None:
    # Three of four are right: the score of 0.8 has to become 0.75, so 8 ** (1 / T) = 6.
    p = np.tile([0.8, 0.1, 0.1], (4, 1))
    found = fit_temperature(p, [0, 0, 0, 1])
    assert found == pytest.approx(math.log(8) / math.log(6), rel=1e-6)
    np.testing.assert_allclose(tempered(p, found)[0], [0.75, 0.125, 0.125], rtol=1e-6)
    assert fit_temperature(p, [0, 0, 0, 0]) == 0.05  # all right: as sure as may be
    assert fit_temperature(p, [1, 2, 1, 2]) == 20  # all wrong: as unsure as may be


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_temperature_is_the_best_and_changes_no_prediction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet([0.5] * 3, 40), rng.integers(0, 3, 40)

    def loss(temperature: float) -> float:
        return float(-np.log(tempered(p, temperature)[np.arange(40), labels]).mean())

    found = fit_temperature(p, labels)
    assert loss(found) <= min(loss(found * 1.01), loss(found / 1.01)) + 1e-12 or found in (0.05, 20)
    assert (tempered(p, found).argmax(axis=1) == p.argmax(axis=1)).all()
    np.testing.assert_allclose(tempered(p, 1.0), p, atol=1e-9)
