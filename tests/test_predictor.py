"""Photos to predictions: one answer each, in order, whatever comes with them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowers.bundle import Bundle
from flowers.errors import BadImage
from flowers.predictor import Prediction, Predictor

SIZE, CLASSES = 32, ["daisy", "rose", "tulip"]


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def flat(color: tuple[int, int, int]) -> bytes:
    return png(np.full((SIZE, SIZE, 3), color, np.uint8))


def bundle_of(model: Any) -> Bundle:
    return Bundle("", model, {"classes": CLASSES, "image_size": SIZE})


@pytest.fixture(scope="module")
def reddest() -> Predictor:
    """A model that gives each photo the class of its strongest colour: red, green, blue."""
    import keras

    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 25)(pixels))
    return Predictor(bundle_of(keras.Model(pixels, keras.layers.Softmax()(pooled))))


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
    assert reddest.probabilities(np.zeros((0, SIZE, SIZE, 3), np.uint8)).shape == (0, 3)
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
    found = [3 if isinstance(answer, BadImage) else CLASSES.index(answer.label) for answer in answers]
    assert found == kinds.tolist()


def test_probabilities_do_not_depend_on_the_batch() -> None:
    import keras

    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    layer = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    for width in (16, 32, 64):
        layer = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(layer)
    layer = keras.layers.GlobalAveragePooling2D()(layer)
    model = keras.Model(pixels, keras.layers.Dense(len(CLASSES), activation="softmax")(layer))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(scale=0.15, size=value.shape) for value in model.get_weights()])
    predictor = Predictor(bundle_of(model))
    pixels = rng.integers(0, 256, (33, SIZE, SIZE, 3), dtype=np.uint8)
    alone = np.concatenate([predictor.probabilities(pixels[place : place + 1]) for place in range(33)])
    assert np.ptp(alone, axis=0).max() > 1e-3
    for count in (1, 7, 8, 9, 32, 33):
        found = predictor.probabilities(pixels[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone[:count], rtol=0, atol=1e-6)


def test_the_label_is_the_highest_probability(reddest: Predictor) -> None:
    answer = reddest.prediction(np.array([0.2, 0.3, 0.5], np.float32))
    assert (answer.label, answer.score) == ("tulip", 0.5)
    assert reddest.prediction(np.array([0.4, 0.4, 0.2], np.float32)).label == "daisy"  # the first of equals
