"""What finding wrong labels is worth: some are flipped in a copy of the photos, found, and corrected by suspects.csv.

`python -m benchmarks.suspects ../shared/data/flower_photos --weights WEIGHTS.h5`
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

# What is trained, and measured on validation photos by their right labels.
RUNS = ("right labels", "flipped", "suspects looked at", "suspects believed")
ROOT = Path(__file__).resolve().parent.parent


def run(*words: object) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout}\n{done.stderr}")
    return done.stdout


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
        self.storage, self.noisy, self.seed, self.options = folder / "runs", folder / "noisy", seed, options
        self.right = copy_with_flips(data, self.noisy, share, seed)
        self.clean = folder / "clean.csv"
        rows = ((path, self.right[path.name]) for path in sorted(self.noisy.glob("*/*")))
        self.clean.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))

    @property
    def flips(self) -> int:
        """How many labels are wrong."""
        return sum(path.parent.name != self.right[path.name] for path in self.noisy.glob("*/*"))

    def train(self, name: str, data: Path, *more: object) -> Path:
        """Trains on the split of the clean run."""
        words = ["jobs.train", "--data", data, "--storage", self.storage, "--name", name, "--seed", self.seed]
        run(*words, *self.options, *more)
        return self.storage / name

    def accuracy(self, bundle: Path, split: Path) -> float:
        """Of the validation photos by their right labels, in per cent."""
        rows = pq.read_table(split / "split.parquet").to_pylist()
        manifest = self.storage / "validation.csv"
        lines = (
            f"{row['path']},{self.right[Path(row['path']).name]}\n" for row in rows if row["split"] == "validation"
        )
        manifest.write_text("path,label\n" + "".join(lines))
        out = self.storage / f"{bundle.name}-clean"
        run("jobs.evaluate", "--bundle", bundle, "--data", manifest, "--out", out, "--storage", self.storage)
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
    columns = ("seed", "flips", "of as many suspects flipped", "suggestion right", "wrong labels, estimated", *RUNS)
    print(f"| {' | '.join(columns)} |")
    print("|-:|-:|-:|-:|-:|-:|-:|-:|-:|", flush=True)
    all_of: list[list[float]] = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(arguments.data, Path(folder), arguments.share, seed, options)
            clean = trial.train("clean", trial.clean)
            split = ("--split-file", clean / "split.parquet")
            noisy = trial.train("noisy", trial.noisy, *split)
            said = run("jobs.suspects", noisy, "--count", trial.flips)
            with open(noisy / "suspects.csv", encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            found = [row for row in rows if row["label"] != trial.right[Path(row["path"]).name]]
            right = sum(row["suggested"] == trial.right[Path(row["path"]).name] for row in found)
            estimated = int(said.split("about ")[1].split(" labels")[0].replace(",", ""))
            accuracies = [trial.accuracy(clean, clean), trial.accuracy(noisy, clean)]
            for name, looks in (("looked-at", True), ("believed", False)):
                filled = Path(folder) / f"{name}.csv"
                with open(filled, "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                    writer.writerows(trial.decided(noisy / "suspects.csv", looks))
                accuracies.append(trial.accuracy(trial.train(name, trial.noisy, *split, "--relabel", filled), clean))
        shares = [100 * len(found) / trial.flips, 100 * right / max(1, len(found))]
        all_of.append([*shares, float(estimated), *accuracies])
        show(str(seed), trial.flips, all_of[-1])
    show("mean", trial.flips, [statistics.mean(column) for column in zip(*all_of, strict=True)])


def show(name: str, flips: int, values: list[float]) -> None:
    found, right, estimated, *accuracies = values
    each = " | ".join(f"{value:.1f} %" for value in accuracies)
    print(f"| {name} | {flips} | {found:.1f} % | {right:.1f} % | {estimated:.0f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
