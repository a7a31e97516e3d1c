from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of its own, as `ray start --head` makes it: the address of its jobs, and the environment to use."""
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
        yield address, env
    finally:
        for pid in members(head.pid):
            end(pid)
        head.wait()


def test_submitted_job_ends_with_the_same_metrics(
    job: Job, cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, env = cluster
    data = draw(tmp_path / "data", classes=3, each=12)
    options = [str(word) for word in ("--data", data, *SMALL, "--epochs", 6)]
    entry = ["python", "-m", "jobs.train", "--storage", str(tmp_path / "submitted"), "--name", "run", *options]
    words = [str(RAY), "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *entry]
    deadline = time.monotonic() + 300
    while True:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=300)
        # The head answers before the agent that starts jobs is up.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    submitted = Done(0, done.stdout, done.stderr, tmp_path / "submitted" / "run")
    local = job(tmp_path / "local", "run", *options)
    assert submitted.metrics() == local.metrics()
    assert submitted.report["test"] == local.report["test"]
    assert submitted.report["weights_sha256"] == local.report["weights_sha256"]
