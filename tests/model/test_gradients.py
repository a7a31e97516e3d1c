"""The faster gradient of a convolution against TensorFlow's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers.model.gradients import speed_up


def body(shape: tuple[int, int, int], padding: str, size: tuple[int, int], dtype: str) -> Any:
    inputs = keras.Input(shape)
    layers = keras.layers
    outputs = layers.Conv2D(24, size, padding=padding, use_bias=True, dtype=dtype)(inputs)
    return keras.Model(inputs, layers.Conv2D(8, 1, activation="relu", dtype=dtype)(outputs))


def gradients(model: Any, photos: Any) -> list[Any]:
    @tf.function
    def run(photos: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(photos)
            loss = tf.reduce_sum(tf.cast(model(photos, training=False), tf.float32) ** 2)
        return [loss, *tape.gradient(loss, [photos, *model.trainable_variables])]

    return [np.asarray(tf.cast(value, tf.float32)) for value in run(photos)]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(3, 3), (1, 5), (4, 2)])
def test_the_numbers_stay(size: tuple[int, int], padding: str, dtype: str) -> None:
    keras.utils.set_random_seed(1)
    model = body((6, 7, 96), padding, size, dtype)
    photos = tf.random.stateless_normal((3, 6, 7, 96), seed=(1, 2))
    before = gradients(model, photos)
    speed_up(model)
    assert "convolution_op" in vars(model.layers[1]), "the faster one is in use"
    after = gradients(model, photos)
    for one, other in zip(before, after, strict=True):
        close = 1e-5 if dtype == "float32" else 4e-2  # TensorFlow adds up bfloat16 in bfloat16, in any order
        np.testing.assert_allclose(other, one, rtol=close, atol=close * np.abs(one).max())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "strides": 2},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "dilation_rate": 2},
    ],
)
def test_others_are_left_alone(options: dict[str, Any]) -> None:
    inputs = keras.Input((6, 6, 96))
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(8, **options)(depthwise))
    speed_up(model)
    assert not any("convolution_op" in vars(layer) for layer in model.layers)


def test_a_large_picture_keeps_the_routine_that_is_faster_there() -> None:
    model = body((20, 20, 96), "same", (3, 3), "float32")
    speed_up(model)
    assert "convolution_op" not in vars(model.layers[1])
