"""A job whose processes are killed: each is found in /proc by the job's session and ended by its id."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.e2e.conftest import ROOT, environment

T = TypeVar("T")

# Ray's processes end by themselves when their driver is gone, and may take so long. Its two agents take most of a
# minute to find that there is nobody left to report to: they are not waited for.
GONE_S = 30
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
PATIENCE_S = 240


@dataclass
class Running:
    """A job in a session of its own."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def train_workers(self) -> set[int]:
        return {pid for pid, line in members(self.pid).items() if "RayTrainWorker" in line}

    def until(self, condition: Callable[[], T], pause: float = 0.01) -> T:
        """Waits for something that happens while the job runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.poll() is None, f"too late: {self.out.read_text()}\n{self.err.read_text()}"
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(pause)
        return found

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Nothing in the job's process moves meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            self.until(lambda: stopped(self.pid), pause=0.0005)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    def kill_while(self, condition: Callable[[], bool], pause: float) -> None:
        """Kills the job while `condition` holds. It goes on for `pause` seconds between two looks and no longer."""

        def killed() -> bool:
            with self.halted():
                if found := condition():
                    end(self.pid)
            return found

        self.until(killed, pause)
        assert self.wait() == -signal.SIGKILL


@contextmanager
def running(command: list[str], logs: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Starts a job, in an environment of `env` if it is given; afterwards nothing of it is left."""
    logs.mkdir(parents=True, exist_ok=True)
    out, err = logs / "out", logs / "err"
    with out.open("wb") as first, err.open("wb") as second:  # not pipes: what outlives the job would hold them open
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=first, stderr=second, env=env or environment(), start_new_session=True
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            end(process.pid)
        process.wait()
        deadline = time.monotonic() + GONE_S
        while set((left := members(process.pid)).values()) - AGENTS and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            end(pid)


def members(session: int) -> dict[int, str]:
    """Command lines of the living processes of a session by process id; orphans stay in their session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                state, _, _, of, *_ = _stat(entry)
                if int(of) == session and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return found


def stopped(pid: int) -> bool:
    """Whether all threads of a process have stopped."""
    return all(_stat(task)[0] == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def end(pid: int) -> None:
    """Kills one process, unless it has just ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stat(entry: Path) -> list[str]:
    """State, parent, group, session and so on."""
    return (entry / "stat").read_text().rsplit(")", 1)[1].split()
