"""Bulk prediction: every file once, with the answer that it would get alone, whatever happens on the way."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowers import cli, locks
from flowers.bundle import load_bundle
from flowers.prediction.parts import Predictions
from flowers.predictor import Prediction, Predictor
from jobs.predict import main
from tests.conftest import start_ray
from tests.faults.processes import running
from tests.toys import saved_by_colour

CLASSES = ["../red", "green", "=blue"]
FILES = 90


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start_ray()
    return saved_by_colour(tmp_path_factory.mktemp("bundle") / "best", CLASSES)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of one colour each, in nested folders, and three files that are none."""
    data = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for index in range(FILES - 3):
        folder = data / ("a", "b/c", ".")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        colour = np.roll([230, *rng.integers(20, 200, 2)], index % 3)
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(folder / f"{index // 2:03}.png")
    for name, content in (("cut.jpg", b"\xff\xd8\xff"), ("empty.png", b""), ("notes.txt", b"text")):
        (data / name).write_bytes(content)
    return data


def words(bundle: Path, data: Path, out: Path, *more: object) -> list[str]:
    given = ("--bundle", bundle, "--data", data, "--out", out, "--storage", out.parent / "runs", *more)
    return [str(word) for word in given]


def predicted(*arguments: Any, code: int = 0) -> str:
    """Runs the command in this process; what it prints last."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_hide_logs", lambda: None)
        found, text = cli.outcome(main, "python -m jobs.predict", words(*arguments))
    assert found == code, (out.getvalue(), err.getvalue(), text)
    return text or out.getvalue().splitlines()[-1]


def rows(out: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(out).to_pylist())  # the whole folder: what else is in it does not disturb


def check(bundle: Path, data: Path, out: Path) -> None:
    """Each file has one row, and it says what the predictor says of its bytes."""
    found = {row["path"]: row for row in rows(out)}
    files = [path for path in data.rglob("*") if path.is_file()]
    assert len(rows(out)) == len(found) == len(files)
    answers = Predictor(load_bundle(str(bundle))).predict([path.read_bytes() for path in files])
    for path, answer in zip(files, answers, strict=True):
        row = found[str(path)]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        if isinstance(answer, Prediction):
            assert (row["label"], row["error"]) == (answer.label, None)
            np.testing.assert_allclose(row["scores"], answer.probabilities, atol=1e-6)
        else:
            assert row["label"] is row["score"] is row["top"] is row["scores"] is None
            assert row["error"]


@pytest.mark.usefixtures("ray")
def test_every_file_once_as_if_it_were_alone_then_what_was_added(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "photos" / "out", ("--part-photos", 40, "--scores", "--top", 2)
    line = predicted(bundle, photos, out, *more)
    assert line.startswith(f"{FILES} photos, 3 errors, ")
    assert line.endswith(f" images/s, in {out}")
    assert sorted(path.name for path in out.iterdir()) == [
        *("_config.json", "_summary.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"),
    ]
    assert json.loads((out / "_config.json").read_text())["classes"] == CLASSES
    summary = json.loads((out / "_summary.json").read_text())
    assert summary["errors"] == {"truncated": 1, "side_file": 1, "empty": 1}
    assert (summary["files"], summary["rows"], summary["unknown"]) == (FILES, FILES, None)
    errors = {Path(row["path"]).name: row["error"] for row in rows(out) if row["error"]}
    assert {name: error.partition(":")[0] for name, error in errors.items()} == {
        "cut.jpg": "truncated", "empty.png": "empty", "notes.txt": "side_file",
    }  # fmt: skip
    assert predicted(bundle, photos, out, *more).startswith(f"nothing to do: {FILES} files, each with its row in ")
    (photos / "b" / "new.png").write_bytes((photos / "a" / "000.png").read_bytes())
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    assert "1 file was added since: see --update" in predicted(bundle, photos, out, *more)
    line = predicted(bundle, photos, out, *more, "--update")
    assert line.startswith("1 photo, 0 errors, ")
    assert line.endswith(f" images/s, in {out}; 3 files looked at again, 0 rows renewed")
    assert {path: path.read_bytes() for path in before} == before
    assert "--top was 2, now 1" in predicted(bundle, photos, out, *more[:3], "--top", 1, code=2)
    with locks.hold(str(photos / ".out.lock")):
        assert "is in use by" in predicted(bundle, photos, out, *more, code=2)
    for path in [*out.iterdir(), out]:  # `check` counts the files of the folder
        path.rename(tmp_path / path.name) if path.is_file() else path.rmdir()
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("part-*"):
        path.rename(tmp_path / "moved" / path.name)
    check(bundle, photos, tmp_path / "moved")


@pytest.mark.usefixtures("ray")
def test_what_changed_or_failed_is_looked_at_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is replaced where it stands, so that no file has two or none when the job is stopped in between."""
    data, out, more = tmp_path / "photos", tmp_path / "out", ("--part-photos", 2, "--scores", "--update")
    data.mkdir()
    red, green = (Image.new("RGB", (16, 16), colour) for colour in ((230, 20, 20), (20, 230, 20)))
    for name in "abcdef":
        red.save(data / f"{name}.png")
    (data / "c.png").write_bytes(b"")
    (data / "notes.txt").write_text("text")
    predicted(bundle, data, out, *more)
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    names = [Path(row["path"]).name for row in rows(out)]
    assert predicted(bundle, data, out, *more) == f"2 files looked at again, 0 rows renewed, in {out}"
    green.save(tmp_path / "old.png")
    os.utime(tmp_path / "old.png", (1e9, 1e9))
    (tmp_path / "old.png").rename(data / "a.png")  # its time is that of before
    green.save(data / "c.png")
    renew = Predictions.renew
    with monkeypatch.context() as patch:

        def stopped(self: Predictions, uri: str, table: Any) -> Any:
            renew(self, uri, table)
            raise KeyboardInterrupt

        patch.setattr(Predictions, "renew", stopped)
        predicted(bundle, data, out, *more, code=130)
    assert not (out / "_summary.json").exists()
    assert [row["label"] for row in rows(out)[:3]] == ["green", CLASSES[0], None]
    assert predicted(bundle, data, out, *more[:-1]).startswith("nothing to do: 7 files")
    assert predicted(bundle, data, out, *more) == f"3 files looked at again, 1 row renewed, in {out}"
    assert [Path(row["path"]).name for row in rows(out)] == names
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"part-00000.parquet", "part-00001.parquet"}
    assert json.loads((out / "_summary.json").read_text())["errors"] == {"side_file": 1}
    check(bundle, data, out)
    assert predicted(bundle, data, out, *more) == f"1 file looked at again, 0 rows renewed, in {out}"


@pytest.mark.usefixtures("ray")
def test_killed_and_run_again_in_actors(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", ("--part-photos", 2, "--scores")
    here = importlib.import_module("ray").get_runtime_context().gcs_address  # a Ray of its own would take longer
    job_words = [sys.executable, "-m", "jobs.predict", *words(bundle, photos, out, *more)]
    command = ["env", f"RAY_ADDRESS={here}", *job_words]
    with running(command, tmp_path / "logs") as job:
        job.kill_while(lambda: 0 < len(list(out.glob("part-?????.parquet"))) < FILES // 2, pause=0.001)
    done = {path: path.read_bytes() for path in out.glob("part-?????.parquet")}
    assert 0 < len(done) < FILES // 2
    assert not (out / "_summary.json").exists()
    line = predicted(bundle, photos, out, *more, "--actors", 1)
    assert line.startswith(f"{FILES - 2 * len(done)} photos, ")
    assert {path: path.read_bytes() for path in done} == done
    check(bundle, photos, out)


@pytest.mark.usefixtures("ray")
def test_a_flat_list_of_paths_into_folders(bundle: Path, photos: Path, tmp_path: Path) -> None:
    listed = sorted(path for path in photos.rglob("*.png"))[:30]
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"{path}\n" for path in [*listed, listed[0]]))  # one of them twice
    target, more = tmp_path / "sorted", ("--format", "jsonl", "--sort-into", tmp_path / "sorted", "--min-score", 0.9)
    predicted(bundle, manifest, tmp_path / "out", *more)
    found = [json.loads(line) for line in (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines()]
    assert [row["path"] for row in found] == [str(path) for path in listed]
    copies = sorted(path for path in target.glob("*/*") if path.is_file())
    assert len(copies) == sum(row["label"] is not None for row in found)
    assert {path.parent.name for path in copies} <= {"%2E./red".replace("/", "%2F"), "green", "=blue", "unsure"}
    assert (target / "unsure").exists()
    names = ["list.txt", "out", "photos", "runs", "sorted"]
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.name != "runs"] == [
        n for n in names if n != "runs"
    ]
    assert "nothing to do" in predicted(bundle, manifest, tmp_path / "out", *more)
    text = predicted(bundle, manifest, tmp_path / "out", *more[:-1], 0.5, code=2)
    assert f"photos were sorted into {target} otherwise (--min-score was 0.9, now 0.5); give another" in text
    assert sorted(path for path in target.glob("*/*") if path.is_file()) == copies


@pytest.mark.usefixtures("ray")
def test_photos_of_none_of_the_classes(bundle: Path, tmp_path: Path) -> None:
    """They have no label but a reason, as from the predictor, and a folder of their own."""
    photos, target, more = tmp_path / "photos", tmp_path / "sorted", ("--unknown", "--scores", "--min-score", 0.1)
    photos.mkdir()
    for name, colour in (("red", (220, 20, 20)), ("blue", (9, 9, 220)), ("grey", (90, 90, 90)), ("black", (0, 0, 0))):
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(photos / f"{name}.png")
    (photos / "empty.png").touch()
    line = predicted(bundle, photos, tmp_path / "out", *more, "--sort-into", target)
    assert line.startswith("5 photos, 1 error, 2 none of the classes, ")
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert (summary["rows"], summary["errors"], summary["unknown"]) == (5, {"empty": 1}, 2)
    telling = Predictor(load_bundle(str(bundle)), unknown=0.05)
    found = {Path(row["path"]).stem: row for row in rows(tmp_path / "out")}
    for name, answer in zip(
        found, telling.predict([(photos / f"{name}.png").read_bytes() for name in found]), strict=True
    ):
        row = found[name]
        if isinstance(answer, Prediction):
            assert (row["label"], row["typicality"], row["reason"]) == (answer.label, answer.typicality, answer.reason)
            assert row["error"] is None
            assert row["top"][0]["label"] == CLASSES[int(np.argmax(row["scores"]))]
        else:
            assert row["label"] is row["typicality"] is row["reason"] is None
    assert {name for name, row in found.items() if row["reason"]} == {"grey", "black"}
    assert {path.stem for path in (target / "none-of-these").iterdir()} == {"grey", "black"}
    assert len([path for path in target.glob("*/*") if path.is_file()]) == 4
    text = predicted(bundle, photos, tmp_path / "out", *more[1:], "--sort-into", target, code=2)
    assert "--unknown was 0.05, now not given" in text
    text = predicted(bundle, photos, tmp_path / "few", "--unknown", 0.001, code=2)
    assert "required is 0.01 or more" in text
    assert not (tmp_path / "few").exists()


@pytest.mark.usefixtures("ray")
def test_what_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.jpg").write_bytes(b"x")
    text = predicted(bundle, tmp_path / "bad", tmp_path / "out", code=2)
    assert "none of 1 file is a usable photo" in text
    (tmp_path / "none").mkdir()
    assert "found no files" in predicted(bundle, tmp_path / "none", tmp_path / "out", code=2)
    assert "there is no bundle" in predicted(tmp_path / "none", tmp_path / "bad", tmp_path / "out", code=2)
    assert "--out: received" in predicted(bundle, tmp_path / "bad", tmp_path / "bad", code=2)
    assert "--min-score: received" in predicted(bundle, tmp_path / "bad", tmp_path / "out", "--min-score", 0.5, code=2)
    shutil.rmtree(tmp_path / "out")
    text = predicted(bundle, tmp_path / "bad", tmp_path / "out", "--sort-into", bundle.parent, code=2)
    assert f"--sort-into: {bundle.parent} holds 'best' and is no folder of sorted photos; choose another" in text
    assert not (tmp_path / "out").exists()
    more = ("--sort-into", tmp_path / "new" / "sorted", "--device", "gpu")
    assert "--device" in predicted(bundle, tmp_path / "bad", tmp_path / "new" / "out", *more, code=2)
    for other in ("--top", 3), ("--format", "csv"):  # what another command has begun stays as it is
        begun = Predictions(str(tmp_path / "out"), "parquet")
        begun.open({}, [], "now")
        assert "with other options" in predicted(bundle, tmp_path / "bad", tmp_path / "out", *other, code=2)
        assert Path(begun.config).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "none", "out"]
