"""From photos to answers with nothing on a disk: the same results as on one, though the store fails all the time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from flowers import storage
from flowers.data.reading import stream_tables, tables
from flowers.errors import StoreFailed
from flowers.runs import Run
from jobs.evaluate import main as evaluate
from jobs.pack import main as pack
from jobs.predict import main as predict
from jobs.publish import main as publish
from jobs.train import main as train
from tests.conftest import SECRET
from tests.e2e.conftest import WITH_TINY, draw, ran, wide
from tests.faults.processes import end, running
from tests.s3.conftest import BUCKET
from tests.s3.proxy import SHARES
from tests.s3.store import Store
from tests.serving.server import serve

OPTIONS = (
    *("--backbone", "mobilenetv2", "--weights", "random", "--image-size", 64, "--precision", "float32"),
    *("--trainable", "block_16", "--augment", "none", "--head-epochs", 1, "--epochs", 3, "--batch-size", 4),
)


@dataclass(frozen=True)
class Chain:
    """Where the jobs read and write: `place` says it for each name."""

    place: Callable[[str], str]

    def train_words(self) -> list[str]:
        return [*map(str, ("--data", self.place("photos"), "--storage", self.place("runs"), "--name", "run", *OPTIONS))]

    def rest(self) -> str:
        """All jobs after training; what they print."""
        run, packed, models = self.place("runs/run"), self.place("packed"), self.place("models/flowers")
        told = ran(pack, "--data", self.place("photos"), "--out", packed, "--storage", self.place("runs"))
        words = ("--bundle", run, "--data", packed, "--storage", self.place("runs"))
        told += ran(evaluate, *words, "--allow-training-rows", "--out", self.place("evaluated"))
        told += ran(predict, *words, "--out", self.place("predicted"))
        return told + ran(publish, run, "--to", models)

    def result(self) -> dict[str, Any]:
        """All that must not depend on where the files are."""
        run = Run(self.place("runs/run"))
        report = json.loads(storage.read(run.report))
        lines = [json.loads(line) for line in storage.read(run.metrics).splitlines()]
        evaluated = json.loads(storage.read(self.place("evaluated/report.json")))
        predicted = [table(storage.join(self.place("predicted"), name)) for name in self.parts()]
        return {
            "metrics": [{name: line[name] for name in line if name != "seconds"} for line in lines],
            "split": table(run.split),
            "predicted": [row for part in predicted for row in part],
            "evaluated": [evaluated[name] for name in ("summary", "rows", "slices")],
            **{name: report[name] for name in ("validation", "test", "best_epoch", "weights_sha256")},
        }

    def parts(self) -> list[str]:
        return [name for name in storage.names(self.place("predicted")) if name.endswith(".parquet")]


def table(uri: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file; of paths, the names."""
    filesystem, path = storage.resolve(uri)
    rows = pq.read_table(path, filesystem=filesystem).to_pylist()
    return [{**row, "path": "/".join(storage.cut(row["path"])[0].split("/")[-2:])} for row in rows]


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*.jpg"):
        storage.write(storage.join(uri, *path.relative_to(folder).parts), path.read_bytes())


@pytest.mark.usefixtures("ray")
def test_the_whole_chain_through_a_store_that_fails(s3: Store, faulty: Store, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", classes=3, each=8)
    local = Chain(lambda name: str(tmp_path / name))
    with wide():
        ran(train, *local.train_words())
    local.rest()

    remote = Chain(lambda name: faulty.uri(f"{BUCKET}/{name}"))
    upload(photos, s3.uri(f"{BUCKET}/photos"))
    words = [*WITH_TINY, sys.executable, "-m", "jobs.train", *remote.train_words()]
    with running(words, tmp_path / "killed") as job:
        checkpoints = s3.uri(f"{BUCKET}/runs/run/checkpoints")
        job.until(lambda: max(storage.names(checkpoints), default="") >= "epoch-0002", pause=0.05)
        end(job.pid)
        job.wait()
        told = job.out.read_text() + job.err.read_text()
    assert not storage.exists(remote.place("runs/run/best/manifest.json"))
    with wide():
        again = ran(train, *remote.train_words())
    assert "going on after epoch " in again
    told += again + remote.rest()
    found = remote.result()
    assert found == local.result()

    photo = photos / "class1" / "003.jpg"
    with serve(remote.place("models"), tmp_path / "server") as server:  # type: ignore[arg-type]
        answer = server.predict(photo.read_bytes()).json()
        commands = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        told += server.job.out.read_text() + server.job.err.read_text()
    (row,) = [row for row in found["predicted"] if row["path"] == "class1/003.jpg"]
    assert answer["label"] == row["label"]
    assert answer["score"] == pytest.approx(row["score"], abs=1e-5)

    counts = faulty.counts()
    assert all(counts[kind] > 0 for kind in SHARES), counts
    left = storage.entries(s3.uri(BUCKET), below=True)
    assert not [entry.name for entry in left if storage.is_left_over(entry.name)]
    written = b"".join(bytes_of(s3.uri(BUCKET)))
    assert b'"weights_sha256"' in written
    for text in (told, commands, written.decode(errors="replace")):
        assert SECRET not in text
        assert len(text) > 1000


@pytest.mark.usefixtures("ray")
def test_a_store_that_fails_where_photos_are_read_is_one_line() -> None:
    def read(block: pa.Table) -> pa.Table:
        raise StoreFailed("the object store failed")

    listing = pa.table({"path": ["s3://flowers/a.jpg"]})
    with pytest.raises(StoreFailed, match=r"\Athe object store failed\Z"):
        list(tables(stream_tables([listing], read, readers=1)))


def bytes_of(folder: str) -> Iterator[bytes]:
    """The content of all files of a bucket."""
    filesystem, path = storage.resolve(folder)
    for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)):
        if info.type == pafs.FileType.File:
            with filesystem.open_input_stream(info.path) as stream:
                yield stream.read()
