"""Speed of the fine-tuning job against a plain Keras script, whole processes in turn, medians.

    python -m benchmarks.finetune_speed ../shared/data/flower_photos

(a) plain in float32 against ours   (b) plain in mixed_bfloat16 against ours
(c) two workers with one CPU each against one worker with two threads: the whole job, and an epoch of the tail
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.train_speed import ours, run, show, subset
from flowers.model.registry import BACKBONES

PRECISIONS = {"a": ("float32", "at least 3.0"), "b": ("mixed_bfloat16", "at least 1.8")}


def finetuned(data: str, storage: str, arguments: argparse.Namespace, *more: str) -> tuple[float, Any, float]:
    """One cold run of the job; seconds, its report, and the median seconds of an epoch of the tail."""
    options = ["--trainable", "stage5", "--head-epochs", str(arguments.head_epochs), "--tail-learning-rate", "1e-5"]
    seconds, report = ours(data, storage, "run", arguments, *options, *more)
    lines = [json.loads(line) for line in Path(storage, "run", "metrics.jsonl").read_text().splitlines()]
    return seconds, report, statistics.median(line["seconds"] for line in lines if line["phase"] == "tail")


def plain(data: str, scratch: str, precision: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """One run of the plain script; seconds, and the median seconds of an epoch of its second phase."""
    command = ["benchmarks.plain_finetune", data, scratch, "--backbone", BACKBONES[arguments.backbone].constructor]
    command += ["--precision", precision]
    command += ["--epochs", str(arguments.epochs), "--head-epochs", str(arguments.head_epochs)]
    seconds, out = run([sys.executable, "-m", *command])
    return seconds, statistics.median(json.loads(out.strip().splitlines()[-1])["epoch_s"])


def against_plain(data: str, scratch: str, cases: list[str], arguments: argparse.Namespace) -> None:
    """Cases a and b: in each round ours once, and each plain script."""
    rows: dict[str, list[tuple[float, ...]]] = {case: [] for case in cases}
    for number in range(arguments.rounds):
        seconds, report, epoch = finetuned(data, f"{scratch}/ab{number}", arguments)
        print(f"    ours {seconds:.1f} s, epoch {epoch:.2f} s {report['timing_s']}", flush=True)
        for case in cases:
            precision, _ = PRECISIONS[case]
            plain_s, plain_epoch = plain(data, scratch, precision, arguments)
            rows[case].append((plain_s, seconds))
            print(f"    plain {precision} {plain_s:.1f} s, epoch {plain_epoch:.2f} s", flush=True)
    for case in cases:
        show(case, rows[case], ("plain s", "ours s"), PRECISIONS[case][1])


def divided(data: str, scratch: str, arguments: argparse.Namespace) -> None:
    """Case c: the same two CPUs, divided between two workers or not."""
    jobs, epochs = [], []
    for number in range(arguments.rounds):
        found = {}
        for workers, cpus in ((2, 1), (1, 2)):
            options = ("--workers", str(workers), "--cpus-per-worker", str(cpus))
            seconds, report, epoch = found[workers] = finetuned(
                data, f"{scratch}/c{number}{workers}", arguments, *options
            )
            print(f"    {workers} workers {seconds:.1f} s, epoch {epoch:.2f} s {report['timing_s']}", flush=True)
        jobs.append((found[2][0], found[1][0]))
        epochs.append((found[2][2], found[1][2]))
    show("c", jobs, ("2 workers s", "1 worker s"), "near 1, see where the time goes")
    show("c, epoch of the tail", epochs, ("2 workers s", "1 worker s"), "near 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", choices=("resnet50v2", "resnet101v2"), default="resnet50v2")
    parser.add_argument("--epochs", type=int, default=10, help="of stage 5")
    parser.add_argument("--head-epochs", type=int, default=1, help="of the head before, the same for both")
    parser.add_argument("--per-class", type=int, help="take only so many photos of each class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="abc")
    arguments = parser.parse_args()
    data = str(Path(arguments.data).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.per_class:
            data = subset(data, f"{scratch}/photos", arguments.per_class)
        if cases := [case for case in PRECISIONS if case in arguments.cases]:
            against_plain(data, scratch, cases, arguments)
        if "c" in arguments.cases:
            divided(data, scratch, arguments)


if __name__ == "__main__":
    main()
