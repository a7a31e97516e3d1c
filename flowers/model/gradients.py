"""A faster gradient of convolutions on CPUs, for those with many channels and a small picture.

The gradient of a kernel is one matrix product: patches of the input by the gradient of the output. oneDNN's own
routine for it takes two to three times as long where there are fewer positions than channels, as in the last stage of
a ResNet (docs/decisions.md has the figures).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import tensorflow as tf


def speed_up(body: Any) -> None:
    """Gives the convolutions of `body`, a `keras.Model`, that profit from it the faster gradient; results stay.

    Does nothing where there is a GPU.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    for layer in body.layers:
        if _profits(layer):
            layer.convolution_op = functools.partial(_convolution, padding=layer.padding.upper())


def _profits(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.Conv2D) or layer.groups > 1 or {*layer.strides, *layer.dilation_rate} != {1}:
        return False
    positions, channels = math.prod(layer.output.shape[1:3]), layer.input.shape[-1]
    item = 2 if layer.compute_dtype == "bfloat16" else 4
    return layer.kernel_size != (1, 1) and positions * item <= 2 * channels


def _convolution(inputs: Any, kernel: Any, padding: str) -> Any:
    """A convolution of stride 1.

    Args:
        inputs: [n, h, w, c].
        kernel: [i, j, c, d].
        padding: "VALID" or "SAME".

    Returns:
        [n, h - i + 1, w - j + 1, d] or [n, h, w, d].
    """

    @tf.custom_gradient
    def convolve(inputs: Any, kernel: Any) -> Any:
        rows, columns, channels, depth = kernel.shape

        def gradients(outer: Any) -> tuple[Any, Any]:
            below = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs), filter=kernel, out_backprop=outer, strides=[1, 1, 1, 1], padding=padding
            )
            height, width = outer.shape[1:3]
            wide = inputs
            if padding == "SAME":
                padded = [[(size - 1) // 2, size // 2] for size in (rows, columns)]
                wide = tf.pad(inputs, [[0, 0], *padded, [0, 0]])
            patches = [
                tf.reshape(wide[:, row : row + height, column : column + width], [-1, channels])
                for row in range(rows)
                for column in range(columns)
            ]
            own = tf.matmul(tf.concat(patches, -1), tf.reshape(outer, [-1, depth]), transpose_a=True)
            return below, tf.reshape(own, kernel.shape)

        return tf.nn.conv2d(inputs, kernel, 1, padding), gradients

    return convolve(inputs, tf.convert_to_tensor(kernel))
