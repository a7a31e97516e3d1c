"""What is committed to a disk is the old or the new, never nothing and never a part, wherever its process is killed.

A process of its own does it, and is ended before the k-th step that changes the disk, for every k.
"""

from __future__ import annotations

import builtins
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers import locks, storage
from flowers.config import TrainConfig
from flowers.features.cache import FeatureCache
from flowers.runs import Run
from flowers.training import checkpoints
from tests.test_runs import ledger

ENDED = 9
# What changes a disk; `open` counts when it is for writing.
STEPS = [(os, name) for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "pwrite")]


def count_down(steps: int) -> None:
    """Ends this process before the step of that number."""
    left = itertools.count(steps, -1)

    def counted(function: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(left) == 0:
                os._exit(ENDED)
            return function(*arguments, **options)

        return step

    for module, name in STEPS:
        setattr(module, name, counted(getattr(module, name)))
    plain = builtins.open
    writing = counted(plain)

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return (plain if mode in ("r", "rb") else writing)(file, mode, *arguments, **options)

    builtins.open = opened


def every_step(
    folder: Path, before: Callable[[str], None], commit: Callable[[str], None]
) -> Iterator[tuple[str, bool]]:
    """Folders in which `commit` was killed, a step later each time, and at last one in which it was not.

    Args:
        folder: where they are made.
        before: puts into such a folder what is there first.
        commit: is killed.

    Yields:
        The folder, and whether the commit came to its end.
    """
    before(str(folder / "before"))
    for steps in itertools.count():
        assert steps < 200
        target = folder / str(steps)
        shutil.copytree(folder / "before", target)
        if (child := os.fork()) == 0:
            try:
                count_down(steps)
                commit(str(target))
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, ENDED), "the commit failed by itself"
        yield str(target), code == 0
        if code == 0:
            assert steps > 2, "the steps are not seen"
            return


def test_a_file(tmp_path: Path) -> None:
    def write(folder: str, data: bytes = b"new" * 1000) -> None:
        storage.write(f"{folder}/deep/file", data)

    for folder, done in every_step(tmp_path, lambda folder: write(folder, b"old"), write):
        storage.sweep(f"{folder}/deep")
        assert storage.read(f"{folder}/deep/file") in ([b"new" * 1000] if done else [b"old", b"new" * 1000])
        assert storage.names(f"{folder}/deep") == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder(tmp_path: Path, there: bool) -> None:
    def publish(folder: str, content: str = "new") -> None:
        work = storage.working_folder(f"{folder}/best")
        for name in ("a", "b"):
            with open(f"{work}/{name}", "w") as file:
                file.write(content)
        storage.publish(work, f"{folder}/best", last="b")

    first = (lambda folder: publish(folder, "old")) if there else os.mkdir
    for folder, done in every_step(tmp_path, first, publish):
        storage.sweep(folder)
        held = {storage.read(f"{folder}/best/{name}") for name in storage.names(f"{folder}/best")}
        assert held in ([{b"new"}] if done else [{b"new"}, {b"old"} if there else set()])
        assert storage.names(folder) == ["best"] * bool(held)


def checkpoint(epoch: int, best: int) -> checkpoints.Checkpoint:
    return checkpoints.Checkpoint(epoch, {"a": np.full(10, epoch)}, {"best": best})


def test_a_checkpoint_and_the_removal_of_older_ones(tmp_path: Path) -> None:
    def before(folder: str) -> None:
        for epoch, best in ((1, 1), (2, 1), (3, 3)):
            checkpoints.save(folder, checkpoint(epoch, best))

    def commit(folder: str) -> None:
        checkpoints.save(folder, checkpoint(4, 4))
        checkpoints.prune(folder, {3, 4})

    for folder, done in every_step(tmp_path, before, commit):
        storage.sweep(folder)
        found, skipped = checkpoints.newest(folder)
        assert found is not None
        assert not skipped
        assert found.epoch in ([4] if done else [3, 4])
        assert (found.arrays["a"] == found.epoch).all()


def test_a_part_of_a_cache(tmp_path: Path) -> None:
    digests = [bytes([number]) * 32 for number in range(4)]

    def fill(folder: str, photos: list[bytes] = digests[2:]) -> None:
        cache = FeatureCache(f"{folder}/cache").open()
        cache.add(photos, np.ones((2, 3), np.float32))
        cache.flush()

    for folder, done in every_step(tmp_path, lambda folder: fill(folder, digests[:2]), fill):
        cache = FeatureCache(f"{folder}/cache").open()
        assert not cache.damaged
        assert set(cache.digests()) in ([set(digests)] if done else [set(digests), set(digests[:2])])


def config(folder: str, **options: Any) -> TrainConfig:
    return TrainConfig(storage=folder, name="mine", **options)


@pytest.mark.parametrize("begun", [False, True])
def test_the_beginning_of_a_run(tmp_path: Path, begun: bool) -> None:
    def begin(folder: str) -> None:
        run = Run.of(config(folder))
        with run.held():
            run.open(config(folder))
            run.begin(config(folder), ledger())

    for folder, _ in every_step(tmp_path, begin if begun else os.mkdir, begin):
        assert locks.holder(Run.of(config(folder)).lock) is None
        begin(folder)
        assert sorted(os.listdir(f"{folder}/mine")) == ["config.json", "ledger.parquet", "split.parquet"]
        assert os.listdir(folder) == ["mine"]


def test_starting_over(tmp_path: Path) -> None:
    """The same command, with --fresh, may be given again wherever it was killed; the old run is never half of one."""

    def before(folder: str) -> None:
        run = Run.of(config(folder))
        run.open(config(folder))
        run.begin(config(folder), ledger())
        checkpoints.save(run.checkpoints, checkpoint(1, 1))
        storage.write(run.report, b"{}")

    def over(folder: str) -> None:
        fresh = config(folder, epochs=3, fresh=True)
        run = Run.of(fresh)
        with run.held():
            run.open(fresh)
            run.begin(fresh, ledger())

    for folder, _ in every_step(tmp_path, before, over):
        over(folder)
        assert sorted(os.listdir(f"{folder}/mine")) == ["config.json", "ledger.parquet", "split.parquet"]
        assert b'"epochs": 3' in storage.read(f"{folder}/mine/config.json")
