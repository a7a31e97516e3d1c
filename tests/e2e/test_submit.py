"""Jobs that are submitted to a cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowers.runs import Run
from tests.e2e.conftest import ROOT, SMALL, Done, Job, draw
from tests.e2e.head import Head, started_head
from tests.faults.processes import end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started_head(tmp_path_factory.mktemp("ray")) as head:
        yield head


def log_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the job itself, without those of `ray job submit`."""
    text = done.stdout.partition("Running entrypoint for job")[2]
    return [line for line in text.splitlines()[1:] if " -- " not in line]


def lines(file: str) -> int:
    """How many lines a file has; none if it is not there."""
    return len(Path(file).read_text().splitlines()) if Path(file).exists() else 0


def test_submitted_job_ends_with_the_same_metrics(job: Job, cluster: Head, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", classes=3, each=12)
    options = [str(word) for word in ("--data", data, *SMALL, "--epochs", 6)]
    entry = ["python", "-m", "jobs.train", "--storage", str(tmp_path / "submitted"), "--name", "run", *options]
    done = cluster.submit(tmp_path, *entry)
    assert done.returncode == 0, done.stdout + done.stderr
    submitted = Done(0, done.stdout, done.stderr, tmp_path / "submitted" / "run")
    local = job(tmp_path / "local", "run", *options)
    assert submitted.metrics() == local.metrics()
    assert submitted.report["test"] == local.report["test"]
    assert submitted.report["weights_sha256"] == local.report["weights_sha256"]
    lines = log_of(done)
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if "WARN" in line.upper() and not line.startswith("warning: ")]
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == list("123456")
    assert lines[-1] == f"bundle    {submitted.run}/best"


@pytest.mark.ray
def test_a_job_that_is_stopped_or_killed_says_so_and_goes_on(cluster: Head, tmp_path: Path) -> None:
    data, run = draw(tmp_path / "data", classes=2, each=8), Run(str(tmp_path / "runs" / "run"))
    options = [*map(str, ("--data", data, *SMALL, "--epochs", 100_000, "--patience", 0))]
    entry = ["python", "-m", "jobs.train", "--storage", str(tmp_path / "runs"), "--name", "run", *options]
    resume = "Nothing is lost: the same command goes on from the last finished epoch."

    def status() -> dict[str, Any]:
        return dict(json.loads(Path(run.status).read_text()))

    with cluster.submitted(tmp_path, "first", *entry) as job:
        job.until(lambda: lines(run.metrics) > 2)
        cluster.stop("first")
        assert job.wait() == 0  # as Ray has it for a job that was stopped
    assert job.out.read_text().count(f"Stopped. {resume}\n") == 1
    assert (status()["state"], status()["why"]) == ("stopped", "the same command goes on")
    done = lines(run.metrics)
    with cluster.submitted(tmp_path, "second", *entry) as job:
        job.until(lambda: lines(run.metrics) > done and "going on after epoch" in job.out.read_text())
        assert run.killed() is None
        end(status()["pid"])
        assert job.wait() == 1
    went_on = re.search(r"going on after epoch (\d+)\n", job.out.read_text())
    assert went_on is not None
    assert done <= int(went_on[1]) <= done + 1  # the checkpoint of an epoch is there before its line
    assert f"error: the program was killed, perhaps because memory ran out, or a library ended it. {resume}" in (
        job.out.read_text()
    )
    assert status()["state"] == "running"
    assert (run.killed() or "").startswith(f"process {status()['pid']} on ")


@pytest.mark.ray
def test_results_that_ray_would_delete_are_refused(cluster: Head, tmp_path: Path) -> None:
    done = cluster.submit(tmp_path, "python", "-m", "jobs.train")
    assert done.returncode != 0
    first = log_of(done)[0]  # after it Ray says that the job failed, and shows its last lines
    assert first.startswith("error: --storage: the default 'runs' lies in Ray's temporary copy")


KNOCK = """
import os, sys
from flowers.cluster.access import access
from flowers.errors import InputError
right = os.environ.pop("RAY_AUTH_TOKEN")
os.environ.pop("RAY_AUTH_MODE")
for token, mode in ((right, ""), ("wrong" * 9, ""), ("", ""), (right, "disabled")):
    os.environ.update(RAY_AUTH_TOKEN=token, RAY_AUTH_MODE=mode)
    try:
        with access(sys.argv[1]):
            print("in")
    except InputError as error:
        print(error)
"""


@pytest.mark.ray
def test_a_real_head_lets_in_whom_the_stand_in_does(cluster: Head, tmp_path: Path) -> None:
    """See tests/cluster/test_access.py."""
    words, env = [sys.executable, "-c", KNOCK, cluster.place], {**cluster.env, "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env, timeout=60, check=True)
    right, wrong, none, disabled = done.stdout.splitlines()
    assert right == "in"
    assert "does not take the token" in wrong
    assert "there is none here" in none
    assert "unset RAY_AUTH_MODE" in disabled
