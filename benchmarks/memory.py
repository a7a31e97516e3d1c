"""Resident size of the training process over many epochs: it should not grow.

    python -m benchmarks.memory ../shared/data/flower_photos --per-class 40 --workers 1

Reads VmRSS of the process that trains (the job itself, or the first of its workers) when each epoch's line appears in
metrics.jsonl. Options after those below go to the job.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.kill_resume import train_workers

ROOT = Path(__file__).resolve().parent.parent


def resident_mb(pid: int) -> float:
    """VmRSS of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--backbone", default="resnet50v2")
    parser.add_argument("--trainable", default="stage5")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "jobs.train", "--data", str(Path(arguments.data).resolve())]
        command += ["--storage", storage, "--name", "memory", "--backbone", arguments.backbone, "--weights", "random"]
        command += ["--trainable", arguments.trainable, "--head-epochs", "2", "--epochs", str(arguments.epochs)]
        command += ["--patience", "0", "--workers", str(arguments.workers), *more]
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        metrics = Path(storage, "memory", "metrics.jsonl")
        sizes: list[float] = []
        while job.poll() is None:
            lines = metrics.read_text().count("\n") if metrics.exists() else 0
            if lines > len(sizes):
                pid = train_workers(job.pid)[0] if arguments.workers > 1 else job.pid
                sizes += [resident_mb(pid)] * (lines - len(sizes))
            time.sleep(0.02)
        if job.returncode:
            sys.exit(f"the job ended with {job.returncode}")
    tail = sizes[2:]
    print("MB after each epoch of the tail: " + " ".join(f"{size:.0f}" for size in tail))
    first, last = statistics.median(tail[2:7]), statistics.median(tail[-5:])
    print(f"median of epochs 3-7 {first:.0f} MB, of the last five {last:.0f} MB: {100 * (last / first - 1):+.2f} %")


if __name__ == "__main__":
    main()
