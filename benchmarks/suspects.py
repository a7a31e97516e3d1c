"""What finding wrong labels is worth: some are flipped in a copy of the photos, found, and corrected by suspects.csv.

`python -m benchmarks.suspects ../shared/data/flower_photos --weights WEIGHTS.h5`
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click
import pyarrow.parquet as pq

from flowers import cli
from flowers.cluster.session import ray_session
from jobs.evaluate import main as evaluate
from jobs.suspects import main as suspects
from jobs.train import main as train

# What is trained, and measured on validation photos by their right labels.
RUNS = ("right labels", "flipped", "suspects looked at", "suspects believed")


def run(job: click.Command, *words: object) -> str:
    """Runs a job in this process, on the Ray that all share; what it prints."""
    with redirect_stdout(io.StringIO()) as out:
        code, text = cli.outcome(job, "a job", [str(word) for word in words])
    if code:
        sys.exit(f"{words}\n{out.getvalue()}\n{text}")
    return out.getvalue()


def copy_with_flips(data: Path, target: Path, share: float, seed: int) -> dict[str, str]:
    """Links to the photos in class folders, a share of them in a wrong one; the right label of each file's name."""
    files = sorted(path for path in data.glob("*/*") if path.is_file())
    classes = sorted({path.parent.name for path in files})
    draw = random.Random(seed)
    flipped = set(draw.sample(range(len(files)), round(share * len(files))))
    labels = {}
    for index, path in enumerate(files):
        right = path.parent.name
        label = draw.choice([name for name in classes if name != right]) if index in flipped else right
        link = target / label / f"{index}-{path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
        labels[link.name] = right
    return labels


class Trial:
    """One seed: the photos with flips, and runs on one split of them."""

    def __init__(self, data: Path, folder: Path, share: float, seed: int, options: list[str]) -> None:
        # Runs of all seeds share the feature cache.
        self.storage, self.folder, self.seed, self.options = folder / "runs", folder / str(seed), seed, options
        self.noisy = self.folder / "noisy"
        self.right = copy_with_flips(data, self.noisy, share, seed)
        self.clean = self.folder / "clean.csv"
        rows = ((path, self.right[path.name]) for path in sorted(self.noisy.glob("*/*")))
        self.clean.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))

    @property
    def flips(self) -> int:
        """How many labels are wrong."""
        return sum(path.parent.name != self.right[path.name] for path in self.noisy.glob("*/*"))

    def train(self, name: str, data: Path, *more: object) -> Path:
        """Trains on the split of the clean run."""
        words = ["--data", data, "--storage", self.storage, "--seed", self.seed]
        words += ["--name", f"{name}-{self.seed}"]
        run(train, *words, *self.options, *more)
        return self.storage / f"{name}-{self.seed}"

    def accuracy(self, bundle: Path, split: Path) -> float:
        """Of the validation photos by their right labels, in per cent."""
        rows = pq.read_table(split / "split.parquet").to_pylist()
        manifest = self.storage / "validation.csv"
        lines = (
            f"{row['path']},{self.right[Path(row['path']).name]}\n" for row in rows if row["split"] == "validation"
        )
        manifest.write_text("path,label\n" + "".join(lines))
        out = self.storage / f"{bundle.name}-clean"
        run(evaluate, "--bundle", bundle, "--data", manifest, "--out", out, "--storage", self.storage)
        return 100 * float(json.loads((out / "report.json").read_text())["summary"]["accuracy"]["value"])

    def decided(self, suspects: Path, looks: bool) -> Iterator[dict[str, str]]:
        """suspects.csv as somebody fills it in who knows the right labels, or who believes each suggestion."""
        with open(suspects, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                right = self.right[Path(row["path"]).name] if looks else row["suggested"]
                wrong = row["label"] != right
                yield {**row, "action": "relabel" if wrong else "keep", "new_label": right if wrong else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are flipped")
    arguments, more = parser.parse_known_args()
    options = ["--backbone", arguments.backbone, "--weights", str(Path(arguments.weights).resolve()), *more]
    found_of = (
        "of as many suspects flipped",
        "suggestion right",
        "wrong labels, estimated",
        "listed",
        "flips among them",
    )
    columns = ("seed", "flips", *found_of, *RUNS)
    print(f"| {' | '.join(columns)} |")
    print(f"|{'-:|' * len(columns)}", flush=True)
    with ray_session(verbose=False), tempfile.TemporaryDirectory() as folder:
        found, flips = [], 0
        for seed in range(arguments.seeds):
            trial = Trial(arguments.data, Path(folder), arguments.share, seed, options)
            found.append(measured(trial))
            flips = trial.flips  # as many for each seed
            show(str(seed), flips, found[-1])
    show("mean", flips, [statistics.mean(column) for column in zip(*found, strict=True)])


def measured(trial: Trial) -> list[float]:
    """What was found of the flips, and the accuracies of `RUNS`."""
    clean = trial.train("clean", trial.clean)
    split = ("--split-file", clean / "split.parquet")
    noisy = trial.train("noisy", trial.noisy, *split)
    said = run(suspects, noisy)
    estimated = float(said.split("about ")[1].split(" labels")[0].replace(",", ""))
    rows = list(trial.decided(noisy / "suspects.csv", looks=True))
    listed = sum(row["action"] == "relabel" for row in rows)
    flipped = [row for row in rows[: trial.flips] if row["action"] == "relabel"]
    right = sum(row["suggested"] == row["new_label"] for row in flipped)
    accuracies = [trial.accuracy(clean, clean), trial.accuracy(noisy, clean)]
    for name, looks in (("looked-at", True), ("believed", False)):
        filled = trial.folder / f"{name}.csv"
        with open(filled, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(trial.decided(noisy / "suspects.csv", looks))
        accuracies.append(trial.accuracy(trial.train(name, trial.noisy, *split, "--relabel", filled), clean))
    shares = [100 * len(flipped) / trial.flips, 100 * right / max(1, len(flipped))]
    return [*shares, estimated, float(len(rows)), float(listed), *accuracies]


def show(name: str, flips: int, values: list[float]) -> None:
    counts = " | ".join(f"{value:.0f}" for value in values[2:5])
    found, right, *accuracies = (f"{value:.1f} %" for value in (*values[:2], *values[5:]))
    print(f"| {name} | {flips} | {found} | {right} | {counts} | {' | '.join(accuracies)} |", flush=True)


if __name__ == "__main__":
    main()
