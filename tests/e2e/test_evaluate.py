"""Evaluation of toy bundles: what is left out, what is said of a wrong one, and that it is the same however it runs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowers import cli
from flowers.data.corrections import written
from flowers.report.evaluation import EvaluationReport
from flowers.runs import Run
from jobs.evaluate import main
from tests.conftest import start_ray
from tests.toys import by_colour, coloured, saved_by_colour, trained

CLASSES = ["=red", "green", "blue"]
EACH, SIZE = 10, 8


@dataclass(frozen=True)
class Place:
    """A right and a wrong bundle with their runs, and photos: of each class 5 to train on, 2 to validate, 3 to test."""

    folder: Path
    right: Run
    wrong: Run
    photos: dict[Path, str]
    manifest: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    start_ray()
    folder = tmp_path_factory.mktemp("evaluate")
    photos = coloured(folder / "photos", CLASSES, EACH)
    sides = ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    split = {path: (label, sides[index % EACH]) for index, (path, label) in enumerate(photos.items())}
    # Wrong on purpose: it calls red what is green, and green what is red.
    swapped = ["green", "=red", "blue"]
    manifest = folder / "list.csv"
    lines = [f"{path},{label},{'even' if int(path.stem[-1]) % 2 == 0 else 'odd'}" for path, label in photos.items()]
    bad = folder / "photos" / "bad.png"
    bad.write_bytes(b"")
    more = [f"{bad},blue,", f"{next(iter(photos))},purple,", f"{folder / 'nowhere.png'},,"]
    manifest.write_text("\n".join(["path,label,group", *lines, *more]) + "\n")
    return Place(
        folder,
        trained(folder / "runs" / "right", by_colour(SIZE, CLASSES), split),
        trained(folder / "runs" / "wrong", by_colour(SIZE, swapped), split),
        photos,
        manifest,
    )


def evaluated(bundle: object, *more: object, code: int = 0) -> tuple[str, str]:
    """What the command prints, and its one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_hide_logs", lambda: None)
        words = [str(word) for word in ("--bundle", bundle, *more)]
        found, text = cli.outcome(main, "python -m jobs.evaluate", words)
    assert found == code, (out.getvalue(), err.getvalue(), text)
    return out.getvalue(), text


def report(folder: Path) -> dict[str, Any]:
    text = (folder / "report.json").read_text()
    assert EvaluationReport.model_validate_json(text).summary
    return dict(json.loads(text))


@pytest.mark.usefixtures("ray")
def test_a_wrong_bundle_is_reported_as_wrong(place: Place) -> None:
    out, _ = evaluated(place.wrong.uri, "--top", 99)
    assert out.startswith("--top 99: the bundle has 3 classes, all of them are named\n")
    found = report(Path(place.wrong.uri) / "evaluations" / "test")
    assert found["rows"] == {"found": 9, "evaluated": 9, "training": 0, "unknown": 0, "unusable": 0}
    assert found["summary"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["summary"]["confusion_matrix"] == [[0, 3, 0], [3, 0, 0], [0, 0, 3]]
    assert found["auc"]["green"]["value"] < 0.5 < found["auc"]["blue"]["value"]
    # It is as sure as it is wrong, and so are the validation photos: the best temperature is the highest.
    assert found["calibration"]["error"] > 0.5 > found["calibration"]["error_after"]
    assert found["calibration"]["fitted_on"] == 6
    assert "33.3 %" in out
    worst, surest, unsure = found["galleries"]
    assert (worst["n"], len(worst["photos"]), surest["above"], unsure["n"]) == (6, 6, 6, 3)
    assert {one["predicted"] for one in worst["photos"]} == {"=red", "green"}
    cells = {(one["true"], one["predicted"]): len(one["photos"]) for one in found["cells"]}
    assert cells == {("=red", "green"): 3, ("green", "=red"): 3, ("blue", "blue"): 3}
    # Each of the 9 photos once in its cell and once in a gallery, there with a heat map.
    page = (Path(place.wrong.uri) / "evaluations" / "test" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 9 + 2 * 9


@pytest.mark.usefixtures("ray")
def test_corrected_labels_count(place: Place) -> None:
    """Of the photos of a class that is called another one, one is corrected and one dropped; others do not matter."""
    tests = {path: label for path, label in place.photos.items() if int(path.stem[-1]) >= 7}
    of = {label: [path for path, one in tests.items() if one == label] for label in CLASSES}
    decided = [
        (of["green"][0], "green", "relabel", "=red"),
        (of["green"][1], "green", "drop", ""),
        (of["blue"][0], "blue", "keep", ""),
        (next(iter(place.photos)), "=red", "drop", ""),  # trained on
    ]
    rows = [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest(), "test", label, "", 0.1, 0.2, *says)
        for path, label, *says in decided
    ]
    file = place.folder / "suspects.csv"
    file.write_bytes(written(rows))
    evaluated(place.wrong.uri, "--relabel", file, "--out", place.folder / "corrected")
    found = report(place.folder / "corrected")
    assert found["rows"] == {"found": 9, "evaluated": 8, "training": 0, "unknown": 0, "unusable": 1}
    assert found["reasons"] == {"dropped": 1}
    assert found["summary"]["accuracy"]["value"] == pytest.approx(4 / 8)
    assert "labels corrected by --relabel: 1 relabelled, 1 dropped, 1 looked at and kept" in found["warnings"]


@pytest.mark.usefixtures("ray")
def test_what_is_left_out_and_a_baseline(place: Place) -> None:
    target = place.folder / "out"
    more = (
        "--data",
        place.manifest,
        "--out",
        target,
        "--baseline",
        place.wrong.uri,
        "--storage",
        place.folder / "runs",
    )
    out, _ = evaluated(place.right.uri, *more)
    found = report(target)
    # 15 photos were trained on; one has a label of no class, one is empty, one has no label.
    assert found["rows"] == {"found": 33, "evaluated": 15, "training": 15, "unknown": 1, "unusable": 2}
    assert found["unknown_labels"] == {"purple": 1}
    assert found["reasons"] == {"empty": 1, "unlabelled": 1}
    assert {one["name"]: one["shown"][0]["path"] for one in found["left_out"]} == {
        "empty": str(place.folder / "photos" / "bad.png"),
        "unlabelled": str(place.folder / "nowhere.png"),
    }
    assert "6 photos are validation photos of the run" in " ".join(found["warnings"])
    assert found["summary"]["accuracy"] == {"value": 1.0, "n": 15, "low": pytest.approx(0.796, abs=1e-3), "high": 1.0}
    compared = found["comparison"]
    assert compared["counts"] == {"n": 15, "new_right": 15, "old_right": 5, "gained": 10, "lost": 0}
    assert compared["p_value"] == pytest.approx(2 / 2**10)
    assert compared["difference"]["value"] == pytest.approx(2 / 3)
    assert {(one["baseline"], one["predicted"]) for one in compared["better"]} == {("green", "=red"), ("=red", "green")}
    assert "10 better, 0 worse" in " ".join(out.split())
    groups = {one["name"]: one for one in found["slices"]}["group"]["slices"]
    assert {one["value"]: one["accuracy"]["n"] for one in groups} == {"even": 6, "odd": 9}

    rows = {row["path"]: row for row in pq.read_table(target / "predictions.parquet").to_pylist()}
    assert len(rows) == 15
    for path, row in rows.items():
        assert row["label"] == row["predicted"] == place.photos[Path(path)] == row["top"][0]["label"]
        assert row["correct"]
        assert row["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert row["margin"] == pytest.approx(row["top"][0]["score"] - row["top"][1]["score"])
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)
        assert (row["baseline"] == row["label"]) == (row["label"] == "blue")
    table = list(csv.reader((target / "confusion.csv").read_text().splitlines()))
    assert table == [["true class", "'=red", "green", "blue"], ["'=red", *"500"], ["green", *"050"], ["blue", *"005"]]
    page = (target / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "default-src 'none'" in page
    changed = page.partition('id="baseline"')[2].partition("</section>")[0]
    assert changed.count('<img src="data:image/jpeg;base64,') == 10, "each photo that got better is shown"
    assert "Better: 10" in changed
    assert "Worse" not in changed.partition("Better: 10")[2]

    evaluated(place.right.uri, *more[:4], "--storage", place.folder / "runs", "--allow-training-rows")
    again = report(target)
    assert (again["rows"]["evaluated"], again["rows"]["training"]) == (30, 0)
    evaluated(place.right.uri, *more, "--actors", 1)
    same = ("summary", "auc", "calibration", "coverage", "slices", "comparison", "galleries", "cells", "left_out")
    assert {name: report(target)[name] for name in same} == {name: found[name] for name in same}


@pytest.mark.usefixtures("ray")
def test_photos_of_none_of_the_classes(place: Place, tmp_path: Path) -> None:
    """Those of the classes keep their labels, but few; grey ones have none, and neither has that of another label."""
    others = tmp_path / "others"
    others.mkdir()
    for number in range(4):
        Image.new("RGB", (SIZE, SIZE), (40 * number, 40 * number, 40 * number)).save(others / f"{number}.png")
    (others / "broken.png").touch()
    given = ("--data", place.manifest, "--out", tmp_path / "out", "--storage", place.folder / "runs")
    out, _ = evaluated(place.right.uri, *given, "--unknown", 0.1, "--unknown-data", others)
    found = report(tmp_path / "out")["unknown"]
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["unknown"] for row in table] == [row["typicality"] <= 0.1 for row in table]
    rejected = sum(row["unknown"] for row in table)
    assert found["rejected"]["value"] == rejected / 15
    assert found["rejected"]["value"] < 0.3
    assert (found["allowed"], found["accuracy"]["value"], found["accuracy"]["n"]) == (0.1, 1.0, 15 - rejected)
    assert {name: share["n"] for name, share in found["detected"].items()} == {
        "photos of other labels": 1, "photos of --unknown-data": 4,
    }  # fmt: skip
    assert found["detected"]["photos of --unknown-data"]["value"] == 1
    assert "100.0 % of 4 photos of --unknown-data get no label" in " ".join(out.split())
    assert "None of the classes" in (tmp_path / "out" / "report.html").read_text()
    _, text = evaluated(place.right.uri, *given, "--unknown-data", others, code=2)
    assert "--unknown-data: received" in text
    assert "required is also --unknown" in text


@pytest.mark.usefixtures("ray")
def test_what_is_refused_and_a_bundle_without_a_run(place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "alone"
    Path(place.right.bundle).rename(bundle)
    try:
        _, text = evaluated(bundle, code=2)
        assert "--data is missing: no test photos" in text
        _, text = evaluated(bundle, "--data", place.manifest, code=2)
        assert "--out is missing" in text
        _, text = evaluated(place.wrong.uri, "--out", place.right.uri, code=2)
        assert "neither a run nor a bundle" in text
        _, text = evaluated(place.wrong.uri, "--out", place.folder / "photos", code=2)
        assert f"--out: {place.folder / 'photos'} holds " in text
        assert "and is no evaluation; choose another --out" in text
        other = saved_by_colour(tmp_path / "other", ["cat", "dog", "cow"])
        _, text = evaluated(place.wrong.uri, "--baseline", other, code=2)
        assert text.startswith(f"error: --baseline: {other} knows 'cat', 'dog', 'cow', of which ")
        evaluated(bundle, "--data", place.manifest, "--out", tmp_path / "out", "--storage", tmp_path / "runs")
        found = report(tmp_path / "out")
        assert found["rows"]["evaluated"] == 30
        assert "is not known, as its run is gone" in " ".join(found["warnings"])
        assert found["calibration"]["temperature"] is None
        strange = tmp_path / "strange.csv"
        first, second, third, *_ = place.photos
        strange.write_text(f"path,label\n{first},purple\n{second},Green\n{third},green\n")
        evaluated(bundle, "--data", strange, "--out", tmp_path / "out")
        hint = "did you mean 'green' by 'Green'?"
        assert f"labels that the bundle does not know are left out; {hint}" in report(tmp_path / "out")["warnings"]
        strange.write_text(f"path,label\n{first},purple\n{second},Green\n")
        _, text = evaluated(bundle, "--data", strange, "--out", tmp_path / "out", code=2)
        _, text = evaluated(bundle, "--data", strange, "--out", tmp_path / "new" / "out", code=2)
        assert not (tmp_path / "new").exists()
        assert "none of 2 files can be evaluated: 0 trained on, 2 of labels that the bundle does not know (" in text
        assert text.endswith(f"; {hint}")
    finally:
        bundle.rename(place.right.bundle)
