"""McNemar's exact test against numbers that others publish, and against its meaning."""

from __future__ import annotations

import numpy as np
import pytest

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
