"""Photos to predictions: one answer each, in order, whatever comes with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowers.bundle import load_bundle
from flowers.errors import BadImage
from flowers.inference.engine import ENGINES
from flowers.predictor import Prediction, Predictor
from tests.toys import by_colour, layered, saved_by_colour

SIZE, CLASSES = 32, ["daisy", "rose", "tulip"]


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def flat(color: tuple[int, int, int]) -> bytes:
    return png(np.full((SIZE, SIZE, 3), color, np.uint8))


@pytest.fixture(scope="module")
def reddest() -> Predictor:
    """A model that gives each photo the class of its strongest colour: red, green, blue."""
    return Predictor(by_colour(SIZE, CLASSES))


def test_a_bad_photo_disturbs_no_other(reddest: Predictor) -> None:
    red, green, blue = flat((200, 0, 0)), flat((0, 200, 0)), flat((0, 0, 200))
    photos = [b"", green, b"not a photo", red, red[:40], blue, green]
    answers = reddest.predict(photos)
    assert [isinstance(answer, BadImage) for answer in answers] == [True, False, True, False, True, False, False]
    assert [answer.label for answer in answers if isinstance(answer, Prediction)] == ["rose", "daisy", "tulip", "rose"]
    alone = reddest.predict([green])[0]
    assert isinstance(alone, Prediction)
    np.testing.assert_allclose(answers[1].probabilities, alone.probabilities, atol=1e-6)  # type: ignore[union-attr]
    assert alone.score == alone.probabilities.max() == alone.probabilities[1]


def test_nothing_in_nothing_out(reddest: Predictor) -> None:
    assert reddest.predict([]) == []
    assert all(isinstance(answer, BadImage) for answer in reddest.predict([b"", b"x"]))


def test_a_picture_too_large_is_refused(reddest: Predictor) -> None:
    small = Predictor(reddest.bundle, max_pixels=SIZE * SIZE - 1)
    answer = small.predict([flat((1, 2, 3))])[0]
    assert isinstance(answer, BadImage)
    assert isinstance(reddest.predict([flat((1, 2, 3))])[0], Prediction)


def test_order_over_many_batches(reddest: Predictor) -> None:
    kinds = np.random.default_rng(0).integers(0, 4, 75)
    colors = [flat((200, 0, 0)), flat((0, 200, 0)), flat((0, 0, 200)), b"broken"]
    answers = reddest.predict([colors[kind] for kind in kinds])
    found = [3 if isinstance(answer, BadImage) else CLASSES.index(str(answer.label)) for answer in answers]
    assert found == kinds.tolist()


@pytest.fixture(scope="module")
def random() -> Predictor:
    return Predictor(layered(SIZE, CLASSES))


def test_the_answer_does_not_depend_on_the_batch(random: Predictor) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (33, SIZE, SIZE, 3), dtype=np.uint8)
    alone = [np.concatenate(parts) for parts in zip(*(random.run(photos[[index]]) for index in range(33)), strict=True)]
    assert np.ptp(alone[0], axis=0).max() > 1e-3
    np.testing.assert_allclose(alone[0], random.bundle.model(photos), rtol=0, atol=1e-6)
    for count in (1, 7, 8, 9, 32, 33):
        for found, expected in zip(random.run(photos[:count]), alone, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5)


def test_heat_adds_up_to_what_the_class_has_over_the_others(random: Predictor) -> None:
    photos = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    head = random.bundle.model.get_layer("head")
    head.get_layer("logits").bias.assign(np.zeros(len(CLASSES)))
    probabilities, heat, _ = Predictor(random.bundle).run(photos)
    logits = np.log(probabilities)
    expected = (logits - logits.mean(axis=1, keepdims=True))[np.arange(3), probabilities.argmax(axis=1)]
    np.testing.assert_allclose(heat.mean(axis=(1, 2)), expected, rtol=1e-3, atol=1e-5)


def test_heat_is_where_the_colour_is(reddest: Predictor) -> None:
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[0, :8, 8:16, 2] = 250
    heat = reddest.run(pixels).heat
    assert (heat[0, :8, 8:16] > 1).all()
    assert heat[0].sum() == pytest.approx(heat[0, :8, 8:16].sum())


def test_warming_runs_every_size(reddest: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    predictor = Predictor(reddest.bundle, batch=5, threads=8)
    compute = predictor.engine._compute

    def noted(pixels: Any) -> Any:
        shapes.append(len(pixels))
        return compute(pixels)

    monkeypatch.setattr(predictor.engine, "_compute", noted)
    assert 0 < predictor.warm() < 60, "seconds a photo in the largest batch, which is run once more for it"
    assert shapes == [1, 2, 4, 5, 5]


def test_a_photo_of_none_of_the_classes_has_no_label(tmp_path: Path) -> None:
    """Nor a typicality, if nobody asks; the rest of the answer is the same, by both engines."""
    bundle = load_bundle(str(saved_by_colour(tmp_path / "best", CLASSES, SIZE)))
    photos = [flat((200, 20, 20)), flat((20, 20, 20)), flat((20, 210, 10)), b"", flat((90, 90, 90))]
    for engine in ENGINES:
        plain, telling = (Predictor(bundle, engine=engine, unknown=unknown).predict(photos) for unknown in (None, 0.05))
        assert [getattr(answer, "label", "") for answer in telling] == ["daisy", None, "rose", "", None]
        for answer, before in zip(telling, plain, strict=True):
            if isinstance(answer, BadImage) or isinstance(before, BadImage):
                continue
            assert (answer.label is None) == (answer.reason is not None) == (not (answer.typicality or 0) > 0.05)
            assert (before.typicality, before.reason, before.score) == (None, None, answer.score)
            assert before.label == CLASSES[int(answer.probabilities.argmax())]
            np.testing.assert_array_equal(answer.heat, before.heat)


def test_the_label_is_the_highest_probability(reddest: Predictor) -> None:
    heat = np.zeros((1, 1), np.float32)
    answer = reddest.prediction(np.array([0.2, 0.3, 0.5], np.float32), heat)
    assert (answer.label, answer.score) == ("tulip", 0.5)
    assert reddest.prediction(np.array([0.4, 0.4, 0.2], np.float32), heat).label == "daisy"  # the first of equals


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_features_are_those_below_the_head(reddest: Predictor, engine: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    probabilities, features = Predictor(reddest.bundle, engine=engine, features=True).describe(pixels)
    np.testing.assert_allclose(features, pixels.mean(axis=(1, 2)) / 25, rtol=1e-4)  # as the toy scales them
    np.testing.assert_allclose(probabilities, reddest.run(pixels)[0], atol=1e-5)
