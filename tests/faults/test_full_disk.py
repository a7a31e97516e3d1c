"""The disk is full, at a checkpoint and at any other write: one line, nothing torn, and the same command goes on."""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowers.training import checkpoints
from tests.e2e.conftest import SMALL, Done, Job, draw
from tests.faults.conftest import Place, Progress, result
from tests.faults.test_power_cut import system

# More than anything else the job writes from then on, less than a checkpoint of the tail.
LIMIT = 40 << 10


@contextmanager
def full_once(path: Path) -> Iterator[None]:
    """Not more than `LIMIT` bytes fit into a file of this process as soon as there is something at `path`.

    Writing fails as on a full disk then, with another number; Ray's processes go on as they are.
    """
    before, ended = resource.getrlimit(resource.RLIMIT_FSIZE), threading.Event()

    def limit() -> None:
        while not path.exists() and not ended.is_set():
            ended.wait(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))

    thread = threading.Thread(target=limit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(place: Place, reference: Done) -> None:
    progress = Progress(place.storage / "full")
    with full_once(progress.run / "config.json"):
        failed = place.job(place.storage, "full", *place.arguments(), code=1)
    err = failed.err
    assert err.count("\n") == 1, err
    assert "no space left for the checkpoint of epoch 4" in err
    assert "make room and run the same command again" in err
    assert not progress.writing()
    found, skipped = checkpoints.newest(str(progress.run / "checkpoints"))
    assert found is not None
    assert (found.epoch, skipped) == (3, [])
    again = place.finish("full")
    assert "going on after epoch 3" in again.out
    assert result(again) == result(reference)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own at `folder`; yields the function that makes so much room on it."""
    folder.mkdir()
    try:
        system("mount", "-t", "tmpfs", "-o", "size=4k", "none", folder)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield functools.partial(_make_room, folder)
    finally:
        system("umount", "--lazy", folder)


def _make_room(folder: Path, room: int) -> None:
    state = os.statvfs(folder)
    used = (state.f_blocks - state.f_bfree) * state.f_frsize
    system("mount", "-o", f"remount,size={used + room}", folder)


# Bytes of room: after none, at the probe, it ends at the converted network, the features, the checkpoints, the bundle.
ROOM = (4 << 10, 9000 << 10, 60 << 10, 120 << 10, 16 << 20)


def test_a_small_disk_that_grows(job: Job, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", classes=2, each=8)
    words = ("--data", data, *SMALL, "--epochs", 2, "--augment", "flip")
    expected = job(tmp_path / "runs", "run", *words)
    with small_disk(tmp_path / "small") as make_room:
        (tmp_path / "small" / "other").write_bytes(bytes(4 << 10))
        for room in ROOM:
            failed = job(tmp_path / "small", "run", *words, code=1)
            assert failed.err.count("\n") == 1, failed.err
            assert "no space left for " in failed.err
            assert "make room and run the same command again" in failed.err
            assert not (failed.run / "report.json").exists()
            assert not list((tmp_path / "small").rglob(".writing-*"))
            make_room(room)
        failed = job(tmp_path / "small", "run", *words, code=1)
        assert "no space left for " in failed.err, failed.err
        make_room(64 << 20)
        assert result(job(tmp_path / "small", "run", *words)) == result(expected)
