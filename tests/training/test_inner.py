"""Folds under Ray's trainer in this process: what is held out has no part in them, and one that is done stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flowers.config import TrainConfig
from flowers.evaluation.metrics import Counts
from flowers.plan import Plan
from flowers.report.build import cross_validation
from flowers.training import trainer
from flowers.training.inner import FoldCounts, Outcome, fold_counts, plan_fold, read_outcome
from flowers.training.step import Step
from tests.parity.runs import CLASSES, TINY, Photos, Place, drawn, lines_of, tiny_network

EPOCHS = 2


@pytest.fixture(scope="module")
def photos() -> Photos:
    return drawn(40, 20)


def splits_of(photos: Photos, swapped: bool = False) -> list[pa.Table]:
    """Two folds of the training and validation photos; `swapped` gives those of the first one false labels."""
    rows = [row for row in sorted(photos.split.to_pylist(), key=lambda row: row["sha256"]) if row["split"] != "test"]
    tables = []
    for fold in range(2):
        changed = []
        for number, row in enumerate(rows):
            side = ("test", "train", "validation")[(number + fold) % 3]
            wrong = swapped and fold == 0 and side == "test"
            label = CLASSES[(CLASSES.index(row["label"]) + 1) % 3] if wrong else row["label"]
            changed.append({**row, "split": side, "label": label})
        tables.append(pa.Table.from_pylist(changed, schema=photos.split.schema))
    return tables


def planned(place: Place, name: str, splits: list[pa.Table]) -> tuple[Plan, list[Plan]]:
    config = {**TINY, "trainable": "head", "epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.02}
    plan = place.plan(name, TrainConfig(**config))
    return plan, [plan_fold(plan, number, split) for number, split in enumerate(splits, 1)]


def fit(plan: Plan, folds: list[Plan]) -> None:
    trainer.fit(plan, CLASSES, pytest.fail, folds)


def outcomes_of(folds: list[Plan]) -> list[Outcome]:
    return [outcome for fold in folds if (outcome := read_outcome(fold.run)) is not None]


def without_seconds(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in outcome.line.items() if name != "seconds"}


def test_what_is_held_out_is_measured_and_nothing_else(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, photos, tiny_network("mobilenetv2", "", 32, ""))
    plan, folds = planned(place, "one", splits_of(photos))
    fit(plan, folds)
    first, second = outcomes_of(folds)
    found = [fold_counts(fold, split, 3) for fold, split in zip(folds, splits_of(photos), strict=True)]
    counted = [fold for fold in found if fold is not None]
    assert [(fold.train, fold.validation, fold.held_out.n) for fold in counted] == [(20, 20, 20)] * 2
    assert [fold.held_out.confusion.diagonal().sum() for fold in counted] >= [15, 15], "it learns"
    for fold in folds:
        assert {path.name for path in Path(fold.run.uri).iterdir()} == {
            "split.parquet",
            "metrics.jsonl",
            "outcome.json",
        }
        assert len(lines_of(fold)) == EPOCHS

    # With false labels of what the first fold holds out only its outcome changes, and its second fold stays as it is.
    other, others = planned(place, "two", splits_of(photos, swapped=True))
    steps, run = list[str](), Step.run

    def dying(self: Step, batches: Any) -> Any:
        steps.append("")
        if len(steps) > EPOCHS + 1:
            raise KeyboardInterrupt
        return run(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(other, others)
    assert [read_outcome(fold.run) is None for fold in others] == [False, True]
    Path(others[0].run.split).write_bytes(b"a fold that is done is not looked at again")
    fit(other, others)
    for mine, its in zip(folds, others, strict=True):
        assert lines_of(mine, "seconds") == lines_of(its, "seconds")
    changed, same = outcomes_of(others)
    assert without_seconds(changed) == without_seconds(first)
    assert changed.held_out[:9] != first.held_out[:9]
    assert same.held_out == second.held_out


def test_mean_and_spread() -> None:
    """Of accuracies 0.5 and 1 of 2 and 6 photos: the plain mean, and all photos together."""
    sure = np.eye(2)
    one = FoldCounts(5, 3, 4, Counts.of([0, 1], sure[[0, 0]]))
    two = FoldCounts(4, 2, 7, Counts.of([0, 0, 0, 1, 1, 1], sure[[0, 0, 0, 1, 1, 1]]))
    found = cross_validation([one, two], ["a", "b"])
    assert (found.accuracy.mean, found.accuracy.low, found.accuracy.high) == (0.75, 0.5, 1.0)
    assert found.accuracy.sd == pytest.approx(0.5 / np.sqrt(2))
    assert (found.held_out.accuracy.value, found.held_out.n) == (7 / 8, 8)
    assert [(fold.train, fold.validation, fold.held_out, fold.best_epoch) for fold in found.folds] == [
        (5, 3, 2, 4),
        (4, 2, 6, 7),
    ]
