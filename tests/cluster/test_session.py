"""Starting what a job stands on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import pytest

from flowers.cluster.session import background, joined, ray_session
from flowers.errors import FlowersError
from tests.conftest import ROOT


def refuse(**_: object) -> None:
    raise ConnectionError("no answer\nand much more")


@pytest.mark.parametrize(("address", "place"), [("", "Ray on this machine"), ("auto", "auto")])
def test_ray_that_does_not_start_is_one_line(address: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # also where the tests' own Ray runs
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FlowersError, match=place) as caught, ray_session(verbose=False):
        pass
    assert "no answer" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "localhost:{port}"])
def test_a_dead_head_is_one_line_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        name = address.format(port=held.getsockname()[1])
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for minutes"))
        monkeypatch.setenv("RAY_ADDRESS", name)
        began = time.monotonic()
        with pytest.raises(FlowersError, match="nobody answers") as caught, ray_session(verbose=False):
            pass
    assert time.monotonic() - began < 20
    assert repr(name) in str(caught.value)
    assert "unset RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize("address", ["", "  ", "local", None])
def test_no_address_is_ray_of_its_own(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **given: options.update(given))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_session(verbose=False):
        assert options["address"] == "local"
        assert not joined()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setenv(name, "/tmp/" + "x" * 60)
    with pytest.raises(FlowersError, match=f"{name} is .* too long.* RAY_TMPDIR=/tmp"), ray_session(verbose=False):
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with ray_session(verbose=False):
        pass


@pytest.mark.parametrize(("times", "starts"), [(0, 1), (1, 2), (2, 2)])
def test_ray_that_is_slow_to_start_is_started_once_more(
    times: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def init(**_: object) -> None:
        calls.append("init")
        if calls.count("init") <= times:
            raise Exception("The current node timed out during startup. This could happen")  # Ray's own kind

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    ends: Any = nullcontext() if times < 2 else pytest.raises(FlowersError, match="timed out")
    with ends, ray_session(verbose=False):
        calls.append("used")
    assert calls.count("init") == starts
    assert ("used" in calls) == (times < 2)


BUSY = """
import sys, threading
import ray
from flowers.cluster.session import ray_session

def work():
    while references:
        cycle = [references.pop()]  # only the collector frees it
        cycle.append(cycle)

with ray_session(verbose=False):
    references = [ray.put(number) for number in range(20_000)]
    threading.Thread(target=work, daemon=True).start()
print("alive")
"""


@pytest.mark.ray
def test_garbage_that_holds_references_does_not_end_the_process() -> None:
    """What made jobs end with 1 and without a word after their last epoch."""
    words = [sys.executable, "-c", BUSY]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_an_error_in_the_background_waits_in_the_future() -> None:
    future = background(lambda: 1 // 0, "divide")
    with pytest.raises(ZeroDivisionError):
        future.result()
