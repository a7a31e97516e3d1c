"""Depthwise convolutions that are written as grouped ones: the same numbers, by another routine."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers.model.depthwise import is_depthwise, use_depthwise


def model(dtype: str = "float32", **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((9, 8, 6))
    return keras.Model(inputs, keras.layers.Conv2D(**{"filters": 6, "groups": 6, **options}, dtype=dtype)(inputs))


def gradients(network: Any, photos: Any) -> list[Any]:
    @tf.function
    def run(photos: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(photos)
            found = tf.cast(network(photos), tf.float32)
            loss = tf.reduce_sum(found**2)
        return [found, *tape.gradient(loss, [photos, *network.trainable_variables])]

    return [np.asarray(value) for value in run(photos)]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_numbers_stay(padding: str, strides: int, dtype: str) -> None:
    network = model(dtype, kernel_size=(5, 3), padding=padding, strides=strides, activation="gelu")
    photos = tf.random.stateless_normal((3, 9, 8, 6), seed=(1, 2))
    before, config = gradients(network, photos), network.get_config()
    use_depthwise(network)
    assert "convolution_op" in vars(network.layers[1])
    assert network.get_config() == config
    close = 1e-5 if dtype == "float32" else 4e-2
    for one, other in zip(before, gradients(network, photos), strict=True):
        np.testing.assert_allclose(other, one, rtol=close, atol=close * np.abs(one).max())


@pytest.mark.parametrize(
    "options",
    [{"groups": 1}, {"groups": 3}, {"filters": 12}, {"strides": (1, 2)}, {"dilation_rate": 2}],
)
def test_others_are_left_alone(options: dict[str, Any]) -> None:
    network = model(kernel_size=3, **options)
    use_depthwise(network)
    assert not is_depthwise(network.layers[1])
    assert "convolution_op" not in vars(network.layers[1])
