"""Packing as people do it, and jobs on a pack: the same results as on its folder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flowers import locks, storage
from flowers.data import pack as packs
from flowers.data.listing import list_photos
from flowers.data.shards import below
from jobs.check import main as check
from jobs.evaluate import main as evaluate
from jobs.next import main as choose_next
from jobs.pack import main as pack
from jobs.predict import main as predict
from jobs.suspects import main as find_suspects
from tests.conftest import start_ray
from tests.e2e.conftest import SMALL, Done, Job, draw, ran
from tests.toys import saved_by_colour

SHARD_MB = 0.03


def packed(data: Path, out: Path, *more: object, code: int = 0) -> str:
    return ran(
        pack, "--data", data, "--out", out, "--storage", out.parent / "none", "--shard-mb", SHARD_MB, *more, code=code
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is decided by the photos."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != packs.SOURCE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of 3 classes, and what lies beside photos."""
    folder = draw(tmp_path_factory.mktemp("pack") / "photos", classes=3, each=12)
    photo = (folder / "class0" / "000.jpg").read_bytes()
    (folder / "class0" / "broken.jpg").write_bytes(photo[:300])
    (folder / "class0" / "copy #1?.jpg").write_bytes(photo)
    (folder / "class0" / "005.jpg").rename(folder / "class2" / "wrong.jpg")
    (folder / "class1" / "burst").mkdir()
    (folder / "class1" / "001.jpg").rename(folder / "class1" / "burst" / "1.jpg")
    (folder / "class1" / "notes.txt").write_text("no photo")
    (folder / "class1" / ".hidden.jpg").write_bytes(photo)
    (folder / "class2" / "gone.jpg").symlink_to("nowhere")
    (folder / "readme.txt").write_text("lies in no class")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """Their pack."""
    start_ray()
    out = data.parent / "packed"
    lines = packed(data, out).splitlines()
    shards = len(list(out.glob("shard-*")))
    assert shards > 2
    assert lines[0] == f"42 files of {data}"
    assert lines[-2].startswith("packed 40 photos of 42 files, 0.1 MB in ")
    assert lines[-2].endswith(
        f" MB in {shards} shards, in {out}; 2 left out (1 hidden, 1 unreadable), each in {out}/left_out.csv"
    )
    assert lines[-1] == f"next      python -m jobs.train --data {out}"
    assert not [path.name for path in out.iterdir() if path.name.endswith((".tmp", ".lock"))]
    return out


def ledger(done: Done, source: Path) -> list[dict[str, Any]]:
    """The ledger by the names that files have below their source."""
    rows = pq.read_table(done.run / "ledger.parquet").to_pylist()
    for row in rows:
        row["path"] = below(row["path"], str(source))
        row["like"] = row["like"] and below(row["like"], str(source))
        row["detail"] = row["detail"] and row["detail"].rpartition("/")[2]
    return rows


@pytest.mark.usefixtures("ray")
def test_training_on_a_pack_is_training_on_its_folder(tiny_job: Job, data: Path, whole: Path, tmp_path: Path) -> None:
    deeper = (
        "--trainable",
        "block_16",
        "--augment",
        "standard",
        "--head-epochs",
        1,
    )  # which reads photos in each epoch
    options = (*SMALL, *deeper, "--epochs", 2, "--max-bad-fraction", 0.2)
    one = tiny_job(tmp_path / "a", "run", "--data", data, *options)
    other = tiny_job(tmp_path / "b", "run", "--data", whole, *options)
    assert ledger(one, data) == ledger(other, whole)
    splits = [pq.read_table(done.run / "split.parquet").drop_columns("path") for done in (one, other)]
    assert splits[0].equals(splits[1])
    assert one.metrics() == other.metrics()
    for name in ("validation", "test", "best_epoch", "weights_sha256", "slices"):
        assert one.report[name] == other.report[name], name
    assert one.report["data"]["reasons"] == other.report["data"]["reasons"] != {}
    sheets = [(done.run / "augmented.jpg").read_bytes() for done in (one, other)]
    assert sheets[0] == sheets[1]
    pages = [(done.run / "report.html").read_text() for done in (one, other)]
    assert pages[0].count("data:image") == pages[1].count("data:image") > 3
    page = tmp_path / "check.html"
    ran(check, "--data", whole, "--page", page, "--storage", tmp_path / "a", "--max-bad-fraction", 0.2)
    assert "data:image" in page.read_text()
    found = []
    for done in (one, other):
        ran(find_suspects, done.run)
        with (done.run / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
            found.append([{**row, "path": row["path"].rpartition("/")[2]} for row in csv.DictReader(file)])
        assert "data:image" in (done.run / "suspects.html").read_text()
    assert found[0] == found[1] != []


@pytest.mark.parametrize("options", [{"per_class": 5}, {"group_by": r"^class\d/(burst|\d\d)"}])
def test_what_goes_by_names_goes_by_those_that_were_packed(
    data: Path, whole: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    rest: dict[str, Any] = {"datasets": str(tmp_path), "per_class": None, "seed": 3, **options}
    found = []
    for source in (data, whole):
        rows = list_photos(**{**rest, "data": str(source)}).table.to_pylist()
        found.append([(below(row["path"], str(source)), row["label"], row["group"], row["code"]) for row in rows])
    assert found[0] == found[1]


@pytest.mark.usefixtures("ray")
def test_predictions_and_what_to_label_next(data: Path, whole: Path, tmp_path: Path) -> None:
    bundle = saved_by_colour(tmp_path / "best", ["class0", "class1", "class2"])
    found, sorted_as, reports = [], [], []
    for name, source in (("one", data), ("other", whole)):
        out, sorted_into = tmp_path / name, tmp_path / f"{name}-sorted"
        words = ("--bundle", bundle, "--data", source, "--out", out, "--storage", tmp_path / "runs")
        ran(predict, *words, "--sort-into", sorted_into)
        rows = pq.read_table(out).to_pylist()
        found.append([{**row, "path": below(row["path"], str(source))} for row in rows])
        sorted_as.append(sorted(str(path.relative_to(sorted_into)) for path in sorted_into.rglob("*.jpg")))
        ran(evaluate, *words[:5], tmp_path / f"{name}-evaluated", *words[6:])
        reports.append(json.loads((tmp_path / f"{name}-evaluated" / "report.json").read_text()))
    assert found[0] == found[1]
    assert len(found[0]) == 42
    for part in ("summary", "rows", "reasons", "slices", "auc"):
        assert reports[0][part] == reports[1][part], part
    folders = [{name.partition("/")[0] for name in names} for names in sorted_as]
    assert folders[0] == folders[1]
    assert len(sorted_as[0]) == len(sorted_as[1]) > 30
    text = ran(predict, *words, "--sort-into", tmp_path / "links", "--link", code=2)
    assert "--link: required is photos that are files, these lie in shards" in text
    chosen = tmp_path / "next"
    ran(choose_next, "--bundle", bundle, "--data", whole, "--out", chosen, "--storage", tmp_path / "runs", "--count", 4)
    for task in json.loads((chosen / "tasks.json").read_text()):
        photo = Path(task["data"]["path"])
        assert photo.parent == chosen / "photos"
        assert storage.file_sha256(str(photo)) == task["data"]["sha256"]


@pytest.mark.usefixtures("ray")
def test_a_killed_pack_goes_on_and_another_one_starts_over(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(packs, "finish", stop)
        packed(data, out, code=130)
    assert (out / packs.SOURCE).exists()
    assert "is no whole pack" in ran(check, "--data", out, "--page", tmp_path / "x.html", code=2)
    (out / "shard-00001.parquet").unlink()
    (out / f"shard-00002.parquet.{'0' * 32}.tmp").write_bytes(b"half")
    (out / "shard-00099.parquet").write_bytes(b"of more photos")
    (out / "shard-00000.parquet").write_bytes(b"torn")
    times = {path: path.stat().st_mtime_ns for path in out.glob("shard-0000[23].parquet")}
    text = packed(data, out)
    assert "goes on: 5 shards are there" in text  # one of them torn, one of more photos
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert files_of(out) == files_of(whole)
    assert "nothing to do: all is packed, 40 photos of 42 files" in packed(data, out)

    (out / "shard-00003.parquet").unlink()
    assert "starts over: --data: the pack" in packed(data, out)
    assert files_of(out) == files_of(whole)

    photos = tmp_path / "photos"
    shutil.copytree(data, photos, symlinks=True)
    (photos / "class0" / "000.jpg").unlink()
    assert "is a pack of other photos or options, or these changed since" in packed(photos, out, code=2)
    (out / packs.MANIFEST).unlink()
    (out / "mine.parquet").write_bytes(b"dear")
    assert "holds 'mine.parquet' beside a pack that is to be written anew" in packed(photos, out, code=2)
    (out / "mine.parquet").rename(out / ".mine")
    assert "starts over: the unfinished pack there was of other photos" in packed(photos, out)
    assert json.loads((out / packs.MANIFEST).read_text())["photos"] == 39
    assert (out / ".mine").read_bytes() == b"dear"


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("dear")
    assert "holds 'mine.txt' and is no pack of this program" in packed(data, tmp_path / "full", code=2)
    assert (tmp_path / "full" / "mine.txt").read_text() == "dear"
    for inside in (data, data / "packed"):
        assert "required is a folder outside of that of the photos" in packed(data, inside, code=2)
    (tmp_path / "empty").mkdir()
    assert "found no files" in packed(tmp_path / "empty", tmp_path / "out", code=2)
    with locks.hold(locks.beside(str(tmp_path / "out"))):
        assert "is in use by process" in packed(data, tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray")
def test_a_manifest_a_pack_and_photos_without_labels(data: Path, whole: Path, tmp_path: Path) -> None:
    rows = [
        ("class0/000.jpg", "a", "train", "g"),
        ("class1/000.jpg", "", "", ""),
        (str(data / "class2/gone.jpg"), "b", "", ""),
    ]
    lines = ["path,label,split,group", *(",".join(row) for row in rows)]
    (data / "labels.csv").write_text("\n".join(lines))
    try:
        packed(data / "labels.csv", tmp_path / "one")
    finally:
        (data / "labels.csv").unlink()
    table = pq.read_table(tmp_path / "one" / "shard-00000.parquet").to_pylist()
    assert [(row["path"], row["label"], row["split"], row["group"]) for row in table] == [
        ("class0/000.jpg", 0, "train", "g"),
        ("class1/000.jpg", None, None, None),
    ]
    packed(whole, tmp_path / "again")
    before, after = (
        [row for path in sorted(folder.glob("shard-*")) for row in pq.read_table(path).to_pylist()]
        for folder in (whole, tmp_path / "again")
    )
    assert before == after
