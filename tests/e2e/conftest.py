"""Jobs run as people run them: a process, its exit code, what it prints and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    """A finished job: its exit code and what it printed, and access to its run folder."""

    code: int
    out: str
    err: str
    run: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "report.json").read_text())

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl without the times."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


Job = Callable[..., Done]


def command(storage: Path, name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "jobs.train", "--storage", str(storage), "--name", name, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "TF_CONFIG")}


@pytest.fixture(scope="session")
def job() -> Job:
    """Runs the training job to its end."""

    def run(storage: Path, name: str, *arguments: object, code: int = 0) -> Done:
        done = subprocess.run(
            command(storage, name, *arguments), cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=300
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr, storage / name)

    return run


def draw(folder: Path, classes: int, each: int, first: int = 0) -> Path:
    """Little pictures in `classes` sub-folders: stripes of another width for each class, and noise."""
    for number in range(classes):
        target = folder / f"class{number}"
        target.mkdir(parents=True, exist_ok=True)
        for index in range(first, first + each):
            random = np.random.default_rng([number, index])
            stripes = (np.arange(72) // (2 + 4 * number)) % 2 * 160
            pixels = np.broadcast_to(stripes[None, :, None], (64, 72, 3)) + random.integers(0, 90, (64, 72, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:03}.jpg", quality=85)
    return folder


SMALL = ("--backbone", "mobilenetv2", "--weights", "random", "--image-size", 64, "--precision", "float32")
