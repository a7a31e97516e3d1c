"""Checkpoints of a run without a report are damaged or gone; the same command ends with the same result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowers.model.registry import cut_of
from flowers.model.weights import weights_key
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import trainer
from tests.e2e.conftest import Done, wide
from tests.faults.conftest import EPOCHS, SIZE, Place, Progress, result

Damage = Callable[[Path, int], None]


def cut_newest(checkpoints: Path, best: int) -> None:
    path = checkpoints / f"epoch-{EPOCHS:04d}" / "state.npz"
    os.truncate(path, path.stat().st_size // 2)


def empty_newest(checkpoints: Path, best: int) -> None:
    os.truncate(checkpoints / f"epoch-{EPOCHS:04d}" / "state.npz", 0)


def remove_newest(checkpoints: Path, best: int) -> None:
    shutil.rmtree(checkpoints / f"epoch-{EPOCHS:04d}")


def remove_all(checkpoints: Path, best: int) -> None:
    shutil.rmtree(checkpoints)


def flip_a_bit_of_the_best(checkpoints: Path, best: int) -> None:
    path = checkpoints / f"epoch-{best:04d}" / "state.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unfinished(reference: Done, name: str, damage: Damage) -> Path:
    """A copy of the reference as if it had been killed after training, with damaged checkpoints."""
    run = reference.run.parent / name
    shutil.copytree(reference.run, run)
    (run / "report.json").unlink()
    shutil.rmtree(run / "best")
    damage(run / "checkpoints", reference.report["best_epoch"])
    return run


# The epoch to go on from, and how many checkpoints are skipped: without the best one the newer ones are of no use.
WHOLE = [(cut_newest, EPOCHS - 1, 1), (flip_a_bit_of_the_best, 0, 3)]
ALONE = [(empty_newest, EPOCHS - 1, 1), (remove_newest, EPOCHS - 1, 0), (remove_all, 0, 0)]


@pytest.mark.parametrize(("damage", "left", "skipped"), WHOLE)
def test_the_same_command(place: Place, reference: Done, damage: Damage, left: int, skipped: int) -> None:
    name = damage.__name__
    unfinished(reference, name, damage)
    again = place.finish(name)
    assert again.out.count("warning: skipped a checkpoint that cannot be used: ") == skipped
    assert ("going on after epoch" in again.out) == bool(left)
    assert again.out.count("\nepoch ") == EPOCHS - left, "epochs that are trained again are shown"
    assert result(again) == result(reference)


@pytest.mark.parametrize(("damage", "left", "skipped"), ALONE)
def test_training_alone(place: Place, reference: Done, damage: Damage, left: int, skipped: int) -> None:
    run = unfinished(reference, damage.__name__, damage)
    config = place.config(run.name)
    plan = Plan(
        config=config,
        run=Run(str(run)),
        image_size=SIZE,
        weights=config.weights,
        start_weights=weights_key(config.backbone, config.weights),
        precision=config.precision,
        cut=cut_of(config.backbone, config.trainable),
    )
    said: list[str] = []
    before = Progress(run).checkpoint()
    with wide():
        trainer.prepare(plan, said.append)
        trainer.fit(plan, tuple(reference.report["data"]["classes"]), said.append)
    assert [line.startswith("warning: skipped a checkpoint ") for line in said] == [True] * skipped
    assert before == (EPOCHS if skipped else left)
    assert Done(0, "", "", run).metrics() == reference.metrics()
    for mine, wanted in zip(trainer.best(Run(str(run))), trainer.best(Run(str(reference.run))), strict=True):
        assert mine.epoch == wanted.epoch
        assert mine.arrays.keys() == wanted.arrays.keys()
        for name, array in wanted.arrays.items():
            np.testing.assert_array_equal(mine.arrays[name], array, err_msg=name)
