"""The drawn data set: the same bytes every time, whole or not at all, and not told apart by colour."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers.data.builtin import sample
from flowers.data.builtin.sample import CLASSES, draw_sample
from flowers.errors import InputError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "flowers"
    draw_sample(folder)
    return folder


def test_two_hundred_photos_and_nothing_else(full: Path) -> None:
    assert sorted(digests(full)) == [f"{name}/{name}-{index:03d}.jpg" for name in CLASSES for index in range(40)]
    assert sorted(entry.name for entry in full.parent.iterdir()) == ["flowers", "flowers.json"]


def test_all_decode_and_differ(full: Path) -> None:
    shapes, sizes = set(), set()
    for file in full.rglob("*.jpg"):
        with Image.open(file) as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            shapes.add(picture.size)
        sizes.add(file.stat().st_size)
    assert len(set(digests(full).values())) == 200
    assert len(shapes) > 150
    assert max(sizes) > 2 * min(sizes)


def test_same_bytes_whatever_the_number(full: Path, tmp_path: Path) -> None:
    draw_sample(tmp_path / "few", per_class=3)
    few, all_of_them = digests(tmp_path / "few"), digests(full)
    assert len(few) == 15
    assert few.items() <= all_of_them.items()


def test_another_seed_gives_other_pictures(full: Path, tmp_path: Path) -> None:
    draw_sample(tmp_path / "other", per_class=2, seed=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(full).values())


def test_mean_colour_does_not_tell_the_classes_apart(full: Path) -> None:
    files = sorted(full.rglob("*.jpg"))
    mean = np.array([np.asarray(Image.open(file), np.float64).mean((0, 1)) for file in files])
    label = np.array([CLASSES.index(file.parent.name) for file in files])
    x = np.c_[(mean - mean.mean(0)) / mean.std(0), np.ones(len(mean))]
    right = 0
    folds = np.random.default_rng(0).permutation(len(x)) % 5
    for fold in range(5):
        train, weights = folds != fold, np.zeros((4, 5))
        for _ in range(200):  # multinomial logistic regression by gradient descent
            score = np.exp(x[train] @ weights)
            error = score / score.sum(1, keepdims=True) - np.eye(5)[label[train]]
            weights -= 2.0 * x[train].T @ error / train.sum()
        right += int((np.argmax(x[~train] @ weights, 1) == label[~train]).sum())
    assert right / len(x) < 0.6


def test_a_complete_drawing_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    draw_sample(folder, per_class=1)
    before = [(file, file.stat().st_mtime_ns, file.stat().st_ino) for file in sorted(folder.rglob("*"))]
    time.sleep(0.01)
    draw_sample(folder, per_class=1)
    assert before == [(file, file.stat().st_mtime_ns, file.stat().st_ino) for file in sorted(folder.rglob("*"))]
    draw_sample(folder, per_class=2)
    assert len(digests(folder)) == 10
    draw_sample(folder, per_class=1, seed=3)
    assert len(digests(folder)) == 5


@pytest.mark.parametrize("harm", ["note", "photo", "other note"])
def test_an_incomplete_drawing_is_redone(tmp_path: Path, harm: str) -> None:
    folder, note = tmp_path / "flowers", tmp_path / "flowers.json"
    draw_sample(folder, per_class=1)
    before = digests(folder)
    if harm == "photo":
        (folder / "daisy" / "daisy-000.jpg").unlink()
    else:
        (folder / "daisy" / "daisy-000.jpg").write_bytes(b"half")
        note.unlink() if harm == "note" else note.write_text("{")
    draw_sample(folder, per_class=1)
    assert digests(folder) == before


def test_an_interrupt_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = sample._picture, []

    def interrupt(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(sample, "_picture", interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw_sample(tmp_path / "flowers", per_class=1)
    assert not list(tmp_path.iterdir())
    draw_sample(tmp_path / "flowers", per_class=1)
    assert len(digests(tmp_path / "flowers")) == 5


def test_never_deletes_photos_of_others(tmp_path: Path) -> None:
    mine = tmp_path / "flowers" / "daisy" / "holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"dear")
    with pytest.raises(InputError, match=r"holiday\.jpg, which was not drawn here"):
        draw_sample(tmp_path / "flowers", per_class=1)
    assert mine.read_bytes() == b"dear"


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"per_class": 1000}, {"seed": -1}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"1\.\.999"):
        draw_sample(tmp_path / "flowers", **wrong)
