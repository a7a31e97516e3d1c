"""A small job of both phases that really learns, and its result when nothing goes wrong."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowers.config import TrainConfig
from flowers.options import flag
from tests.e2e.conftest import WITH_TINY, Done, Job, command, draw
from tests.e2e.conftest import job as job
from tests.e2e.conftest import tiny as tiny
from tests.e2e.conftest import tiny_job as tiny_job

SIZE = 64
OPTIONS: dict[str, Any] = {
    "backbone": "mobilenetv2",
    "weights": "random",
    "image_size": SIZE,
    "precision": "float32",
    "trainable": "block_16",
    "augment": "none",
    "label_smoothing": 0.0,
    "head_epochs": 3,
    "epochs": 8,
    "tail_learning_rate": 0.001,
    "patience": 0,
    "batch_size": 2,
}
HEAD_EPOCHS, EPOCHS = 3, 11


@dataclass(frozen=True)
class Place:
    """Photos and the storage of all runs, whose cache the reference has filled.

    All jobs build a tiny network: what happens to processes and files is tested here.

    Attributes:
        job: runs a command to its end.
        data: 72 pictures of 3 classes.
        storage: of all runs.
    """

    job: Job
    data: Path
    storage: Path

    @property
    def options(self) -> dict[str, Any]:
        return {**OPTIONS, "data": str(self.data)}

    def config(self, name: str) -> TrainConfig:
        return TrainConfig(**self.options, storage=str(self.storage), name=name)

    def arguments(self, **changes: object) -> list[object]:
        return [word for name, value in (self.options | changes).items() for word in (flag(name), value)]

    def command(self, name: str, **changes: object) -> list[str]:
        return [*WITH_TINY, *command(self.storage, name, *self.arguments(**changes))]

    def finish(self, name: str, code: int = 0, **changes: object) -> Done:
        """Runs the command to its end; nothing half-written is left."""
        done = self.job(self.storage, name, *self.arguments(**changes), code=code)
        for folder in (done.run, done.run / "checkpoints"):
            names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
            assert not [name for name in names if name.startswith(".writing-") or name.endswith((".tmp", ".old"))]
        return done


@dataclass(frozen=True)
class Progress:
    """How far a run is, from its files.

    Attributes:
        run: its folder.
    """

    run: Path

    def lines(self) -> list[dict[str, Any]]:
        metrics = self.run / "metrics.jsonl"
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

    def checkpoint(self) -> int:
        """The newest epoch that has a checkpoint, 0 before the first."""
        return max((int(path.name[6:]) for path in self.run.glob("checkpoints/epoch-????")), default=0)

    def writing(self) -> list[Path]:
        """Checkpoints that are being written."""
        return list(self.run.glob("checkpoints/.writing-*"))

    def in_the_middle(self, first: int) -> bool:
        """Whether a third of an epoch has gone by since epoch `first` of the tail or a later one ended."""
        lines = self.lines()
        if not first <= len(lines) < EPOCHS or self.checkpoint() > len(lines) or self.writing():
            return False
        waited = time.time() - (self.run / "metrics.jsonl").stat().st_mtime
        return waited > lines[-1]["seconds"] / 3


@pytest.fixture(scope="session")
def place(tiny_job: Job, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    data = draw(folder / "data", classes=3, each=24)
    for number in range(4):  # wrong labels: the last epoch is not the best one
        one, other = (data / label / f"{number:03}.jpg" for label in ("class0", "class1"))
        photo = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(photo)
    return Place(tiny_job, data, folder / "runs")


@pytest.fixture(scope="session")
def reference(place: Place) -> Done:
    """The run that nothing happened to."""
    done = place.finish("reference")
    losses = [line["loss"] for line in done.metrics()]
    assert len(losses) == EPOCHS
    assert all(abs(now - before) > 1e-4 for before, now in itertools.pairwise(losses)), (
        "equal numbers would mean nothing"
    )
    assert [line["phase"] for line in done.metrics()] == ["head"] * HEAD_EPOCHS + ["tail"] * (EPOCHS - HEAD_EPOCHS)
    assert HEAD_EPOCHS < done.report["best_epoch"] < EPOCHS
    return done


def result(done: Done) -> dict[str, Any]:
    """What has to be the same, whatever happened on the way."""
    report = done.report
    names = ("validation", "test", "best_epoch", "weights_sha256")
    return {"metrics": done.metrics(), **{name: report[name] for name in names}}


def nearly(one: Any, other: Any) -> bool:
    """Whether two results are the same up to the order of sums, which differs with the number of workers."""
    if isinstance(one, dict):
        names = one.keys() - {"weights_sha256"}
        return one.keys() == other.keys() and all(nearly(one[name], other[name]) for name in names)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(nearly, one, other))
    # A probability near 1 is in steps of 6e-8, and so is the logarithm of it.
    return bool(other == (pytest.approx(one, rel=1e-5, abs=3e-7) if isinstance(one, float) else one))
