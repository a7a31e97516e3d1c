"""The look at photos before training: what it says, what it shows, and when training would refuse."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers import cli
from jobs.check import main
from tests.e2e.conftest import draw


def looked(data: Path, page: Path, *more: object, code: int = 0) -> tuple[str, str]:
    """What the command prints, and its one line of error."""
    out, err = io.StringIO(), io.StringIO()
    words = ["--data", data, "--page", page, "--storage", page.parent / "runs", *more]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_hide_logs", lambda: None)
        found, text = cli.outcome(main, "python -m jobs.check", [str(word) for word in words])
    assert found == code, (out.getvalue(), err.getvalue(), text)
    return out.getvalue(), text


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


@pytest.mark.usefixtures("ray")
def test_what_is_wrong_with_photos_is_said_and_shown(tmp_path: Path) -> None:
    data, page = draw(tmp_path / "data", classes=3, each=12), tmp_path / "check.html"
    noise = np.random.default_rng(0).integers(0, 256, (90, 400, 3))
    save(data / "class0" / "long.jpg", noise)
    save(data / "class0" / "small.jpg", noise[:20, :20])
    save(data / "class0" / "dark.jpg", noise[:, :100] / 12)
    save(data / "class0" / "white.jpg", np.full((80, 80, 3), 255))
    soft = Image.fromarray(noise[:4, :4].astype(np.uint8)).resize((240, 240), Image.Resampling.BICUBIC)
    soft.save(data / "class1" / "soft.jpg", quality=95)
    Image.open(data / "class2" / "000.jpg").resize((144, 128)).save(data / "class2" / "larger.png")
    (data / "class1" / "<b>.jpg").write_bytes(b"<script>alert(1)</script>")
    (data / "Class2").mkdir()
    for number in range(2):
        os.link(data / "class1" / f"00{number}.jpg", data / "Class2" / f"{number}.jpg")
    out, _ = looked(data, page, "--max-bad-fraction", 0.2)
    for words in (
        "1 tiny (", "1 odd-shaped (", "1 dark (", "1 bright (", "2 flat (", "2 blurry (", "2 near-duplicates (",
        "quarantined: 4 conflict (", "quarantined: 1 not_a_photo (",
        "warning: the classes 'Class2' and 'class2' look alike",
    ):  # fmt: skip
        assert words in " ".join(out.split()), (words, out.splitlines())
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") > 8
    assert "<script>" not in text
    assert "&lt;b&gt;.jpg" in text
    assert "training would take these photos" in text


@pytest.mark.usefixtures("ray")
def test_photos_that_training_would_refuse(tmp_path: Path) -> None:
    data, page = draw(tmp_path / "data", classes=2, each=12), tmp_path / "check.html"
    for number in range(6):
        (data / "class0" / f"{number}.nef").write_bytes(b"raw")
    os.link(data / "class0" / "000.jpg", data / "class1" / "conflict.jpg")
    out, text = looked(data, page, code=2)
    assert text.startswith("error: 8 of 31 files are unusable (6 unsupported_format, 2 conflict; e.g. ")
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("class")}
    assert {name: table[name][-2:] for name in ("class0", "class1")} == {"class0": ["11", "7"], "class1": ["12", "1"]}
    assert "31 files, 23 photos of 2 classes: 23 jpeg" in out
    assert "quarantined: 2 conflict (" in out
    assert "\n" not in text
    assert "Training would refuse these photos." in page.read_text()
    _, text = looked(tmp_path / "nowhere", page, code=2)
    assert "there is nothing at" in text
    looked(data, page, "--max-bad-fraction", 1)  # which is a page of ours
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<html>mine")
    _, text = looked(data, thesis, code=2)
    assert text == (
        f"error: --page: {thesis} is there and is no page of jobs.check; choose another --page, or remove it"
    )
    assert thesis.read_text() == "<html>mine"
