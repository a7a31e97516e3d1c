"""Locks: one process at a time, on a disk and in a bucket; a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flowers import locks, storage
from flowers.errors import FlowersError, StoreFailed

# Where the lock is, and whether there is flock.
PLACES = ["disk", "bucket", "disk without flock"]
PATIENCE_S = 60


@pytest.fixture
def runs(bucket: Path) -> Path:
    """mem://runs."""
    (bucket / "runs").mkdir()
    return bucket / "runs"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PAUSE_S", 0.01)


def without_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=PLACES)
def uri(request: pytest.FixtureRequest, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lock; the file system of a bucket does not know which process is dead."""
    if request.param == "disk without flock":
        monkeypatch.setattr(fcntl, "flock", without_flock)
    (tmp_path / "disk").mkdir()
    return "mem://runs/.run.lock" if request.param == "bucket" else str(tmp_path / "disk" / ".run.lock")


def left(tmp_path: Path) -> list[str]:
    return [path.name for folder in ("disk", "bucket/runs") for path in (tmp_path / folder).iterdir()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ready_now(pipe: int) -> None:
    os.write(pipe, b".")


@contextmanager
def process(function: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """Another process that runs `function`; it is there when that has called its argument."""
    ready, say = os.pipe()
    if (child := os.fork()) == 0:
        try:
            function(lambda: ready_now(say))
        finally:
            os._exit(0)
    os.close(say)
    try:
        assert os.read(ready, 1) == b"."
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def holding(uri: str) -> Callable[[Callable[[], None]], None]:
    def hold(ready: Callable[[], None]) -> None:
        with locks.hold(uri):
            ready()
            signal.pause()

    return hold


def test_the_second_is_told_who_holds_it(uri: str, tmp_path: Path) -> None:
    with process(holding(uri)) as other:
        for _ in range(2):
            with (
                pytest.raises(locks.InUse, match=rf"^process {other} on \S+ since 20\S+:\S+") as caught,
                locks.hold(uri),
            ):
                pytest.fail("two hold it")
            assert len(str(caught.value).splitlines()) == 1
        found = locks.holder(uri)
        assert found is not None
        assert found.pid == other


def test_one_after_the_other(uri: str, tmp_path: Path) -> None:
    for _ in range(2):
        with locks.hold(uri):
            pass
        with pytest.raises(KeyError), locks.hold(uri):
            raise KeyError
    assert locks.holder(uri) is None
    assert left(tmp_path) == []


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_killed_process_is_in_nobodys_way(tmp_path: Path, runs: Path, place: str) -> None:
    (tmp_path / "disk").mkdir()
    uri = "mem://runs/.run.lock" if place == "bucket" else str(tmp_path / "disk" / ".run.lock")
    with process(holding(uri)):
        pass
    assert left(tmp_path), "it left its lock"
    with locks.hold(uri):
        pass
    assert left(tmp_path) == []
    with process(holding(uri)):
        pass
    assert locks.holder(uri) is None
    assert left(tmp_path) == []


def test_of_many_at_once_one_is_in_at_a_time(uri: str, tmp_path: Path) -> None:
    inside, entered = tmp_path / "inside", tmp_path / "entered"

    def try_often(ready: Callable[[], None]) -> None:
        done, deadline = 0, time.monotonic() + PATIENCE_S
        while done < 3 and time.monotonic() < deadline:
            try:
                with locks.hold(uri):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if somebody else is in
                    inside.unlink()
                done += 1
            except locks.InUse:
                pass
        with entered.open("a") as file:
            file.write("done\n" if done == 3 else "never in\n")
        ready()

    children = [os.fork() for _ in range(1)]
    if children == [0]:
        try:
            with process(try_often), process(try_often):
                pass
        finally:
            os._exit(0)
    os.waitpid(children[0], 0)
    assert entered.read_text().splitlines() == ["done", "done"]


def claim_of_another_machine(runs: Path, age: float) -> Path:
    body = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}
    claim = runs / f".run.lock.{'0' * 32}"
    claim.write_text(json.dumps(body))
    written = time.time() - age
    os.utime(claim, (written, written))
    return claim


def test_a_claim_of_another_machine_is_alive_until_its_lease_ends(runs: Path) -> None:
    claim = claim_of_another_machine(runs, age=20)
    said = r"process 7 on elsewhere since 2026-01-01T00:00:00\+00:00, last heard of 2\d s ago .* ends in [34]\d s"
    with pytest.raises(locks.InUse, match=said), locks.hold("mem://runs/.run.lock"):
        pytest.fail("two hold it")
    assert claim.exists()
    claim_of_another_machine(runs, age=locks.LEASE_S + 20)
    assert locks.holder("mem://runs/.run.lock") is None
    claim_of_another_machine(runs, age=locks.LEASE_S + 20)
    with locks.hold("mem://runs/.run.lock"):
        assert not claim.exists()


def test_a_claim_that_cannot_be_read_is_one(runs: Path) -> None:
    claim_of_another_machine(runs, age=20).write_text("")
    with pytest.raises(locks.InUse, match=r"^another process$"), locks.hold("mem://runs/.run.lock"):
        pytest.fail("two hold it")
    assert locks.holder("mem://runs/.run.lock") is not None


def test_our_own_clock_says_nothing_of_the_age_of_a_claim(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_of_another_machine(runs, age=20)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(locks.InUse), locks.hold("mem://runs/.run.lock"):
        pytest.fail("two hold it")


def test_a_claim_is_renewed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.005)
    with locks.hold("mem://runs/.run.lock"):
        (claim,) = (path for path in runs.iterdir() if path.suffix != ".tmp")
        first = claim.stat().st_mtime_ns
        until(lambda: claim.stat().st_mtime_ns > first)
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("how", ["removed", "silent for too long"])
def test_who_loses_its_claim_ends(runs: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def lose() -> None:
        with locks.hold("mem://runs/.run.lock"):
            (claim,) = (path for path in runs.iterdir() if path.suffix != ".tmp")

            def damaged() -> bool:
                """Again and again: it may be renewed at the same moment."""
                with suppress(FileNotFoundError):
                    claim.unlink() if how == "removed" else os.utime(claim, (5, 5))
                return False

            until(damaged)

    monkeypatch.setattr(locks, "BEAT_S", 0.005)
    with pytest.raises(FlowersError, match=r"lost: this process gave no sign of life .* run the same command again"):
        lose()
    assert list(runs.iterdir()) == []


def test_ctrl_c_stays_what_it_is(runs: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locks.hold("mem://runs/.run.lock"):
        raise KeyboardInterrupt
    assert list(runs.iterdir()) == []


def test_a_lock_of_which_nothing_was_written_yet(tmp_path: Path) -> None:
    uri = str(tmp_path / "lock")
    with locks.hold(uri):
        os.truncate(uri, 0)
        with pytest.raises(locks.InUse, match=r"^another process$"), locks.hold(uri):
            pytest.fail("two hold it")
        assert locks.holder(uri) is not None
    storage.write(uri, b"\0" * 20)
    assert locks.holder(uri) is None


def test_a_claim_that_cannot_be_removed_keeps_nobody_on_this_machine(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> None:
        raise StoreFailed("the object store failed")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_file", refused)
        with locks.hold("mem://runs/.run.lock"):
            pass
    assert len(list(runs.iterdir())) == 1
    with locks.hold("mem://runs/.run.lock"):
        pass
    assert list(runs.iterdir()) == []
