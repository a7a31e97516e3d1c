"""The pace: epochs follow the measured speed, what was decided is kept, and one epoch is always trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.model import backbones
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import inputs, trainer
from flowers.training.history import History
from flowers.training.pace import Pace, epochs_that_fit, seconds_to_finish, steps_s
from flowers.training.step import Step
from tests.parity.runs import CLASSES, TINY, Place, check_same_state, drawn, lines_of, newest, tiny_network


@pytest.mark.parametrize(
    ("given", "same", "seconds"),
    [
        ("90s", "1m30s", 90), ("5m", "5m", 300), ("1h30m", "1h30m", 5400), ("3600s", "1h", 3600), ("1d", "1d", 86400),
        ("1w2d3h4m5s", "1w2d3h4m5s", 788645), ("05m", "5m", 300), ("0h5m", "5m", 300),
    ],
)  # fmt: skip
def test_a_time_is_the_same_however_it_is_written(given: str, same: str, seconds: int) -> None:
    config = TrainConfig(time_limit=given)
    assert (config.time_limit, config.limit_s) == (same, seconds)
    assert config.identity() == TrainConfig(time_limit=same).identity()


@pytest.mark.parametrize("text", ["", "5", "m", "1m1h", "0s", "-5m", "1.5h", "5 m", "5M", "1h1h", "²s", "5min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--time-limit: received '.*', required is a time such as 90s, 5m or 1h30m$"):
        TrainConfig(time_limit=text)


@given(st.integers(0, 50), st.integers(1, 100), st.floats(0, 1e4), st.floats(-100, 1e6))
def test_epochs_that_fit_are_neither_fewer_than_done_nor_more_than_wanted(
    done: int, most: int, epoch_s: float, left_s: float
) -> None:
    fit = epochs_that_fit(done, most, epoch_s, left_s)
    assert done <= fit <= max(done, most)
    assert (fit - done) * epoch_s <= max(left_s, 0)


def test_what_is_expected() -> None:
    assert steps_s([(4, 2.0), (2, 1.0)], 10) == 5
    assert steps_s([], 4) == 0
    assert seconds_to_finish(10.0, 0.05, 20) == 6


def test_the_head_leaves_time_for_the_tail() -> None:
    """A second an epoch, 8 s in all: a quarter is the head's, which needs a tenth more than measured."""
    made = History(Run(""), TrainConfig(trainable="stage5", head_epochs=9, epochs=9), budget_s=8.8)
    found = []
    for spent, epoch_s in ((1.0, 0.0), (1.1, 1.0), (2.1, 1.0), (9.0, 0.0)):  # 0: the first epoch was traced in one call
        phase = made.phase()
        assert phase is not None
        made.add({"val_log_loss": 1.0, "val_accuracy": 0.5})
        made.keep_pace(spent, epoch_s)
        found.append((phase.name, phase.epochs, dict(made.planned)))
    assert found == [
        ("head", 9, {}),
        ("head", 9, {"head": 3}),
        ("head", 3, {"head": 3}),
        ("tail", 9, {"head": 3, "tail": 1}),
    ]
    assert made.phase() is None


def test_without_any_time_one_epoch_of_the_head_is_trained() -> None:
    made = History(Run(""), TrainConfig(trainable="stage5"), budget_s=0.0)
    assert made.phase() is not None
    made.add({"val_log_loss": 1.0, "val_accuracy": 0.5})
    made.keep_pace(3.0, 0.0)
    assert (made.phase(), made.planned) == (None, {"head": 1, "tail": 0})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)
    return Place(tmp_path, drawn(40, 20), tiny_network("mobilenetv2", "", 32, ""))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the loop: a second for each call of TensorFlow, and nothing for anything else."""
    now, run = [0.0], Step.run

    def timed(self: Step, batches: Any) -> Any:
        now[0] += 1.0
        return run(self, batches)

    monkeypatch.setattr(Step, "run", timed)
    monkeypatch.setattr("flowers.training.loop.time.perf_counter", lambda: now[0])
    return now


def planned(place: Place, name: str, **changes: Any) -> Plan:
    config = {**TINY, "optimizer": "sgd", "head_epochs": 9, "epochs": 9, "batch_size": 16, "patience": 0, **changes}
    return place.plan(name, TrainConfig(**config, time_limit="1m"))


def fit(plan: Plan, budget: float) -> None:
    trainer.prepare(plan, pytest.fail)
    trainer.fit(plan, CLASSES, pytest.fail, pace=Pace(budget))


class Killed(Exception):
    """Stands for a process that is gone."""


def test_epochs_follow_the_speed_and_a_killed_run_keeps_what_was_decided(
    place: Place, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes a second, and 5 of 9 fit into 5.5."""
    whole = planned(place, "whole", trainable="head")
    fit(whole, 5.5)
    state = newest(whole).state
    assert (state["planned"], state["spent_s"], state["budget_s"], len(state["lines"])) == ({"head": 5}, 5.0, 5.5, 5)
    assert 0 < lines_of(whole)[-1]["learning_rate"] < 0.2 * 0.001, "the schedule ends where the time does"

    killed, commit = planned(place, "killed", trainable="head"), History.commit

    def dying(self: History, arrays: Any) -> str:
        if self.epoch == 3:
            raise Killed
        return commit(self, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(History, "commit", dying)
        with pytest.raises(Killed):
            fit(killed, 5.5)
    clock[0] += 1000.0  # nobody was at it
    fit(killed, 1.0)  # what is left of the time now changes nothing either
    check_same_state(whole, killed)


def test_a_phase_of_which_not_one_epoch_fits_is_left_for_good(
    place: Place, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three calls are an epoch: after the second one it is clear that the tail's first epoch takes too long."""
    monkeypatch.setattr(inputs, "MOST_STEPS", 1)
    plan = planned(place, "run", trainable="block_16")
    fit(plan, 5.5)
    assert clock == [5.0]
    assert [line["phase"] for line in lines_of(plan)] == ["head"]
    fit(plan, 100.0)
    assert clock == [5.0], "the run is over"
    assert newest(plan).state["planned"] == {"head": 1, "tail": 0}
