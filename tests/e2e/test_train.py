from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.e2e.conftest import ROOT, SMALL, WITH_TINY, Done, Job, command, draw, environment

SUBSETS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def first(process: Job, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """60 small pictures of 3 classes with a bad file among them, trained in a process of its own."""
    place = tmp_path_factory.mktemp("train")
    data = draw(place / "data", classes=3, each=20)
    (data / "class0" / "broken.jpg").write_bytes((data / "class0" / "000.jpg").read_bytes()[:300])
    (data / "class1" / "notes.txt").write_text("not a photo")
    return process(place / "runs", "first", "--data", data, *SMALL, "--epochs", 12, before=WITH_TINY)


def again(job: Job, first: Done, name: str, *arguments: object) -> Done:
    """Another run on the same photos and the same cache."""
    data = first.run.parent.parent / "data"
    return job(first.run.parent, name, "--data", data, *SMALL, "--epochs", 12, *arguments)


def test_a_run_leaves_what_the_design_says(first: Done) -> None:
    names = {entry.name for entry in first.run.iterdir()}
    wanted = {"config.json", "split.parquet", "ledger.parquet", "metrics.jsonl", "checkpoints", "best"}
    assert wanted | {"report.json", "report.html", "tensorboard"} <= names
    files = {"model.keras", "network.xml", "network.bin", "labels.txt", "typicality.bin", "manifest.json"}
    assert {entry.name for entry in (first.run / "best").iterdir()} == files
    assert list((first.run / "tensorboard").iterdir())
    assert not [name for name in names if name.startswith(".")], "working folders are left behind"


def test_every_file_is_accounted_for(first: Done) -> None:
    report = first.report
    data, split = report["data"], report["split"]
    assert data["found"] == 62 == sum(split[subset] for subset in SUBSETS) + data["quarantined"]
    assert data["reasons"] == {"truncated": 1, "side_file": 1}
    assert data["used"] == 60 == sum(split[subset] for subset in SUBSETS)
    ledger = pq.read_table(first.run / "ledger.parquet").to_pylist()
    assert len(ledger) == 62
    assert {row["status"] for row in ledger} == {*SUBSETS, "quarantined"}


def test_report_has_what_others_read_from_it(first: Done) -> None:
    report = first.report
    for subset in ("validation", "test"):
        for metric in ("accuracy", "macro_accuracy", "log_loss"):
            assert set(report[subset][metric]) == {"value", "n", "low", "high"}
            assert report[subset][metric]["n"] == report["split"][subset]
    assert {"total", "start", "read", "features", "train", "evaluate"} <= set(report["timing_s"])
    parts = sum(seconds for name, seconds in report["timing_s"].items() if name != "total")
    assert abs(parts - report["timing_s"]["total"]) < 0.1
    assert (report["weights"], report["backbone"], report["precision"]) == ("random", "mobilenetv2", "float32")
    assert (report["seed"], report["sample"]) == (0, False)
    assert Path(report["bundle"]) == first.run / "best"
    assert 0 < len(report["predictions"]) <= 5
    assert report["unknown"]["rejected"]["n"] == report["test"]["n"]
    assert {share["n"] for share in report["unknown"]["detected"].values()} <= {report["test"]["n"], 20}
    data = first.run.parent.parent / "data"
    assert all((data / shown["path"]).is_file() for shown in report["predictions"])
    # Of the few test photos all are shown: in their cell of the confusion matrix, and in a gallery with a heat map.
    tested = report["split"]["test"]
    assert sum(bin_["n"] for bin_ in report["calibration"]["bins"]) == tested
    assert sum(len(cell["photos"]) for cell in report["cells"]) == sum(cell["n"] for cell in report["cells"]) == tested
    assert sum(len(gallery["photos"]) for gallery in report["galleries"]) == tested
    page = (first.run / "report.html").read_text()
    assert page.count("what spoke for") == 1 + tested


def test_terminal_says_where_the_time_went_and_shows_predictions(first: Done) -> None:
    assert "original: " in first.out
    assert "predicted: " in first.out
    assert "where the time went" in first.out
    assert "images/s" in first.out
    assert str(first.run / "best") in first.out
    assert first.err == "", "log noise reached the terminal"


def test_metrics_name_the_learning_rate_that_applied(first: Done) -> None:
    rates = [line["learning_rate"] for line in first.metrics()]
    assert max(rates) == pytest.approx(0.001, rel=0.1)
    assert rates[-1] < 0.1 * max(rates)


def test_same_seed_from_the_cache_gives_the_same_run(tiny_job: Job, first: Done) -> None:
    second = again(tiny_job, first, "second")
    assert second.report["features"] == {**first.report["features"], "hits": 60, "computed": 0}
    assert second.metrics() == first.metrics()
    assert second.report["weights_sha256"] == first.report["weights_sha256"]
    assert second.report["test"] == first.report["test"]


def test_folds_tell_a_spread_and_leave_the_model_as_it_is(tiny_job: Job, first: Done) -> None:
    done = again(tiny_job, first, "folds", "--folds", 2)
    assert done.report["features"]["computed"] == 0
    assert done.report["weights_sha256"] == first.report["weights_sha256"]
    found, split = done.report["cross_validation"], done.report["split"]
    assert found["held_out"]["n"] == split["train"] + split["validation"] == sum(f["held_out"] for f in found["folds"])
    accuracies = [fold["accuracy"] for fold in found["folds"]]
    assert found["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert "2 folds" in done.out
    assert "held out: " in done.out
    assert '<h2 id="folds">2 folds</h2>' in (done.run / "report.html").read_text()


def test_the_engine_changes_nothing_but_roundings(tiny_job: Job, first: Done) -> None:
    data = first.run.parent.parent / "data"
    other = tiny_job(first.run.parent, "other", "--data", data, *SMALL, "--epochs", 12, "--engine", "tensorflow")
    assert "openvino: no GPU is used" in first.out
    assert "tensorflow: as asked" in other.out
    assert other.report["features"]["computed"] == 60, "each engine has a cache of its own"
    for mine, theirs in zip(first.metrics(), other.metrics(), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    (network,) = (first.run.parent / "cache" / "networks").iterdir()
    assert {entry.name for entry in network.iterdir()} == {"network.xml", "network.bin", "network.json"}


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_converted_network_is_made_again(tiny_job: Job, first: Done, damage: str) -> None:
    (network,) = (first.run.parent / "cache" / "networks").iterdir()
    file = network / "network.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9]) if damage == "torn" else file.unlink()
    for cache in (first.run.parent / "cache" / "features").iterdir():
        shutil.rmtree(cache)
    assert again(tiny_job, first, f"network-{damage}").metrics() == first.metrics()
    assert file.read_bytes() == whole


def test_actors_give_the_same_features_as_the_job_itself(tiny_job: Job, first: Done) -> None:
    data = first.run.parent.parent / "data"
    pool = tiny_job(
        first.run.parent.parent / "pool", "pool", "--data", data, *SMALL, "--epochs", 12, "--feature-actors", 1
    )
    assert pool.report["features"]["computed"] == 60
    assert pool.metrics() == first.metrics()


def test_more_photos_compute_only_those_and_keep_the_split(tiny_job: Job, first: Done, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", classes=3, each=25)
    split = first.run / "split.parquet"
    more = tiny_job(first.run.parent, "more", "--data", data, *SMALL, "--epochs", 2, "--split-file", split)
    assert (more.report["features"]["hits"], more.report["features"]["computed"]) == (60, 15)
    before = {row["sha256"]: row["split"] for row in pq.read_table(split).to_pylist()}
    after = {row["sha256"]: row["split"] for row in pq.read_table(more.run / "split.parquet").to_pylist()}
    assert before.items() <= after.items()
    assert len(after) == 75


def test_damaged_cache_part_is_found_and_computed_again(tiny_job: Job, first: Done) -> None:
    for part in Path(first.report["features"]["cache"]).glob("*.parquet"):
        data = bytearray(part.read_bytes())
        data[-20] ^= 1
        part.write_bytes(data)
    mended = again(tiny_job, first, "mended")
    assert "damaged" in mended.out
    assert mended.report["features"]["computed"] == 60
    assert mended.metrics() == first.metrics()


def test_damaged_features_are_found_by_training_and_computed_by_the_next_command(tiny_job: Job, first: Done) -> None:
    (part,) = Path(first.report["features"]["cache"]).glob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) * 3 // 4 - 1000] ^= 1  # not in the footer
    part.write_bytes(data)
    storage, photos = first.run.parent, first.run.parent.parent / "data"
    options = ("--data", photos, *SMALL, "--epochs", 12)
    failed = tiny_job(storage, "read", *options, code=1)
    assert f"{part.name} cannot be read" in failed.err
    assert "run the same command again: what is lost is computed again" in failed.err
    assert failed.err.count("\n") == 1
    mended = tiny_job(storage, "read", *options)
    assert f"the cache part {part.name} was damaged; its photos are computed again" in mended.out
    assert mended.report["features"]["computed"] == 60
    assert mended.metrics() == first.metrics()
    assert sorted(path.name for path in part.parent.iterdir()) == [".used", part.name]


def test_finished_run_does_nothing_and_another_one_is_refused(tiny_job: Job, first: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in first.run.rglob("*")}
    data = first.run.parent.parent / "data"
    said = again(tiny_job, first, "first").out
    assert "is finished" in said
    assert "did not read" not in said
    moved = next(data.glob("*/*"))
    for place in (moved.with_name("new.jpg"), moved.with_name("another.jpg")):
        shutil.copy(moved, place)
    moved.rename(data.parent / moved.name)
    try:
        said = again(tiny_job, first, "first").out
    finally:
        (data.parent / moved.name).rename(moved)
        for place in (moved.with_name("new.jpg"), moved.with_name("another.jpg")):
            place.unlink()
    assert "--data has 2 files that the run did not read, and 1 of its files have gone" in said
    assert {path: path.stat().st_mtime_ns for path in first.run.rglob("*")} == before
    refused = tiny_job(first.run.parent, "first", "--data", data, *SMALL, "--epochs", 13, code=2)
    assert "--epochs was 12, now 13" in refused.err
    assert "--fresh" in refused.err


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tiny_job: Job, first: Done) -> None:
    storage, data = first.run.parent, first.run.parent.parent / "data"
    options = ("--data", data, *SMALL, "--epochs", 80, "--patience", 0)
    words = [*WITH_TINY, *command(storage, "stopped", *options)]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        metrics = storage / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    done = len(metrics.read_text().splitlines())
    assert done < 80
    resumed = tiny_job(storage, "stopped", *options)
    (after,) = re.findall(r"going on after epoch (\d+)", resumed.out)
    assert int(after) - done in (0, 1), "the checkpoint is written just before its line of metrics"
    whole = tiny_job(storage, "whole", *options)
    assert resumed.metrics() == whole.metrics()
    assert resumed.report["weights_sha256"] == whole.report["weights_sha256"]


def test_a_split_on_disk_is_kept_and_copies_do_not_lie_on_two_sides(tiny_job: Job, tmp_path: Path) -> None:
    """Also where nothing is decoded any more, as all is in the caches."""
    for side, first, each in (("Training", 0, 14), ("val", 14, 6)):
        draw(tmp_path / "data" / side, classes=3, each=each, first=first)
    for label, number in (("class0", 15), ("class1", 2)):  # a photo of each side, once more among the training photos
        original = tmp_path / "data" / ("val" if number == 15 else "Training") / label / f"{number:03}.jpg"
        picture = Image.open(original)
        copy = tmp_path / "data" / "Training" / label / "copy.png"
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((144, 128)).save(copy)
    options = ("--data", tmp_path / "data", *SMALL, "--epochs", 2)
    cold = tiny_job(tmp_path / "runs", "cold", *options)
    warm = tiny_job(tmp_path / "runs", "warm", *options, "--learning-rate", 0.01)
    assert "a split on disk: Training/ (train), val/ (validation) above 3 classes; test is cut from train" in cold.out
    assert "features  0 from the cache, 62 computed" in cold.out
    assert "features  62 from the cache, 0 computed" in warm.out
    ledgers = [pq.read_table(done.run / "ledger.parquet") for done in (cold, warm)]
    assert ledgers[0].equals(ledgers[1])
    rows = {Path(row["path"]).relative_to(tmp_path / "data").as_posix(): row for row in ledgers[0].to_pylist()}
    assert {row["status"] for path, row in rows.items() if path.startswith("val/")} == {"validation"}
    leak = rows["Training/class0/copy.png"]
    assert (leak["status"], leak["reason"]) == ("quarantined", "leak")
    assert "near-duplicate of" in leak["detail"]
    copy, original = rows["Training/class1/copy.png"], rows["Training/class1/002.jpg"]
    assert copy["status"] == original["status"] != "quarantined"
    assert "1 file shows what is also on another side" in cold.out
