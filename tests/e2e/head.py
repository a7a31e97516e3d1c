"""A Ray head of its own, as `ray start --head` makes it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.e2e.conftest import ROOT, environment
from tests.faults.processes import Running, end, members, running

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
        words = [*self._job("submit"), "--working-dir", str(ROOT), "--", *entry]
        deadline = time.monotonic() + 300
        while True:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=self.env, timeout=300)
            # The head answers before the agent that starts jobs is up.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)

    @contextmanager
    def submitted(self, folder: Path, name: str, *entry: str) -> Iterator[Running]:
        """Submits a job of this name, which runs meanwhile: the process is that of `ray job submit`."""
        words = [*self._job("submit"), "--submission-id", name, "--working-dir", str(ROOT), "--", *entry]
        with running(words, folder / name, self.env) as job:
            yield job

    def stop(self, name: str) -> None:
        """Stops a job as `ray job stop` does, and waits for its end."""
        subprocess.run([*self._job("stop"), name], cwd=ROOT, check=True, capture_output=True, env=self.env, timeout=300)

    def _job(self, word: str) -> list[str]:
        return [str(RAY), "job", word, "--address", self.jobs]


@contextmanager
def started_head(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Starts a head; afterwards nothing of it is left.

    Args:
        folder: where it writes head.log; made if it is not there.
        more: variables of its environment.
    """
    port, dashboard = free_port(), free_port()
    env = {
        **environment(),
        **(more or {}),
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # As a cluster should be: nobody without the token submits jobs to it.
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
    words = [str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    words += ["--num-cpus=2", "--object-store-memory=500000000", f"--ray-client-server-port={free_port()}"]
    # Two on one machine would want the same port for the agent that starts jobs, and this one would go without.
    words += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "head.log"
    # In this folder Ray notes which cluster a submitted job joins: another one on this machine must not do so, too. It
    # is a short one, for the names of sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own, open(log, "w") as out:
        words.append(f"--temp-dir={own}")
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
