"""A process for bounded work: results and errors pass; what takes too much or crashes is ended, and it goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowers.bounded import BoundedProcess, Crashed, Exhausted
from flowers.errors import BadImage

MEMORY = 50 << 20


@pytest.fixture(scope="module")
def process() -> Iterator[BoundedProcess]:
    process = BoundedProcess(0.2, MEMORY)
    yield process
    process.close()


def spin() -> None:
    while True:
        pass


def fill(size: int) -> int:
    return len(bytearray(size))


def refuse() -> None:
    raise BadImage("corrupt", "as asked")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_results_and_errors_pass(process: BoundedProcess) -> None:
    first = process.call(os.getpid)
    assert first != os.getpid()
    assert process.call(len, b"x" * (3 << 20)) == 3 << 20
    with pytest.raises(BadImage, match="as asked"):
        process.call(refuse)
    assert process.call(os.getpid) == first


def test_too_much_time_ends_the_process(process: BoundedProcess) -> None:
    first = process.call(os.getpid)
    with pytest.raises(Exhausted):
        process.call(spin)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert process.call(os.getpid) != first


def test_time_is_counted_anew_for_each_call(process: BoundedProcess) -> None:
    first = process.call(os.getpid)
    for _ in range(5):
        assert process.call(sum, range(2_000_000)) > 0  # far above 0.2 s together, or nearly, on any machine
    assert process.call(os.getpid) == first


def test_too_much_memory_is_refused_each_time_and_the_process_stays(process: BoundedProcess) -> None:
    first = process.call(os.getpid)
    for _ in range(2):
        assert process.call(fill, MEMORY // 2) == MEMORY // 2
        with pytest.raises(Exhausted):
            process.call(fill, 2 * MEMORY)
    assert process.call(os.getpid) == first


def test_a_crash_is_told_by_its_signal(process: BoundedProcess) -> None:
    with pytest.raises(Crashed, match="SIGSEGV"):
        process.call(crash)
    assert process.call(fill, 1) == 1


def test_a_process_that_cannot_start_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers.bounded._MAIN", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        BoundedProcess(1, MEMORY).call(fill, 1)


def test_threads_take_turns(process: BoundedProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda size: process.call(fill, size), range(64))) == list(range(64))


def test_it_ends_with_the_one_that_asks() -> None:
    process = BoundedProcess(1, MEMORY)
    child = process.call(os.getpid)
    watch = threading.Thread(target=os.waitpid, args=(child, 0), daemon=True)
    watch.start()
    assert process._connection
    process._connection.close()  # as when the process that asks is killed
    watch.join(20)
    assert not watch.is_alive()
