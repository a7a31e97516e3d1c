"""Jobs run as people run them: a process, its exit code, what it prints and what it leaves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from flowers import cli
from flowers.model import backbones
from jobs.train import main
from tests.conftest import start_ray
from tests.parity.runs import tiny_network, wide_network

ROOT = Path(__file__).resolve().parents[2]
# In PYTHONPATH: a process, and those that it starts, build `wide_network` in place of any backbone. Before a command:
TINY_PATH = str(ROOT / "tests" / "tiny")
WITH_TINY = ("env", f"PYTHONPATH={TINY_PATH}")


@dataclass
class Done:
    """A finished job: its exit code and what it printed, and access to its run folder."""

    code: int
    out: str
    err: str
    run: Path

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "report.json").read_text()))

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl without the times."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


Job = Callable[..., Done]


def words(storage: Path, name: str, *arguments: object) -> list[str]:
    return ["--storage", str(storage), "--name", name, *map(str, arguments)]


def command(storage: Path, name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "jobs.train", *words(storage, name, *arguments)]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "TF_CONFIG")}


@pytest.fixture(scope="session")
def process() -> Job:
    """Runs the training job to its end, in a process of its own with a Ray of its own, as people do."""

    def run(storage: Path, name: str, *arguments: object, code: int = 0, before: Sequence[str] = ()) -> Done:
        words = [*before, *command(storage, name, *arguments)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=300)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr, storage / name)

    return run


@pytest.fixture(scope="session")
def job() -> Job:
    """The same in this process, on the Ray that all tests share: in a fifth of the time."""

    def run(storage: Path, name: str, *arguments: object, code: int = 0) -> Done:
        start_ray()
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(cli, "_hide_logs", lambda: None)
            patch.chdir(ROOT)
            found, text = cli.outcome(main, "python -m jobs.train", words(storage, name, *arguments))
        assert found == code, f"exit code {found}\n{out.getvalue()}\n{err.getvalue()}{text}"
        return Done(found, out.getvalue(), f"{text}\n" if text else "", storage / name)

    return run


def ran(job: click.Command, *words: object, code: int = 0) -> str:
    """What a command prints, its one line of error last."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_hide_logs", lambda: None)
        found, text = cli.outcome(job, "python -m a.job", [str(word) for word in words])
    assert found == code, (out.getvalue(), err.getvalue(), text)
    return out.getvalue() + text


@contextmanager
def wide() -> Iterator[None]:
    """Jobs of this process build `wide_network`, as those after `WITH_TINY` do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build_backbone", wide_network)
        yield


@pytest.fixture(scope="session")
def tiny_job(job: Job) -> Job:
    """`job` with a tiny network, where another thing is tested: in a quarter of the time."""

    def run(*arguments: Any, **options: Any) -> Done:
        with wide():
            return job(*arguments, **options)

    return run


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process build a network of hardly any weights, where what it computes is not what is tested."""
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)


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
