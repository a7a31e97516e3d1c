"""Photos that a server keeps: as many as were asked for, each once, never more bytes than allowed."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from flowers.data.manifest import read_manifest
from flowers.errors import InputError
from flowers.predictor import Prediction
from serving.sampling import MANIFEST, Sampler
from tests.data.test_images import SAMPLES
from tests.serving.server import CLASSES, publish

ANSWER = Prediction("rose", 0.75, np.zeros(3, np.float32), np.zeros((1, 1), np.float32))


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def offered(sampler: Sampler, *photos: bytes) -> None:
    for photo in photos:
        sampler.offer(photo, ANSWER, 7)
    sampler._thread.submit(int).result(30)


def test_photos_are_kept_once_and_can_be_labelled(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    offered(Sampler(str(folder), 1, 1 << 20), SAMPLES["jpeg"], SAMPLES["png"], SAMPLES["jpeg"])
    rows = kept(folder)
    assert [(row["label"], row["predicted"], row["score"], row["version"]) for row in rows] == [
        (None, "rose", 0.75, 7)
    ] * 2
    assert [(folder / row["path"]).read_bytes() for row in rows] == [SAMPLES["jpeg"], SAMPLES["png"]]
    assert {Path(row["path"]).suffix for row in rows} == {".jpg", ".png"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    listed, _ = read_manifest(str(folder / MANIFEST))
    assert [row[4] for row in listed] == ["unlabelled"] * 2
    (folder / MANIFEST).write_text("".join(json.dumps({**row, "label": "rose"}) + "\n" for row in rows))
    listed, _ = read_manifest(str(folder / MANIFEST))
    assert [(row[0], row[1]) for row in listed] == [(str(folder / row["path"]), "rose") for row in rows]


def test_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    photos = [SAMPLES["jpeg"] + bytes([number]) for number in range(50)]
    most = 10 * len(photos[0])
    for _ in range(3):  # also when it is started again
        offered(Sampler(str(tmp_path), 1, most), *photos)
    assert 0 < sum(entry.stat().st_size for entry in os.scandir(tmp_path)) <= most


def test_a_share_of_photos(tmp_path: Path) -> None:
    offered(Sampler(str(tmp_path), 0, 1 << 20), *[SAMPLES["jpeg"] + bytes([number]) for number in range(50)])
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--sample-to: .* cannot be written"):
        Sampler(str(tmp_path / "file"), 1, 1)


def test_what_a_replica_tells_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics count answers by class, beside what the same network said of validation photos."""
    from serving import replica
    from serving.metrics import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    publish(tmp_path / "models", 1, validation={"confusion_matrix": [[3, 0, 1], [0, 2, 0], [0, 0, 2]]})
    options = {"bundle": str(tmp_path / "models"), "watch_s": 0, "sample_to": str(tmp_path / "kept"), "sample_rate": 1}
    classifier = replica.Classifier(options)
    model, answers = asyncio.run(classifier.classify([SAMPLES["jpeg"], SAMPLES["png"], b"no photo"]))
    assert model.keeps_photos
    assert classifier._sampler
    offered(classifier._sampler)
    assert [row["predicted"] for row in kept(tmp_path / "kept")] == [vars(answer)["label"] for answer in answers[:2]]
    classifier.metrics.update_gauges()
    text = generate_latest(classifier.metrics._own).decode()
    counted = [line for line in text.splitlines() if line.startswith("flowers_predictions_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 2
    assert "flowers_score_count 2.0" in text
    for name, share in zip(CLASSES, (3 / 8, 2 / 8, 3 / 8), strict=True):
        assert any(
            line.startswith(f'flowers_validation_share{{label="{name}"') and line.endswith(f" {share}")
            for line in text.splitlines()
        )
    assert "flowers_validation_accuracy" in text
