from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import ROOT, SMALL, Done, Job, draw, environment
from tests.faults.processes import end, members

RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """A Ray head: HOST:PORT of it, the address of its jobs, and the environment to use."""

    place: str
    jobs: str
    env: dict[str, str]

    def submit(self, folder: Path, *entry: str) -> subprocess.CompletedProcess[str]:
        """Submits a job from `folder`, and waits for its end."""
        words = [str(RAY), "job", "submit", "--address", self.jobs, "--working-dir", str(ROOT), "--", *entry]
        deadline = time.monotonic() + 300
        while True:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=self.env, timeout=300)
            # The head answers before the agent that starts jobs is up.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head of its own, as `ray start --head` makes it."""
    port, dashboard = free_port(), free_port()
    env = {**environment(), "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    # As a cluster should be: nobody without the token submits jobs to it.
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
    words = [str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    words += ["--num-cpus=2", "--object-store-memory=500000000", f"--ray-client-server-port={free_port()}"]
    # Two on one machine would want the same port for the agent that starts jobs, and this one would go without.
    words += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    log = tmp_path_factory.mktemp("ray") / "head.log"
    with open(log, "w") as out:
        head = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out, env=env, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if requests.get(f"{address}/api/version", headers=token, timeout=2).ok:
                    break
            except requests.RequestException:
                pass
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Head(f"127.0.0.1:{port}", address, env)
    finally:
        for pid in members(head.pid):
            end(pid)
        head.wait()


def log_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the job itself, without those of `ray job submit`."""
    text = done.stdout.partition("Running entrypoint for job")[2]
    return [line for line in text.splitlines()[1:] if " -- " not in line]


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
