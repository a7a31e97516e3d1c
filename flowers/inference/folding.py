"""A network rewritten for inference: normalization with fixed statistics becomes part of the convolution before it.

Batch normalization that does not learn is a factor and an offset a channel (Ioffe and Szegedy 2015, section 3.1). The
factor goes into the kernel and the offset into the bias, which TensorFlow computes together with the activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from flowers.model.depthwise import is_depthwise

Array = npt.NDArray[np.float32]


def folded(model: Any) -> Any:
    """The same classifier, faster, with constants for weights: it cannot be trained or saved.

    Args:
        model: what `flowers.model.classifier.join` returned, or the same loaded from a file. It is not changed.

    Returns:
        A model with layers of the same names. In float32 its outputs differ by rounding; in bfloat16 by more, as the
        folded kernels are rounded anew.
    """
    after = {}
    for norm in filter(_is_normalization, _layers(model)):
        before = norm.input._keras_history.operation
        if _is_plain(before) and len(before._outbound_nodes) == 1:
            after[before.name] = norm
    absorbed = {norm.name for norm in after.values()}

    def rewritten(layer: Any) -> Any:
        if layer.name in absorbed:
            return _Affine(name=layer.name, dtype=layer.dtype_policy)
        if _is_plain(layer):
            return _convolution(layer, after.get(layer.name))
        if _is_normalization(layer):
            return _Affine(*_factor_and_offset(layer), name=layer.name, dtype=layer.dtype_policy)
        return type(layer).from_config(layer.get_config())

    made = keras.models.clone_model(model, clone_function=rewritten, recursive=True)
    weights = {layer.name: layer.get_weights() for layer in _layers(model)}
    for layer in _layers(made):
        if layer.weights:
            layer.set_weights(weights[layer.name])
    return made


def _layers(model: Any) -> Iterator[Any]:
    """All layers, also those of models inside."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _is_normalization(layer: Any) -> bool:
    return type(layer) is keras.layers.BatchNormalization and layer.axis in (-1, 3)


def _is_plain(layer: Any) -> bool:
    """Whether it is a convolution that `_convolution` can compute."""
    return (
        type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and layer.data_format == "channels_last"
        and (getattr(layer, "groups", 1) == 1 or is_depthwise(layer))
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.activation is keras.activations.linear
        and getattr(layer, "depth_multiplier", 1) == 1
    )


def _factor_and_offset(norm: Any) -> tuple[Array, Array]:
    factor = 1 / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    if norm.scale:
        factor = factor * norm.gamma.numpy()
    offset = -norm.moving_mean.numpy() * factor
    return factor, offset + norm.beta.numpy() if norm.center else offset


def _convolution(layer: Any, norm: Any) -> Any:
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy() if layer.use_bias else 0.0
    if is_depthwise(layer):
        kernel = kernel.transpose(0, 1, 3, 2)
    deep = is_depthwise(layer) or hasattr(layer, "depth_multiplier")
    if norm is not None:
        factor, offset = _factor_and_offset(norm)
        kernel = kernel * (factor[:, None] if deep else factor)
        bias = bias * factor + offset
    channels = kernel.shape[2] if deep else kernel.shape[3]
    return _Convolution(kernel, np.broadcast_to(bias, channels), layer, deep, name=layer.name, dtype=layer.dtype_policy)


class _Convolution(keras.layers.Layer):
    """A convolution of a constant kernel and bias, `deep` for one channel at a time."""

    def __init__(self, kernel: Array, bias: Array, like: Any, deep: bool, **more: Any) -> None:
        super().__init__(**more)
        self._values, self._deep, self._shape = (kernel, bias), deep, like.compute_output_shape
        self._strides, self._padding = tuple(like.strides), like.padding.upper()

    def compute_output_shape(self, shape: Any) -> Any:
        return self._shape(shape)

    def call(self, inputs: Any) -> Any:
        kernel, bias = (tf.constant(value, dtype=self.compute_dtype) for value in self._values)
        if self._deep:
            found = tf.nn.depthwise_conv2d(inputs, kernel, (1, *self._strides, 1), self._padding)
        else:
            found = tf.nn.conv2d(inputs, kernel, self._strides, self._padding)
        return tf.nn.bias_add(found, bias)


class _Affine(keras.layers.Layer):
    """A constant factor and offset of each channel, or nothing to do."""

    def __init__(self, *values: Array, **more: Any) -> None:
        super().__init__(**more)
        self._values = values

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if not self._values:
            return inputs
        factor, offset = (tf.constant(value, dtype=self.compute_dtype) for value in self._values)
        return inputs * factor + offset
