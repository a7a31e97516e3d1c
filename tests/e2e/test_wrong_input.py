from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import SMALL, Job, draw

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epohcs", "3"], "No such option"),
        (["--epochs", "many"], "--epochs"),
        (["--epochs", "0"], "1 or more"),
        (["--data", "no/such/folder"], "nothing at 'no/such/folder'"),
        (["--data", "README.md"], "required is a folder, a manifest"),
        (["--split", "0.5", "0.5", "0.5"], "add up to 1"),
        (["--weights", "none.weights.h5"], "no file 'none.weights.h5'"),
        (["--weights", "README.md"], ".weights.h5"),
        (["--backbone", "vgg16"], "resnet50v2"),
        (["--split-file", "README.md"], "--split-file"),
        (["--batch-size", "30", "--workers", "4"], "multiple of --workers"),
        (["--recipe", "nothing"], "flower_photos"),
    ],
)
def test_one_line_exit_code_2_and_nothing_left(job: Job, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = job(tmp_path / "runs", "run", *arguments, code=2)
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert not done.run.exists()
    assert {path.name for path in (tmp_path / "runs").glob("*")} <= {"datasets", "cache"}, "which others use as well"


def test_data_that_cannot_be_trained_on_is_refused_before_ray_starts(job: Job, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "roses").mkdir(parents=True)
    assert "found no photos" in job(tmp_path / "runs", "empty", "--data", empty, *SMALL, code=2).err
    one = draw(tmp_path / "one", classes=1, each=4)
    assert "two or more" in job(tmp_path / "runs", "one", "--data", one, *SMALL, code=2).err
    small = draw(tmp_path / "small", classes=2, each=4)
    for name in ("001", "002", "003"):
        (small / "class1" / f"{name}.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    done = job(tmp_path / "runs", "small", "--data", small, *SMALL, code=2)
    assert "class 'class1' has 1 usable photo" in done.err
    assert "compute" not in done.out
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK")
    assert "broken.zip" in job(tmp_path / "runs", "broken", "--data", broken, *SMALL, code=2).err
    assert not (tmp_path / "runs").exists()


def test_too_many_bad_files_stop_the_run(job: Job, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", classes=2, each=20)
    for index in range(6):
        (data / "class0" / f"bad{index}.jpg").write_bytes(os.urandom(100))
    os.link(data / "class0" / "000.jpg", data / "class1" / "conflict.jpg")
    done = job(tmp_path / "runs", "bad", "--data", data, *SMALL, code=2)
    assert "8 of 47 files are unusable (6 not_a_photo, 2 conflict; " in done.err
    assert "--max-bad-fraction" in done.err
    assert not done.run.exists()


def test_training_that_diverges_says_where(job: Job, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", classes=2, each=12)
    sgd = ("--optimizer", "sgd", "--learning-rate", "1e30", "--l2", "1")
    done = job(tmp_path / "runs", "wild", "--data", data, *SMALL, *sgd, code=1)
    assert "in step" in done.err
    assert "--learning-rate" in done.err
    assert done.err.count("\n") == 1
