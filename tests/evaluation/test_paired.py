"""McNemar's exact test against numbers that others publish, and against its meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.paired import Paired


def paired(gained: int, lost: int, both: int = 5) -> Paired:
    new = np.array([True] * gained + [False] * lost + [True] * both)
    old = np.array([False] * gained + [True] * lost + [True] * both)
    return Paired.of(new, old)


def test_counts() -> None:
    assert paired(2, 3) == Paired(n=10, new_right=7, old_right=8, gained=2, lost=3)


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1), (0, 1, 0.5), (1, 9, 11 / 1024), (4, 0, 1), (5, 5, 0.623046875)]
)
def test_one_sided_exact(gained: int, lost: int, p: float) -> None:
    assert paired(gained, lost).p_worse == pytest.approx(p)


def test_what_is_called_worse() -> None:
    least = paired(0, 0).least_loss
    assert paired(0, least).worse
    assert not paired(0, least - 1).worse
    assert not paired(100, 100).worse
    assert not paired(20, 0).worse
    assert not paired(0, 0).worse


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1), (0, 1, 1), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (5, 5, 1), (0, 6, 1 / 32)]
)
def test_two_sided_exact(gained: int, lost: int, p: float) -> None:
    assert paired(gained, lost).p_value == pytest.approx(p)


# Both right, gained, lost, both wrong, and the limits of method 10 in table III of Newcombe's paper.
@pytest.mark.parametrize(
    ("both", "gained", "lost", "neither", "limits"),
    [
        (36, 12, 2, 0, (0.0569, 0.3404)),
        (20, 12, 2, 16, (0.0562, 0.3292)),
        (18, 12, 2, 18, (0.0562, 0.3290)),
        (36, 14, 0, 0, (0.1528, 0.4167)),
        (35, 14, 0, 1, (0.1461, 0.4175)),
        (1, 97, 1, 1, (0.8736, 0.9850)),
        (54, 0, 0, 0, (-0.0664, 0.0664)),
        (30, 0, 0, 24, (-0.0358, 0.0358)),
    ],
)
def test_difference(both: int, gained: int, lost: int, neither: int, limits: tuple[float, float]) -> None:
    n = both + gained + lost + neither
    found = Paired(n=n, new_right=both + gained, old_right=both + lost, gained=gained, lost=lost).difference
    assert found.value == pytest.approx((gained - lost) / n)
    assert (found.low, found.high) == pytest.approx(limits, abs=1e-4)


def test_no_photos_no_difference() -> None:
    assert Paired(n=0, new_right=0, old_right=0, gained=0, lost=0).difference.value is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_interval_holds_the_difference_and_turns_with_it(gained: int, lost: int, both: int, neither: int) -> None:
    n = gained + lost + both + neither
    found = Paired(n=n, new_right=both + gained, old_right=both + lost, gained=gained, lost=lost).difference
    turned = Paired(n=n, new_right=both + lost, old_right=both + gained, gained=lost, lost=gained).difference
    assert found.value == pytest.approx((gained - lost) / n)
    assert -1 <= found.low <= found.value <= found.high <= 1  # type: ignore[operator]
    assert (found.low, found.high) == (pytest.approx(-turned.high), pytest.approx(-turned.low))  # type: ignore[operator]
