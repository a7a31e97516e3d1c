"""Photos of other things than the classes: how many --unknown finds, and how many photos of the classes it costs.

    python -m benchmarks.unknown ../shared/data/flower_photos --weights WEIGHTS.h5 --others DIR

A part of each class is trained on, the rest tells what the limit costs. Others are pictures of noise, drawings, photos
of the classes cut into shuffled parts and, with --others, photos of other things, whole and in quarters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.accuracy import SETTINGS
from benchmarks.suspects import run
from flowers.cluster.session import ray_session
from flowers.evaluation.unknown import pictures
from jobs.evaluate import main as evaluate
from jobs.train import main as train

_SIDE = 224


def small(path: Path) -> Image.Image:
    """A photo of the side that the network sees."""
    return Image.open(path).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def quarters(photo: Image.Image) -> list[Image.Image]:
    """The photo, and its four quarters."""
    wide, high = photo.width // 2, photo.height // 2
    corners = [(left, top) for left in (0, wide) for top in (0, high)]
    return [photo, *(photo.crop((left, top, left + wide, top + high)) for left, top in corners)]


def write_others(folder: Path, data: Path, photos: Path | None) -> list[Path]:
    """A folder of PNG files for each kind of other pictures."""
    shown = np.stack([np.asarray(small(path)) for path in sorted(data.glob("*/*.jpg"))[::60]])
    kinds = {name: [Image.fromarray(one) for one in drawn] for name, drawn in pictures(shown).items()}
    if photos:
        found = [path for path in sorted(photos.iterdir()) if path.suffix in {".jpg", ".png"}]
        kinds["photos of other things"] = [part for path in found for part in quarters(Image.open(path).convert("RGB"))]
    for name, images in kinds.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(folder / name / f"{number:03}.png")
    return [folder / name for name in kinds]


def measured(bundle: Path, data: Path, others: Path, unknown: float) -> Any:
    """What an evaluation says of photos of the classes that the bundle has not seen, and of others."""
    out = bundle / "evaluations" / others.name
    words = ["--bundle", bundle, "--data", data, "--unknown", unknown, "--unknown-data", others, "--out", out]
    run(evaluate, *words, "--storage", bundle.parent)
    return json.loads((out / "report.json").read_text())["unknown"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--others", type=Path, help="a folder of photos of other things, .jpg or .png")
    parser.add_argument("--per-class", type=int, default=180, help="photos of each class to train on")
    parser.add_argument("--unknown", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=["head", "balanced", "accurate"])
    arguments = parser.parse_args()
    options = ["--backbone", arguments.backbone, "--weights", Path(arguments.weights).resolve()]
    with ray_session(verbose=False), tempfile.TemporaryDirectory() as scratch:
        kinds = write_others(Path(scratch, "others"), arguments.data, arguments.others)
        storage = Path(scratch, "runs")
        columns = ("setting", "classes without a label", "with a label and right", *(kind.name for kind in kinds))
        print(f"| {' | '.join(columns)} |\n|-|{'-:|' * (len(columns) - 1)}", flush=True)
        for setting in arguments.settings:
            rows = []
            for seed in range(arguments.seeds):
                name = f"{setting.replace(' ', '')}-{seed}"
                words = ["--data", arguments.data, "--per-class", arguments.per_class, "--storage", storage]
                run(train, *words, "--name", name, "--seed", seed, *options, *SETTINGS[setting])
                found = [measured(storage / name, arguments.data, kind, arguments.unknown) for kind in kinds]
                detected = [one["detected"]["photos of --unknown-data"]["value"] for one in found]
                rows.append([found[0]["rejected"]["value"], found[0]["accuracy"]["value"], *detected])
            cells = (
                f"{100 * statistics.mean(column):.1f} % ({100 * min(column):.0f}-{100 * max(column):.0f})"
                for column in zip(*rows, strict=True)
            )
            print(f"| {setting} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
