"""Validation accuracy of some ways to train, several seeds, each a cold run of the job: docs/accuracy.md.

`python -m benchmarks.accuracy ../shared/data/flower_photos --weights WEIGHTS.h5`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "head": (),
    "head + flip": ("--augment", "flip"),
    "block_16": ("--trainable", "block_16"),
    "block_13": ("--trainable", "block_13"),
    "quick": ("--recipe", "quick"),
    "balanced": ("--recipe", "balanced"),
    "accurate": ("--recipe", "accurate"),
    "accurate + standard": ("--recipe", "accurate", "--augment", "standard"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    arguments, more = parser.parse_known_args()
    heads = (
        "setting",
        "validation accuracy by seed",
        "mean",
        "range",
        "log-loss, mean",
        "with test",
        "wall time, median",
    )
    print(f"| {' | '.join(heads)} |")
    print("|-|-|-:|-:|-:|-:|-:|", flush=True)
    for setting in arguments.settings:
        accuracy, loss, both, seconds = [], [], [], []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as storage:
                command = [sys.executable, "-m", "jobs.train", "--data", arguments.data, "--storage", storage]
                command += ["--name", "run", "--backbone", arguments.backbone, "--weights", arguments.weights]
                began = time.perf_counter()
                done = subprocess.run(
                    [*command, *SETTINGS[setting], "--seed", str(seed), *more], cwd=ROOT, capture_output=True, text=True
                )
                seconds.append(time.perf_counter() - began)
                if done.returncode:
                    sys.exit(f"{done.stdout}\n{done.stderr}")
                report = json.loads(Path(storage, "run", "report.json").read_text())
                found = report["validation"]
                held = [report[subset]["accuracy"] for subset in ("validation", "test") if report[subset]["n"]]
                right = sum(metric["value"] * metric["n"] for metric in held)
                both.append(100 * right / sum(metric["n"] for metric in held))
                accuracy.append(100 * found["accuracy"]["value"])
                loss.append(found["log_loss"]["value"])
        each = ", ".join(f"{value:.1f}" for value in accuracy)
        print(
            f"| {setting} | {each} | {statistics.mean(accuracy):.1f} % | {max(accuracy) - min(accuracy):.1f} | "
            f"{statistics.mean(loss):.3f} | {statistics.mean(both):.1f} % | {statistics.median(seconds):.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
