"""How far a run is: its best epoch, its phases, when it ends, and what going on from damaged checkpoints gives."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers.config import TrainConfig
from flowers.errors import FlowersError
from flowers.model import backbones
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import checkpoints
from flowers.training.history import History
from tests.parity.runs import TINY, Place, check_same_state, drawn, fit, kept, lines_of, newest, tiny_network


def options(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 99, **changes})


def measured(monitor: str, values: list[float], **changes: Any) -> History:
    """After epochs with these values, or fewer if it ends before."""
    made = History(Run(""), options(monitor=monitor, **changes))
    for value in values:
        if made.phase() is None:
            break
        # What is not monitored gets better all the time.
        better = {name: made.epoch * (-1.0 if name == "log_loss" else 1.0) for name in MONITORS}
        made.add({f"val_{name}": value if name == monitor else better[name] for name in MONITORS})
    return made


MONITORS = ("accuracy", "macro_accuracy", "log_loss")


# ---- when it ends


@pytest.mark.parametrize("monitor", MONITORS)
def test_it_stops_when_the_monitored_metric_gets_no_better(monitor: str) -> None:
    values = [0.5, 0.6, 0.7, 0.65, 0.7, 0.1, 0.9]
    signed = [-value for value in values] if monitor == "log_loss" else values
    made = measured(monitor, signed, patience=3)
    assert made.epoch == 6
    assert made.best == (3 if monitor == "log_loss" else 5)  # of equals that of the better log-loss, or the earlier
    assert made.phase() is None
    endless = measured(monitor, signed, patience=0)
    assert (endless.epoch, endless.best) == (7, 7)
    assert endless.phase() is not None


def test_a_small_gain_is_the_best_but_does_not_reset_the_patience() -> None:
    values = [0.5, 0.505, 0.508, 0.6, 0.601]
    made = measured("accuracy", values, patience=3, min_delta=0.01)
    assert (made.epoch, made.best, made.waited) == (5, 5, 1)
    stopped = measured("accuracy", values, patience=2, min_delta=0.01)
    assert (stopped.epoch, stopped.best, stopped.phase()) == (3, 3, None)


def test_it_ends_after_the_last_epoch() -> None:
    made = History(Run(""), options(epochs=2))
    for value in (2.0, 1.0):
        assert made.phase() is not None
        made.add({"val_log_loss": value, "val_accuracy": 0.5})
    assert made.phase() is None
    assert made.phase() is None


# ---- phases


def names(made: History, values: list[float]) -> list[str]:
    """The phase of each epoch, until the end."""
    found = []
    for value in values:
        phase = made.phase()
        if phase is None:
            break
        found.append(phase.name)
        made.add({"val_log_loss": value, "val_accuracy": 0.5})
    return found


def test_each_phase_has_its_epochs() -> None:
    made = History(Run(""), options(trainable="stage5", head_epochs=2, epochs=3))
    assert names(made, [1.0] * 9) == ["head", "head", "tail", "tail", "tail"]
    assert (made.epoch, made.best) == (5, 1)


def test_each_phase_has_its_own_patience() -> None:
    """The tail is first no better than the best head; that is compared with its own epochs only."""
    made = History(Run(""), options(trainable="stage5", head_epochs=9, epochs=9, patience=2, monitor="log_loss"))
    assert names(made, [0.5, 0.4, 0.4, 0.4, 0.9, 0.8, 0.7, 0.7, 0.7, 0.1]) == ["head"] * 4 + ["tail"] * 5
    assert made.best == 2
    assert made.phase() is None


def test_the_best_epoch_is_that_of_the_whole_run() -> None:
    made = History(Run(""), options(trainable="stage5", head_epochs=2, epochs=3))
    best = []
    for value in (0.9, 0.5, 0.8, 0.4, 0.6):
        made.phase()
        made.add({"val_log_loss": value, "val_accuracy": 0.5})
        best.append((made.best_before, made.best))
    assert best == [(0, 1), (1, 2), (2, 2), (2, 4), (4, 4)]


@pytest.mark.parametrize(
    ("monitor", "tail", "best"),
    [
        ("log_loss", [(0.3, 0.79), (0.35, 0.81), (0.2, 0.7), (0.34, 0.8)], 6),
        ("log_loss", [(0.3, 0.79), (0.41, 0.95), (0.4, 0.95)], 2),
        ("accuracy", [(0.3, 0.79), (9.0, 0.81), (0.2, 0.8)], 4),
        ("macro_accuracy", [(0.3, 0.79), (0.35, 0.8)], 4),
        (None, [(0.3, 0.79), (0.41, 0.95), (0.4, 0.81), (0.3, 0.81), (0.2, 0.8)], 6),
        (None, [(0.3, 0.79), (0.41, 0.95)], 2),
    ],
)
def test_a_deeper_epoch_beats_the_head_or_the_head_stays(
    tmp_path: Path, monitor: str | None, tail: list[tuple[float, float]], best: int
) -> None:
    """Better in what is monitored and never less accurate, or as it comes no worse in both; after going on, too."""
    config = options(trainable="stage5", head_epochs=2, epochs=9, monitor=monitor)
    made = History(Run(str(tmp_path)), config)
    for loss, accuracy in [(0.5, 0.9), (0.4, 0.8), *tail] if monitor == "log_loss" else [(0.5, 0.7), (0.4, 0.8), *tail]:
        made, _, _ = History.resume(Run(str(tmp_path)), config)
        made.phase()
        made.add({"val_log_loss": loss, "val_accuracy": accuracy, "val_macro_accuracy": 1 - loss})
        made.commit({})
    assert made.best == best


def test_a_run_begun_without_that_rule_goes_on_without_it(tmp_path: Path) -> None:
    config = options(trainable="stage5", head_epochs=1, epochs=9)
    made = History(Run(str(tmp_path)), config)
    made.add({"val_log_loss": 0.4, "val_accuracy": 0.8})
    del made.rival  # a checkpoint of before
    made.commit({})
    made, _, _ = History.resume(Run(str(tmp_path)), config)
    made.phase()
    made.add({"val_log_loss": 0.3, "val_accuracy": 0.7})
    assert (made.rival, made.best) == (None, 2)


# ---- what is kept


def test_commit_and_resume(tmp_path: Path) -> None:
    config = options(trainable="stage5", head_epochs=1, epochs=4)
    made = History(Run(str(tmp_path)), config)
    for number, value in enumerate([0.9, 0.1 + 0.2, 0.7]):
        made.phase()
        made.add({"epoch": number + 1, "val_log_loss": value, "val_accuracy": 0.5})
        uri = made.commit({"a": np.full(2, number)})
        assert uri == f"{tmp_path}/checkpoints/epoch-{number + 1:04d}"
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert lines == made.lines
    again, found, _ = History.resume(Run(str(tmp_path)), config)
    assert found is not None
    assert found.arrays["a"].tolist() == [2, 2]
    assert vars(again) == vars(made)
    assert (again.place, again.began, again.waited) == (1, 1, 1)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 4, "lo')
    again.rewrite()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == made.lines


def test_a_new_run_has_no_history(tmp_path: Path) -> None:
    made, found, _ = History.resume(Run(str(tmp_path)), options())
    assert found is None
    assert vars(made) == vars(History(Run(str(tmp_path)), options()))
    assert made.epoch == made.best == 0


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([0.9, 0.5, 0.8, 0.8, 0.4], [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]),
        ([0.9, 0.5, 0.8, 0.8, 0.8], [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]),
        ([0.1, 0.5, 0.8, 0.8, 0.8], [[1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5]]),
        ([0.9, 0.8, 0.7, 0.6, 0.5], [[1], [1, 2], [2, 3], [3, 4], [4, 5]]),
    ],
)
def test_the_two_newest_the_best_and_the_best_before_are_kept(
    tmp_path: Path, values: list[float], left: list[list[int]]
) -> None:
    made, found = History(Run(str(tmp_path)), options()), []
    for value in values:
        made.add({"val_log_loss": value, "val_accuracy": 0.5})
        made.commit({})
        found.append(sorted(int(path.name[6:]) for path in (tmp_path / "checkpoints").iterdir()))
    assert found == left
    for epoch in left[-1]:  # each can be gone on from, should those after it be lost
        state = checkpoints.load(checkpoints.uri_of(f"{tmp_path}/checkpoints", epoch)).state
        assert state["best"] in left[-1] or epoch < 4


# ---- going on from what is left


def run_of(place: Place, name: str) -> Plan:
    # One block and the plainest optimizer: TensorFlow's graph, made anew by every run, is what these tests take.
    options = {"trainable": "block_16", "optimizer": "sgd", "head_epochs": 2, "epochs": 3, "batch_size": 16}
    return place.plan(name, TrainConfig(**{**TINY, **options}, learning_rate=0.02))


SCRIPTS = {
    "best of the head": [0.9, 0.5, 0.8, 0.8, 0.7],
    "best at last": [0.9, 0.5, 0.8, 0.8, 0.4],
    "best before the last": [0.9, 0.5, 0.8, 0.4, 0.7],
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run for each of SCRIPTS, which say how good its epochs are held to be."""
    place = Place(tmp_path_factory.mktemp("runs"), drawn(101, 37), tiny_network("mobilenetv2", "", 32, ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build_backbone", tiny_network)
        for name, values in SCRIPTS.items():
            judge(patch, values)
            fit(run_of(place, name))
    return place


def judge(patch: pytest.MonkeyPatch, values: list[float]) -> list[int]:
    """Replaces the validation of each epoch; returns the list of epochs that will have been trained."""
    trained: list[int] = []

    def add(self: History, line: dict[str, Any]) -> None:
        trained.append(self.epoch + 1)
        ADD(self, {**line, "val_log_loss": values[self.epoch], "val_accuracy": 0.5})

    patch.setattr(History, "add", add)
    return trained


ADD = History.add


def spoil(plan: Plan, epoch: int, how: str) -> None:
    folder = Path(checkpoints.uri_of(plan.run.checkpoints, epoch))
    if how == "missing":
        shutil.rmtree(folder)
        return
    data = bytearray((folder / checkpoints.ARRAYS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / checkpoints.ARRAYS).write_bytes(data[:-1] if how == "cut" else data)


@pytest.mark.parametrize(
    ("script", "there", "lost", "how", "after"),
    [
        ("best of the head", [2, 4, 5], [5], "missing", 4),
        ("best of the head", [2, 4, 5], [5], "flipped", 4),
        ("best of the head", [2, 4, 5], [4, 5], "cut", 2),
        ("best of the head", [2, 4, 5], [2], "missing", 0),  # the others would end without their best one
        ("best of the head", [2, 4, 5], [2], "flipped", 0),
        ("best at last", [2, 4, 5], [5], "cut", 4),
        ("best at last", [2, 4, 5], [2], "missing", 5),
        ("best at last", [2, 4, 5], [2, 5], "flipped", 0),
        ("best before the last", [4, 5], [5], "missing", 4),
        ("best before the last", [4, 5], [4], "cut", 0),
        ("best before the last", [4, 5], [4, 5], "missing", 0),
    ],
)
def test_a_run_goes_on_from_what_is_whole_and_ends_the_same(
    finished: Place,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    there: list[int],
    lost: list[int],
    how: str,
    after: int,
) -> None:
    whole = run_of(finished, script)
    assert kept(whole) == there
    shutil.rmtree(finished.folder / "again", ignore_errors=True)
    shutil.copytree(whole.run.uri, finished.folder / "again")
    again = run_of(finished, "again")
    for epoch in lost:
        spoil(again, epoch, how)
    trained = judge(monkeypatch, SCRIPTS[script])
    told = fit(again)
    assert trained == list(range(after + 1, 6))
    skipped = [epoch for epoch in there if epoch > after and (how != "missing" or epoch not in lost)]
    assert len(told) == len(skipped)
    assert all(line.startswith("warning: skipped a checkpoint that cannot be used: ") for line in told)
    check_same_state(whole, again)
    assert kept(again) == (there if after < 5 else [4, 5])


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_later(
    finished: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, epoch: int
) -> None:
    whole = run_of(finished, "best of the head")
    place = Place(tmp_path, finished.photos, finished.network)
    plan = run_of(place, "full")
    judge(monkeypatch, SCRIPTS["best of the head"])
    savez, calls = np.savez, iter(range(1, 9))

    def full(file: Any, **arrays: Any) -> None:
        savez(file, **arrays)
        if next(calls) == epoch:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(FlowersError, match=f"no space left for the checkpoint of epoch {epoch} ") as caught:
            fit(plan)
    assert len(str(caught.value).splitlines()) == 1
    assert kept(plan) == {1: [], 4: [2, 3]}[epoch]  # nor is there a half-written folder
    assert len(lines_of(plan)) == epoch - 1
    assert fit(plan) == []
    check_same_state(whole, plan)


def test_what_a_killed_process_left_half_written_is_swept(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_of(finished, "best at last")
    shutil.rmtree(finished.folder / "again", ignore_errors=True)
    shutil.copytree(whole.run.uri, finished.folder / "again")
    again = run_of(finished, "again")
    folder = Path(again.run.checkpoints)
    shutil.copytree(folder / "epoch-0005", folder / ".writing-0123")
    aside = "epoch-0005.0123456789abcdef0123456789abcdef.old"  # killed between the two renames of `publish`
    shutil.move(folder / "epoch-0005", folder / aside)
    judge(monkeypatch, SCRIPTS["best at last"])
    assert fit(again) == []
    assert kept(again) == [2, 4, 5]
    check_same_state(whole, again)
    assert newest(again).epoch == 5
