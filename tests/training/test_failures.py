"""What went wrong in a worker, and going on with fewer photos at a time when the memory does not suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowers.config import TrainConfig
from flowers.errors import FlowersError, InputError, OutOfMemory
from flowers.model import backbones
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import failures, trainer
from flowers.training.history import History
from flowers.training.step import Batches, Step
from tests.parity.runs import CLASSES, TINY, Place, drawn, fit, lines_of, newest, tiny_network


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("runs"), drawn(101, 37), tiny_network("mobilenetv2", "", 32, "float32"))


def planned(place: Place, name: str, **changes: Any) -> Plan:
    options = {"head_epochs": 1, "epochs": 2, "batch_size": 16, "learning_rate": 0.02, "l2": 0.01}
    # One block and the plainest optimizer make the smallest of TensorFlow's graphs.
    small = {"trainable": "block_16", "optimizer": "sgd"}
    return place.plan(name, TrainConfig(**{**TINY, **options, **small, **changes}))


# ---- notes


def test_a_note_stays_until_the_command_is_run_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    assert failures.noted(run) is None
    failures.note(run, InputError("it is ünusable"))
    found = failures.noted(run)
    assert type(found) is FlowersError
    assert str(found) == "it is ünusable"
    failures.forget(run)
    assert failures.noted(run) is None
    failures.forget(run)
    assert not list(tmp_path.iterdir())


def test_losses_are_counted(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    assert failures.losses(run) == 0
    failures.lose(run)
    failures.lose(run)
    assert failures.losses(run) == 2
    failures.forget(run)
    assert failures.losses(run) == 0


def test_a_worker_that_starts_after_a_note_ends_with_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place, "noted")
    failures.note(plan.run, FlowersError("the other worker failed"))
    with monkeypatch.context() as patch:
        patch.setattr(failures, "forget", lambda run: None)  # as if Ray had started it again within one `fit`
        with pytest.raises(FlowersError, match=r"^the other worker failed$"):
            fit(plan)
    assert lines_of(plan) == []
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)
    fit(plan)  # the user's next attempt
    assert len(lines_of(plan)) == 3


def test_half_as_many_photos_until_one_is_left(place: Place) -> None:
    plan = planned(place, "halves", auto_batch=True, batch_size=12)
    said = []
    for microbatches in (1, 2, 4, 8):
        assert failures.microbatches(plan.run) == microbatches
        failure = failures.out_of_memory(plan, 2)  # six photos each
        assert failure.retry == (microbatches < 6)
        assert len(str(failure).splitlines()) == 1
        said.append(str(failure).split(";")[0].split(",")[0])
    assert said == [
        "out of memory with 6 photos at a time: going on with 3",
        "out of memory with 3 photos at a time: going on with 2",
        "out of memory with 2 photos at a time: going on with 1",
        "out of memory with 1 photo at a time",
    ]


def test_without_the_option_nothing_is_noted(place: Place) -> None:
    plan = planned(place, "plain")
    failure = failures.out_of_memory(plan, 2)
    assert not failure.retry
    assert "out of memory with 8 photos at a time; lower --batch-size" in str(failure)
    for name in ("--batch-size", "--image-size", "--trainable", "--auto-batch"):
        assert name in str(failure)
    assert failures.microbatches(plan.run) == 1


# ---- out of memory in training


def exhausted(patch: pytest.MonkeyPatch, tail: bool, times: int = 1) -> list[int]:
    """Lets the first steps of a phase fail; returns the microbatches of those that were tried."""
    import tensorflow as tf

    run, tried = Step.run, []

    def failing(self: Step, batches: Batches) -> Any:
        if tail == (self.trained.body is not None):
            tried.append(self.microbatches)
            if len(tried) <= times:
                raise tf.errors.ResourceExhaustedError(None, None, "oom")
        return run(self, batches)

    patch.setattr(Step, "run", failing)
    return tried


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)


@pytest.mark.usefixtures("tiny")
def test_out_of_memory_says_what_to_do_and_keeps_what_is_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place, "exhausted")
    exhausted(monkeypatch, tail=True)
    told: list[str] = []
    with pytest.raises(OutOfMemory, match=r"^out of memory with 16 photos at a time; .*--batch-size") as caught:
        trainer.fit(plan, CLASSES, told.append)
    assert len(str(caught.value).splitlines()) == 1
    assert not told
    assert newest(plan).epoch == 1  # the head's


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("tail", "times"), [(False, 1), (True, 1), (True, 2)])
def test_auto_batch_goes_on_with_parts_and_gives_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, tail: bool, times: int
) -> None:
    plain = planned(place, "whole")
    fit(plain)
    plan = planned(place, f"parts-{tail}-{times}", auto_batch=True)
    with monkeypatch.context() as patch:
        tried = exhausted(patch, tail, times)
        told = fit(plan)
    assert told == [
        f"warning: out of memory with {size} photos at a time: going on with {size // 2}, their gradients added up, so "
        "the batch and its result stay"
        for size in (16, 8)[:times]
    ]
    assert tried == {1: [1, 2], 2: [1, 2, 4]}[times] + [2**times] * (len(tried) - times - 1)
    assert failures.microbatches(plan.run) == 2**times
    apart = ("phase", "seconds")
    for mine, other in zip(lines_of(plain, *apart), lines_of(plan, *apart), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    assert plan.config.replace(auto_batch=False).identity() == plain.config.identity()


@pytest.mark.usefixtures("tiny")
def test_no_epoch_is_trained_twice_for_want_of_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place, "counted", auto_batch=True)
    trained: list[int] = []
    add = History.add

    def counted(self: History, line: dict[str, Any]) -> None:
        trained.append(line["epoch"])
        add(self, line)

    monkeypatch.setattr(History, "add", counted)
    exhausted(monkeypatch, tail=True)
    fit(plan)
    assert trained == [1, 2, 3]


@pytest.mark.usefixtures("tiny")
def test_a_single_photo_that_is_too_much_ends_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place, "hopeless", auto_batch=True, batch_size=2, epochs=1)
    tried = exhausted(monkeypatch, tail=True, times=99)
    told: list[str] = []
    with pytest.raises(OutOfMemory, match="out of memory with 1 photo at a time; lower --batch-size"):
        trainer.fit(plan, CLASSES, told.append)
    assert tried == [1, 2]
    assert len(told) == 1
