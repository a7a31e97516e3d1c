"""Wrong labels of a run are found, decided and corrected, round after round; and what to label next is chosen."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowers import cli
from jobs.next import main as choose_next
from jobs.suspects import main as find_suspects
from tests.e2e.conftest import SMALL, Job, draw
from tests.toys import by_colour, coloured, trained

Row = dict[str, str]


def ran(job: click.Command, *words: object, code: int = 0) -> tuple[str, str]:
    """What a command prints, and its one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_hide_logs", lambda: None)
        found, text = cli.outcome(job, "python -m a.job", [str(word) for word in words])
    assert found == code, (out.getvalue(), err.getvalue(), text)
    return out.getvalue(), text


def table(file: Path) -> list[Row]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def fill_in(file: Path, decide: dict[str, tuple[str, str]]) -> None:
    """Decides photos by the name of their file."""
    rows = table(file)
    for row in rows:
        row["action"], row["new_label"] = decide.get(Path(row["path"]).name, (row["action"], row["new_label"]))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.usefixtures("tiny")
def test_wrong_labels_are_found_decided_and_corrected(job: Job, tmp_path: Path) -> None:
    data, storage = draw(tmp_path / "data", classes=3, each=16), tmp_path / "runs"
    (data / "class0" / "003.jpg").rename(data / "class1" / "wrong.jpg")
    (data / "class1" / "004.jpg").rename(data / "class2" / "=odd.jpg")
    options = ("--data", data, *SMALL, "--epochs", 2)
    one = job(storage, "one", *options)
    _, text = ran(find_suspects, storage / "nowhere", code=2)
    assert text.startswith("error: RUN: there is no finished run at ")
    _, text = ran(find_suspects, one.run, "--out", data, code=2)
    assert f"--out: {data} holds 'class0' and is no list of suspects; choose another --out" in text
    out, _ = ran(find_suspects, one.run, "--count", 3)
    file = one.run / "suspects.csv"
    rows = table(file)
    by_name = {Path(row["path"]).name: row for row in rows}
    assert list(by_name)[:2] in (["wrong.jpg", "=odd.jpg"], ["=odd.jpg", "wrong.jpg"])
    assert (by_name["wrong.jpg"]["label"], by_name["wrong.jpg"]["suggested"]) == ("class1", "class0")
    assert all(row["action"] == row["new_label"] == "" for row in rows)
    assert f"--relabel {file} --split-file {one.run}/split.parquet --name one-relabelled" in out
    page = (one.run / "suspects.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2 * 7

    fill_in(file, {"wrong.jpg": ("relabel", ""), "=odd.jpg": ("drop", "")})
    shutil.rmtree(storage / "cache")  # the features are computed again, and what was decided stays
    out, _ = ran(find_suspects, one.run, "--count", 3)
    assert "the feature cache is gone: features are computed again" in out
    again = table(file)
    assert [row["path"] for row in again] == [row["path"] for row in rows]
    decided = {Path(row["path"]).name: (row["action"], row["new_label"]) for row in again}
    assert (decided["wrong.jpg"], decided["=odd.jpg"]) == (("relabel", "class0"), ("drop", ""))

    kept = tmp_path / "decided.csv"
    shutil.copy(file, kept)
    more = (*options, "--relabel", kept, "--split-file", one.run / "split.parquet")
    two = job(storage, "two", *more)
    assert "labels    --relabel: 1 relabelled, 1 dropped" in two.out
    assert two.report["data"]["decisions"] == {"relabel": 1, "drop": 1}
    assert two.report["data"]["reasons"] == {"dropped": 1}
    assert two.report["data"]["per_class"] == {"class0": 16, "class1": 15, "class2": 16}
    assert "1 relabelled, 1 dropped." in (two.run / "report.html").read_text()
    ledger = {Path(row["path"]).name: row for row in pq.read_table(two.run / "ledger.parquet").to_pylist()}
    assert [ledger["wrong.jpg"][name] for name in ("label", "was", "decision")] == ["class0", "class1", "relabel"]
    assert ledger["=odd.jpg"]["reason"] == "dropped"
    was, now = ({row["path"]: row["split"] for row in pq.read_table(run / "split.parquet").to_pylist()}
                for run in (one.run, two.run))  # fmt: skip
    assert {path: was[path] for path in now} == now

    assert "is finished" in job(storage, "two", *more).out
    fill_in(kept, {"wrong.jpg": ("drop", "")})
    assert "--relabel was 'decisions " in job(storage, "two", *more, code=2).err
    kept.write_text(kept.read_text().replace(rows[0]["sha256"], "0" * 64))
    assert "line 2 of" in job(storage, "three", *more, code=2).err

    ran(find_suspects, two.run)  # the next file has the earlier decisions, too: it alone is given back
    third = {Path(row["path"]).name: row for row in table(two.run / "suspects.csv")}
    assert [third["wrong.jpg"][name] for name in ("label", "action", "new_label")] == ["class1", "relabel", "class0"]
    assert third["=odd.jpg"]["action"] == "drop"


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_what_to_label_next(tmp_path: Path, engine: str) -> None:
    classes = ["red", "green", "blue"]
    photos = coloured(tmp_path / "photos", classes, 3)
    run = trained(
        tmp_path / "runs" / "one", by_colour(8, classes), {path: (label, "train") for path, label in photos.items()}
    )
    pool = tmp_path / "pool"
    pool.mkdir()
    rng = np.random.default_rng(0)
    # Two kinds of doubt, between red and green and between green and blue; some that are clear, copies and rubbish.
    kinds: dict[str, list[int]] = {"rg": [150, 150, 20], "gb": [20, 150, 150], "clear": [200, 20, 20]}
    for kind, colour in kinds.items():
        for number in range(6):
            pixels = np.full((16, 16, 3), colour) + rng.integers(-3, 3, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(pool / f"{kind}{number}.png")
    shutil.copy(pool / "rg0.png", pool / "rg0-copy.png")
    shutil.copy(next(iter(photos)), pool / "known.png")
    (pool / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    out = tmp_path / "next"
    words: tuple[Any, ...] = ("--bundle", run.uri, "--data", pool, "--storage", tmp_path / "runs", "--engine", engine)
    _, text = ran(choose_next, *words, "--out", pool, code=2)
    assert "and is no list of photos to label; choose another --out" in text
    device, chosen, *_ = ran(choose_next, *words, "--out", out, "--count", 2)[0].splitlines()
    assert device.startswith("device ")
    assert chosen.startswith("2 of 21 files chosen, 1 known to the run, 1 copied, 1 unusable")
    rows = table(out / "next.csv")
    assert {Path(row["path"]).name[:2] for row in rows} == {"rg", "gb"}
    assert all({row["predicted"], row["second"]} in ({"red", "green"}, {"green", "blue"}) for row in rows)
    tasks = json.loads((out / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == [row["path"] for row in rows]
    if engine == "openvino":
        ran(choose_next, *words, "--out", out, "--count", 2, "--actors", 1)
        assert table(out / "next.csv") == rows
        filled = (out / "next.csv").read_text().replace(f"{rows[0]['path']},", f"{rows[0]['path']},red", 1)
        (out / "next.csv").write_text(filled)
        assert [row["label"] for row in table(out / "next.csv")] == ["red", ""]
        _, text = ran(choose_next, *words, "--out", out, "--count", 2, code=2)
        assert "next.csv holds 1 label that somebody filled in" in text
        assert (out / "next.csv").read_text() == filled
        (out / "next.csv").unlink()
        shutil.rmtree(pool)
        (tmp_path / "empty").mkdir()
        _, text = ran(choose_next, *words, "--data", tmp_path / "empty", "--out", out, code=2)
        assert text.startswith("error: --data: found no files in ")
