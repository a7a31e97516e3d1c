"""Starting what a job stands on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flowers.cluster import lean
from flowers.cluster.access import joined
from flowers.cluster.session import background, node, ray_session
from flowers.data.reading import stream_tables, tables
from flowers.errors import FlowersError
from tests.conftest import ROOT
from tests.faults.processes import members, running


def refuse(**_: object) -> None:
    raise ConnectionError("no answer\nand much more")


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # also where the tests' own Ray runs
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(FlowersError, match="Ray on this machine") as caught, ray_session(verbose=False):
        pass
    assert "no answer" in str(caught.value)
    assert "\n" not in str(caught.value)


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


@pytest.mark.usefixtures("ray")
def test_only_what_is_needed_runs() -> None:
    import ray

    assert set(node().all_processes) == {"gcs_server", "raylet"}
    before = ray.util.list_named_actors(all_namespaces=True)  # of Ray Train and of pools of actors, in tests before
    photos = stream_tables([pa.table({"a": [1]}), pa.table({"a": [2]})], lambda block: block, readers=2)
    assert [row for table in tables(photos) for row in table["a"].to_pylist()] == [1, 2]
    # Ray Data starts two, which nobody asks anything.
    assert ray.util.list_named_actors(all_namespaces=True) == before
    assert "datasets_stats_actor" not in {actor["name"] for actor in before}


def test_what_is_no_longer_there_is_not_left_out_in_silence() -> None:
    with pytest.raises(KeyError), lean.replaced(lean, gone=1):
        pass


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
import gc, threading
import pyarrow as pa
import ray
from flowers.cluster.session import ray_session
from flowers.data.reading import stream_tables, tables

def work():
    while references:
        cycle = [references.pop()]  # only the collector frees it
        cycle.append(cycle)

def stopped():
    blocks = [pa.table({"a": [number]}) for number in range(64)]
    found = tables(stream_tables(blocks, lambda block: block, readers=2))
    next(found)
    raise KeyboardInterrupt

try:
    with ray_session(verbose=False):
        references = [ray.put(number) for number in range(20_000)]
        threading.Thread(target=work, daemon=True).start()
        stopped()
except KeyboardInterrupt as error:
    kept = error
del kept  # with what its traceback keeps: the pass over the blocks
gc.collect()
print("alive", ray.is_initialized())
"""


@pytest.mark.ray
def test_what_is_left_when_a_session_ends_does_neither_end_the_process_nor_start_another_ray(tmp_path: Path) -> None:
    """References in garbage made jobs end with 1, without a word; a pass that was stopped started another Ray."""
    words, env = [sys.executable, "-c", BUSY], {key: value for key, value in os.environ.items() if "AUTH" not in key}
    env["HOME"] = str(tmp_path)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive False\n", "")
    assert not (tmp_path / ".ray").exists()  # a token there would be asked for by every `ray start` from then on


STOPPED = """
import click, ray, time
from flowers import cli
from flowers.cluster.session import ray_session

@click.command()
def main():
    cli.console(verbose=False)
    with ray_session(verbose=False):
        task = ray.remote(lambda: time.sleep(60)).remote()
        print("started", flush=True)
        ray.get(task)

cli.run_command(main, "stopped", "Go on.")
"""


@pytest.mark.ray
@pytest.mark.parametrize("when", ["Ray starts", "a task runs"])
def test_a_signal_to_all_processes_of_a_job_stops_it_like_one_to_the_job(when: str, tmp_path: Path) -> None:
    """As `timeout` sends it, while Ray starts and later: Ray must not end before the job, nor answer in its place."""
    with running([sys.executable, "-c", STOPPED], tmp_path) as job:
        if when == "Ray starts":
            job.until(lambda: any("gcs_server" in line for line in members(job.pid).values()))
        else:
            job.until(lambda: job.out.read_text() == "started\n")
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait() == 143
        said = job.err.read_text()
    assert said.removeprefix("Stopping. Go on.\n") == "Stopped. Go on.\n"


def test_an_error_in_the_background_waits_in_the_future() -> None:
    future = background(lambda: 1 // 0, "divide")
    with pytest.raises(ZeroDivisionError):
        future.result()
