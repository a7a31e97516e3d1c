"""Kills a job at random moments, runs the same command again, and counts how often the result is the same.

    python -m benchmarks.kill_resume --kills 20
    python -m benchmarks.kill_resume --kills 20 --workers 2        # by turns the driver and a train worker

An uninterrupted run is the reference (a second one shows whether it can be repeated): lines of metrics (without the
times), validation and test metrics and the hash of the weights have to be equal. Every run has a storage, and so a
cache, of its own. What is not an option here goes to jobs.train, e.g. --trainable head. The code must not change
meanwhile. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.processes import end, members

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--backbone mobilenetv2 --weights random --image-size 96 --precision float32 --trainable block_14 "
    "--head-epochs 4 --epochs 6 --patience 0"
)
NAME = "run"
ATTEMPTS = 3
ENDED = "had ended"
# Ray's processes end by themselves when their driver has gone; this is how long they may take. Its two agents take
# most of a minute to find that there is nobody left to report to: they are ended without a word.
LEFT_OVER_S = 10
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")


def train_workers(session: int) -> list[int]:
    """Processes of Ray Train's workers."""
    return sorted(pid for pid, line in members(session).items() if "RayTrainWorker" in line)


@contextmanager
def job(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a job as the leader of a session of its own; afterwards nothing of it is left."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "TF_CONFIG")}
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        deadline = time.monotonic() + LEFT_OVER_S
        while (left := members(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid, line in left.items():
            if not any(agent in line for agent in AGENTS):
                print(f"    still there {LEFT_OVER_S} s later, killed: {pid} {line[:80]}", flush=True)
            end(pid)


def finished(command: list[str], log: Path, seconds: float | None = None) -> int:
    """Runs a job to its end; its exit code, or -SIGKILL after so many seconds."""
    with job(command, log) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL


def reference(command: list[str], log: Path) -> tuple[float, float, float]:
    """Runs a job to its end; its seconds, and when it had train workers (0 to the end if it never had)."""
    seen = []
    began = time.monotonic()
    with job(command, log) as process:
        while process.poll() is None:
            if train_workers(process.pid):
                seen.append(time.monotonic() - began)
            time.sleep(0.2)
        duration = time.monotonic() - began
    if process.returncode:
        sys.exit(f"the uninterrupted run failed\n{log.read_text()}")
    return duration, min(seen, default=0.0), max(seen, default=duration)


def interrupted(command: list[str], log: Path, moment: float, worker: bool, limit: float) -> tuple[str, int | None]:
    """Starts a job and kills its driver, or one of its train workers, after `moment` seconds.

    Args:
        command: of the job.
        log: file for what it prints.
        moment: seconds after the start; for a worker, the first moment from then on at which there is one.
        worker: kill a worker; its driver is then left `limit` seconds to recover.
        limit: seconds.

    Returns:
        How far the job was when it was killed, and its exit code if it came to an end by itself.
    """
    with job(command, log) as process:
        time.sleep(moment)
        victims = [process.pid]
        while worker and process.poll() is None and not (victims := train_workers(process.pid)):
            time.sleep(0.05)
        if process.poll() is not None:
            return ENDED, process.returncode
        where = progress(run_folder(command))
        end(victims[-1])
        if not worker:
            return where, None
        try:
            return where, process.wait(limit)
        except subprocess.TimeoutExpired:
            return where, None


def run_folder(command: list[str]) -> Path:
    return Path(command[command.index("--storage") + 1], NAME)


def progress(run: Path) -> str:
    """How far a run is, from its files."""
    if (run / "report.json").exists():
        return "report written"
    if not (run / "config.json").exists():
        return "before the split"
    lines = metrics(run)
    return f"after epoch {len(lines)} ({lines[-1].get('phase', 'head')})" if lines else "before epoch 1"


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the times; none if there is no such file."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def result(run: Path) -> dict[str, Any]:
    """What has to be the same, whatever happened on the way."""
    report = json.loads((run / "report.json").read_text())
    return {"metrics": metrics(run)} | {key: report[key] for key in ("validation", "test", "weights_sha256")}


def compared(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    wrong = [name for name in wanted if found[name] != wanted[name]]
    return f"different: {', '.join(wrong)}" if wrong else "same"


def command_of(storage: Path, arguments: argparse.Namespace, more: list[str]) -> list[str]:
    command = [sys.executable, "-m", "jobs.train", "--data", arguments.data, *SMALL.split()]
    return [*command, "--workers", str(arguments.workers), *more, "--storage", str(storage), "--name", NAME]


def trial(
    command: list[str], log: Path, moment: float, worker: bool, limit: float, wanted: dict[str, Any]
) -> str | None:
    """One kill and the way back, as a line; it ends with "same" where the result is that of the reference.

    None if the job was quicker than the reference, so that there was nothing left to kill.
    """
    where, code = interrupted(command, log, moment, worker, limit)
    if where == ENDED and code == 0:
        return None
    again = 0
    while code != 0 and again < ATTEMPTS:
        code = finished(command, log, limit)
        again += 1
    if code != 0:
        outcome = f"exit code {code} after {ATTEMPTS} more runs"
    else:
        outcome = compared(result(run_folder(command)), wanted)
    victim = "worker" if worker else "driver"
    return f"{victim} at {moment:5.1f} s  {where:24}  {again} more run{' ' if again == 1 else 's'}  {outcome}"


def campaign(scratch: Path, arguments: argparse.Namespace, more: list[str]) -> int:
    """The reference and all kills; how many ended with the same result, whose folders are removed."""
    moments = random.Random(arguments.seed)
    command = command_of(scratch / "reference", arguments, more)
    duration, first, last = reference(command, scratch / "reference.log")
    wanted = result(run_folder(command))
    # Where a second run without a kill differs as well, what differs below is not the kill's doing.
    control = command_of(scratch / "control", arguments, more)
    reference(control, scratch / "control.log")
    again = compared(result(run_folder(control)), wanted)
    print(f"    uninterrupted {duration:.1f} s, {len(wanted['metrics'])} epochs; once more: {again}", flush=True)
    same = 0
    for number in range(arguments.kills):
        worker = arguments.workers > 1 and number % 2 == 1
        low, high = (first, last) if worker else (0, duration)
        storage, log = scratch / str(number), scratch / f"{number}.log"
        killed = command_of(storage, arguments, more)
        while not (line := trial(killed, log, moments.uniform(low, high), worker, 5 * duration + 120, wanted)):
            shutil.rmtree(storage)
            low, high = low / 2, high / 2
        print(f"{number + 1:3d}  {line}", flush=True)
        if line.endswith("same"):
            same += 1
            shutil.rmtree(storage)
    return same


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", default="sample")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=1)
    arguments, more = parser.parse_known_args()
    if Path(arguments.data).exists():
        arguments.data = str(Path(arguments.data).resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the job is ended as well
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as scratch:
        same = campaign(Path(scratch), arguments, more)
        print(f"{same} of {arguments.kills} recovered with the same result")
        if same < arguments.kills:
            kept = shutil.copytree(scratch, tempfile.mkdtemp(prefix="kill-resume-kept-"), dirs_exist_ok=True)
            print(f"the others, with their logs, are in {kept}")
    return int(same < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
