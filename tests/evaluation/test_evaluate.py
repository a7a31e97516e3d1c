"""The test set through a bundle: everything is counted, what is shown is what the model says."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flowers.data.reading import PIXELS
from flowers.errors import DamagedFile
from flowers.evaluation.evaluate import evaluate
from flowers.evaluation.metrics import Counts
from flowers.predictor import Predictor
from tests.toys import by_colour

SIZE, CLASSES = 4, ["blue", "green", "red"]
COLORS = np.array([[0, 0, 200], [0, 200, 0], [200, 0, 0]], np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A model that is wrong on purpose: it calls red what is blue, and blue what is red."""
    return Predictor(by_colour(SIZE, CLASSES, 100))


def table(labels: list[int], **changes: list[Any]) -> pa.Table:
    rows: dict[str, list[Any]] = {name: [None] * len(labels) for name in PIXELS.names}
    rows["path"] = [f"{index}.png" for index in range(len(labels))]
    rows["label"] = [CLASSES[label] for label in labels]
    rows["pixels"] = [np.broadcast_to(COLORS[label], (SIZE, SIZE, 3)).tobytes() for label in labels]
    return pa.table({**rows, **changes}, schema=PIXELS)


def tables(*parts: list[int]) -> Iterator[pa.Table]:
    return (table(part) for part in parts)


def test_what_is_shown_is_the_prediction_not_the_truth(predictor: Predictor) -> None:
    _, examples = evaluate(tables([0, 1, 2]), predictor, examples=3)
    assert [row.label for row in examples] == ["blue", "green", "red"]
    assert [row.predicted for row in examples] == ["red", "green", "blue"]
    for index, row in enumerate(examples):
        assert row.path == f"{index}.png"
        assert row.score == row.top[0].score > 0.5
        assert row.top[0].label == row.predicted
        scores = [entry.score for entry in row.top]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        kind, data = row.thumbnail.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            shown = np.asarray(picture).mean(axis=(0, 1))
        assert shown.argmax() == COLORS[index].argmax()


def test_examples_are_named_from_the_source(predictor: Predictor) -> None:
    for source in ("/photos", "/photos/"):
        _, (one, other) = evaluate(iter([table([0, 1], path=["/photos/a/1.png", "/else/2.png"])]), predictor, 2, source)
        assert (one.path, other.path) == ("a/1.png", "/else/2.png")


def test_thumbnails_are_not_in_the_json(predictor: Predictor) -> None:
    _, (example,) = evaluate(tables([0]), predictor, examples=1)
    written = example.model_dump(mode="json")
    assert list(written) == ["path", "label", "predicted", "score", "top"]
    assert list(written["top"][0]) == ["label", "score"]


def test_every_photo_is_counted(predictor: Predictor) -> None:
    parts = [[0, 1, 2, 0], [], [1] * 40, [2, 0]]
    counts, examples = evaluate(tables(*parts), predictor)
    assert examples == []
    assert counts.n == 46
    np.testing.assert_array_equal(counts.confusion, [[0, 0, 3], [0, 41, 0], [2, 0, 0]])
    at_once, _ = evaluate(tables([label for part in parts for label in part]), predictor)
    np.testing.assert_allclose(at_once.to_vector(), counts.to_vector(), rtol=1e-6)
    none, _ = evaluate(iter([]), predictor)
    np.testing.assert_array_equal(none.to_vector(), Counts.zero(3).to_vector())


def test_the_counts_match_the_labels_of_the_examples(predictor: Predictor) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 30).tolist()
    counts, examples = evaluate(tables(labels[:7], labels[7:]), predictor, examples=30)
    matrix = np.zeros((3, 3), int)
    for row in examples:
        matrix[CLASSES.index(row.label), CLASSES.index(row.predicted)] += 1
    np.testing.assert_array_equal(matrix, counts.confusion)


@pytest.mark.parametrize(("asked", "shown"), [(0, 0), (1, 1), (4, 4), (5, 5), (99, 6)])
def test_examples_are_limited_over_all_blocks(predictor: Predictor, asked: int, shown: int) -> None:
    _, examples = evaluate(tables([0, 1], [2], [0, 1, 2]), predictor, examples=asked)
    assert [row.label for row in examples] == [CLASSES[label] for label in [0, 1, 2, 0, 1, 2][:shown]]


def test_a_photo_that_was_lost_stops_the_evaluation(predictor: Predictor) -> None:
    pixels = table([0, 1])["pixels"].to_pylist()
    lost = table([0, 1], code=[None, "missing"], detail=[None, "no such file"], pixels=[pixels[0], None])
    with pytest.raises(DamagedFile, match=r"1\.png .*no such file") as caught:
        evaluate(iter([table([0]), lost]), predictor)
    assert "\n" not in str(caught.value)
