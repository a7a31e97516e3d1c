"""Test photos through a bundle: everything is counted, what is shown is what the model says."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flowers.errors import DamagedFile
from flowers.evaluation.answers import Answers
from flowers.evaluation.evaluate import answered
from flowers.evaluation.gallery import first_photos, worth_a_look
from flowers.prediction.scorer import DECODED
from flowers.predictor import Predictor
from tests.toys import by_colour

SIZE, CLASSES = 4, ("blue", "green", "red")
COLORS = np.array([[0, 0, 200], [0, 200, 0], [200, 0, 0]], np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A model that is wrong on purpose: it calls red what is blue, and blue what is red."""
    return Predictor(by_colour(SIZE, list(CLASSES), 100))


def table(labels: list[int], **changes: list[Any]) -> pa.Table:
    rows: dict[str, list[Any]] = {name: [None] * len(labels) for name in DECODED.names}
    rows["path"] = [f"{index}.png" for index in range(len(labels))]
    rows["label"] = [CLASSES[label] for label in labels]
    rows["pixels"] = [np.broadcast_to(COLORS[label], (SIZE, SIZE, 3)).tobytes() for label in labels]
    return pa.table({**rows, **changes}, schema=DECODED)


def tables(*parts: list[int]) -> Iterator[pa.Table]:
    return (table(part) for part in parts)


def on_disk(folder: Path, labels: list[int], predictor: Predictor, strength: float = 1.0) -> Answers:
    """Answers to photos of files, of which the later ones are paler."""
    pixels = [
        np.broadcast_to((COLORS[label] * strength**at).astype(np.uint8), (SIZE, SIZE, 3))
        for at, label in enumerate(labels)
    ]
    paths = [folder / f"{at}.png" for at in range(len(labels))]
    for path, photo in zip(paths, pixels, strict=True):
        Image.fromarray(photo).save(path)
    made = table(
        labels,
        path=[str(path) for path in paths],
        sha256=[hashlib.sha256(path.read_bytes()).digest() for path in paths],
        pixels=[photo.tobytes() for photo in pixels],
    )
    return answered([made], predictor, CLASSES)


def colour(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture).mean(axis=(0, 1))


def test_what_is_shown_is_the_prediction_not_the_truth(predictor: Predictor, tmp_path: Path) -> None:
    examples = first_photos(on_disk(tmp_path, [0, 1, 2], predictor), 5, str(tmp_path), predictor)
    assert [row.label for row in examples] == ["blue", "green", "red"]
    assert [row.predicted for row in examples] == ["red", "green", "blue"]
    for index, row in enumerate(examples):
        assert row.path == f"{index}.png"
        assert row.score == row.top[0].score > 0.5
        assert row.top[0].label == row.predicted
        assert row.label_score == next(entry.score for entry in row.top if entry.label == row.label)
        scores = [entry.score for entry in row.top]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        assert colour(row.thumbnail).argmax() == COLORS[index].argmax()
        assert list(row.model_dump(mode="json")) == ["path", "label", "predicted", "score", "label_score", "top"]


def test_every_photo_is_counted(predictor: Predictor) -> None:
    parts = [[0, 1, 2, 0], [], [1] * 40, [2, 0]]
    counts = answered(tables(*parts), predictor, CLASSES).counts
    assert counts.n == 46
    np.testing.assert_array_equal(counts.confusion, [[0, 0, 3], [0, 41, 0], [2, 0, 0]])
    at_once = answered(tables([label for part in parts for label in part]), predictor, CLASSES).counts
    np.testing.assert_allclose(at_once.to_vector(), counts.to_vector(), rtol=1e-6)
    assert answered(iter([]), predictor, CLASSES).summary().n == 0


def test_a_photo_that_was_lost_stops_the_evaluation(predictor: Predictor) -> None:
    pixels = table([0, 1])["pixels"].to_pylist()
    lost = table([0, 1], code=[None, "missing"], detail=[None, "no such file"], pixels=[pixels[0], None])
    with pytest.raises(DamagedFile, match=r"1\.png .*no such file") as caught:
        answered([table([0]), lost], predictor, CLASSES)
    assert "\n" not in str(caught.value)


def test_what_is_worth_a_look(predictor: Predictor, tmp_path: Path) -> None:
    labels = [0] * 12 + [1] * 3
    answers = on_disk(tmp_path, labels, predictor, 0.9)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())  # changed since
    galleries, cells = worth_a_look(answers, str(tmp_path), predictor)
    worst, surest, unsure = galleries
    assert [(one.n, one.above, len(one.photos)) for one in galleries] == [(12, 0, 9), (12, 9, 0), (3, 0, 3)]
    assert [photo.path for photo in worst.photos] == [f"{at}.png" for at in range(9)]  # the palest are the least sure
    assert surest.photos == []
    assert [photo.path for photo in unsure.photos] == ["14.png", "13.png", "12.png"]
    first, changed = worst.photos[:2]
    assert first.label_score is not None
    assert first.label_score < 0.2 < 0.7 < first.score
    assert (changed.thumbnail, changed.heat) == ("", "")
    blue, warm = colour(first.thumbnail), colour(first.heat)
    assert blue.argmax() == 2
    assert warm.argmax() == 0  # grey, and orange where it speaks for red
    assert [(one.true, one.predicted, one.n, len(one.photos)) for one in cells] == [
        ("blue", "red", 12, 12),
        ("green", "green", 3, 3),
    ]
    assert colour(cells[1].photos[0].thumbnail).argmax() == 1
    assert not any(photo.heat for one in cells for photo in one.photos)
