"""Speed of the training job against a plain Keras script, whole processes in turn, medians.

    python -m benchmarks.train_speed ../shared/data/flower_photos

(a) 200 photos, cold   (b) all photos, cold   (c) feature stage against the bare forward pass
(d) the same photos again with another learning rate: the features come from the cache
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers.model.precision import resolve_precision
from flowers.model.registry import BACKBONES

ROOT = Path(__file__).resolve().parent.parent
# Those that plain_keras.py feeds as they were trained.
NAMES = ("resnet50v2", "resnet101v2", "mobilenetv2")
WANTED = {
    "float32": "at least 2.0 for MobileNetV2, 1.35 for ResNet50V2",
    "bfloat16": "at least 1.2 for MobileNetV2, 1.0 for ResNet50V2",
}
# What the words of our --precision are called in Keras.
KERAS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def run(command: list[str]) -> tuple[float, str]:
    """Runs one process to its end; seconds of wall time and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, done.stdout


def ours(data: str, storage: str, name: str, arguments: argparse.Namespace, *more: str) -> tuple[float, Any]:
    """One run of the job; seconds and its report."""
    command = [sys.executable, "-m", "jobs.train", "--data", data, "--storage", storage, "--name", name]
    command += ["--backbone", arguments.backbone, "--weights", "random", "--precision", arguments.precision]
    command += ["--epochs", str(arguments.epochs), "--patience", "0", *more]
    seconds, _ = run(command)
    return seconds, json.loads(Path(storage, name, "report.json").read_text())


def plain(data: str, scratch: str, arguments: argparse.Namespace) -> float:
    """One run of the plain script; seconds."""
    command = [sys.executable, "-m", "benchmarks.plain_keras", data, scratch]
    command += ["--backbone", BACKBONES[arguments.backbone].constructor, "--epochs", str(arguments.epochs)]
    command += ["--precision", KERAS[arguments.precision]]
    return run(command)[0]


def subset(data: str, folder: str, per_class: int) -> str:
    """A folder of links to the first photos of each class."""
    for source in sorted(Path(data).iterdir()):
        target = Path(folder, source.name)
        target.mkdir(parents=True)
        for photo in sorted(source.iterdir())[:per_class]:
            os.symlink(photo.resolve(), target / photo.name)
    return folder


def show(case: str, rows: Sequence[tuple[float, ...]], names: tuple[str, ...], target: str) -> None:
    """One line: the medians, and the median of the rounds' ratios of the first two."""
    medians = "  ".join(
        f"{name} {statistics.median(column):.1f}" for name, column in zip(names, zip(*rows, strict=True), strict=True)
    )
    ratios = [row[0] / row[1] for row in rows]
    print(
        f"({case}) {medians}   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), "
        f"wanted {target}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", choices=NAMES, default="resnet50v2")
    parser.add_argument("--precision", choices=list(KERAS), default=resolve_precision("auto")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="abcd")
    arguments = parser.parse_args()
    data = str(Path(arguments.data).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        small = subset(data, f"{scratch}/small", 40)
        for case, folder, target in (("a", small, "at most 1.0"), ("b", data, "at most 0.75")):
            if case not in arguments.cases:
                continue
            rows = []
            for number in range(arguments.rounds):
                storage = f"{scratch}/{case}{number}"
                seconds, report = ours(folder, storage, "cold", arguments)
                rows.append((seconds, plain(folder, scratch, arguments)))
                print(f"    ours {rows[-1][0]:.1f} s {report['timing_s']}, plain {rows[-1][1]:.1f} s", flush=True)
            show(case, rows, ("ours s", "plain s"), target)
        if not set("cd") & set(arguments.cases):
            return
        features, warm = [], []
        for number in range(arguments.rounds):
            storage = f"{scratch}/cd{number}"
            first, report = ours(data, storage, "first", arguments)
            backbone = BACKBONES[arguments.backbone].constructor
            command = [sys.executable, "-m", "benchmarks.bare_forward", "--backbone", backbone]
            command += ["--precision", KERAS[arguments.precision]]
            bare = json.loads(run(command)[1])["images_per_s"]
            features.append((report["images_per_s"]["features"], bare))
            if "d" in arguments.cases:
                second, again = ours(data, storage, "second", arguments, "--learning-rate", "0.003")
                warm.append((second, first))
                print(f"    first {first:.1f} s, second {second:.1f} s {again['timing_s']}", flush=True)
        show(
            "c",
            features,
            ("features images/s", "bare images/s"),
            WANTED[arguments.precision],
        )
        if warm:
            show("d", warm, ("second run s", "first run s"), "at most 0.35")


if __name__ == "__main__":
    main()
