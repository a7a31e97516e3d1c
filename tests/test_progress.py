"""The stopwatch: its seconds add up, and a clock that is set does not reach it."""

from __future__ import annotations

import time

import pytest

import jobs
from flowers.progress import Stopwatch


def test_stages_add_up_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: moment)
    stopwatch = Stopwatch(moment)
    for stage, seconds in (("start", 2.0), ("read", 5.0), ("start", 1.0)):
        moment += seconds
        assert stopwatch.lap(stage) == seconds
    stopwatch.move(4.0, "read", "features")
    assert stopwatch.report() == {"total": 8.0, "start": 3.0, "read": 1.0, "features": 4.0}
    stopwatch.move(9.0, "read", "features")  # another clock said so: no stage is negative
    assert stopwatch.report() == {"total": 8.0, "start": 3.0, "read": 0.0, "features": 5.0}


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_is_set_changes_no_duration(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    stopwatch = Stopwatch(jobs.STARTED)
    set_clock = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: set_clock)
    assert 0 <= stopwatch.lap("start") < 86400
    assert 0 <= stopwatch.report()["total"] < 86400
