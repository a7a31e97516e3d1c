"""Seconds of a warm run's start against a bare start of Ray and its first task, whole processes in turn, medians.

    python -m benchmarks.start ../shared/data/flower_photos --weights WEIGHTS.h5

Start is what the report calls so: from the process's beginning until photos flow, imports, network and plan included.
The bare process imports Ray and Ray Data, as the job has to, starts Ray as it comes, and runs one task.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.train_speed import ROOT, run

BARE = """
import ray, ray.data
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get(ray.remote(lambda: 1).remote())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "jobs.train", "--data", str(arguments.data.resolve()), "--storage", storage]
        command += ["--backbone", arguments.backbone, "--weights", arguments.weights]
        command += ["--per-class", str(arguments.per_class)]
        subprocess.run([*command, "--name", "cold"], cwd=ROOT, check=True, capture_output=True)
        bare, whole, start = list[float](), list[float](), list[float]()
        for number in range(arguments.rounds):
            bare.append(run([sys.executable, "-c", BARE])[0])
            name = f"warm-{number}"
            whole.append(run([*command, "--name", name, "--learning-rate", f"{0.001 + number / 1e6}"])[0])
            start.append(json.loads(Path(storage, name, "report.json").read_text())["timing_s"]["start"])
    for name, seconds in (("bare", bare), ("start", start), ("whole job", whole)):
        print(f"{name:10} {statistics.median(seconds):.1f} s  ({min(seconds):.1f} to {max(seconds):.1f})")
    print(f"start / bare: {statistics.median(start) / statistics.median(bare):.2f}")


if __name__ == "__main__":
    main()
