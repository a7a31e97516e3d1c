"""Which photos of the confusion matrix are shown: some of each cell, and never more than a page can hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.answers import Answers
from flowers.evaluation.gallery import OF_A_CELL, OF_ALL_CELLS, cells_of


def answers(labels: np.ndarray, predicted: np.ndarray, score: np.ndarray, k: int) -> Answers:
    """Photos of which one class has the score and all others the same rest."""
    scores = np.repeat(((1 - score) / max(1, k - 1))[:, None], k, axis=1).astype(np.float32)
    scores[np.arange(len(labels)), predicted] = score
    names = [f"c{index}" for index in range(k)]
    return Answers(pa.table({"label": [names[label] for label in labels]}), scores, names)


@settings(deadline=None, max_examples=30)
@given(
    k=st.integers(2, 9), n=st.integers(0, 120), seed=st.integers(0, 99), most=st.integers(1, 4), all_=st.integers(1, 40)
)
def test_each_cell_gets_a_first_photo_before_any_gets_a_second(k: int, n: int, seed: int, most: int, all_: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted, score = rng.integers(0, k, n), rng.integers(0, k, n), rng.uniform(0.6, 1, n)
    made = answers(labels, predicted, score, k)
    cells = cells_of(made, most, all_)
    counts = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert sum(map(len, cells.values())) == min(all_, sum(min(most, count) for count in counts.values()))
    shown = {cell: len(cells.get(cell, [])) for cell in counts}
    for cell, count in counts.items():
        fair = min(max(shown.values()) - 1, count, most)
        assert fair <= shown[cell] <= min(most, count)
    order = list(cells)
    mistakes = [cell for cell in order if cell[0] != cell[1]]
    assert order[: len(mistakes)] == mistakes
    assert [counts[cell] for cell in mistakes] == sorted((counts[cell] for cell in mistakes), reverse=True)
    for (true, said), indices in cells.items():
        assert {(labels[at], predicted[at]) for at in indices} == {(true, said)}
        certain = [made.score[at] for at in indices]
        others = [made.score[at] for at in np.flatnonzero((labels == true) & (predicted == said)) if at not in indices]
        assert certain == sorted(certain, reverse=true != said)
        worst = min if true == said else max
        assert not others or worst(*certain, *others) == certain[0]


def test_there_are_never_more_than_a_page_can_hold() -> None:
    rng = np.random.default_rng(0)
    k, n = 200, 20_000
    labels = rng.integers(0, k, n)
    predicted = np.where(rng.random(n) < 0.5, labels, rng.integers(0, k, n))
    cells = cells_of(answers(labels, predicted, rng.uniform(0.5, 1, n), k))
    assert sum(map(len, cells.values())) == OF_ALL_CELLS
    one = cells_of(answers(np.zeros(50, int), np.ones(50, int), np.linspace(0.6, 1, 50), 2))
    assert one == {(0, 1): list(range(49, 49 - OF_A_CELL, -1))}


@pytest.mark.parametrize("k", [1, 3])
def test_no_photos(k: int) -> None:
    none = np.empty(0, np.int64)
    assert cells_of(answers(none, none, np.empty(0), k)) == {}
