"""Conversion: a Keras network becomes files for OpenVINO, which need no TensorFlow any more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import openvino
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from flowers.inference.openvino_engine import NETWORK


def convert(function: Callable[[Any], Sequence[Any]], image_size: int, folder: str) -> None:
    """Saves what a function computes as the files `NETWORK`.

    Args:
        function: of Keras models in float32 (`in_float32`), from a tensor uint8 [n, size, size, 3] to a sequence of
            tensors, the outputs of the network.
        image_size: height and width of its input, in pixels.
        folder: a local one, which is there.
    """
    with tempfile.NamedTemporaryFile(prefix="flowers-", suffix=".pb") as file:
        file.write(frozen_graph(function, image_size))
        file.flush()
        # `openvino.convert_model` of TensorFlow's objects would do the same, but fails on Python 3.13 (2026.4).
        network = openvino.Core().read_model(file.name)
        openvino.save_model(network, os.path.join(folder, NETWORK[0]), compress_to_fp16=False)


def frozen_graph(function: Callable[[Any], Sequence[Any]], image_size: int) -> bytes:
    """A function as a TensorFlow graph (`GraphDef`) with constants for weights, from `pixels:0` to `Identity:0`, ..."""
    pixels = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8, name="pixels")
    traced = tf.function(function, input_signature=[pixels]).get_concrete_function()
    return bytes(convert_variables_to_constants_v2(traced).graph.as_graph_def().SerializeToString())


def in_float32(model: Any) -> Any:
    """The same `keras.Model`, with layers of the same names, that computes in float32: itself if it does already.

    What a network computes in is decided where it runs, not by what it is saved from.
    """
    if all(layer.compute_dtype == "float32" for layer in model._flatten_layers()):
        return model

    def plain(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    made = keras.models.clone_model(model, clone_function=plain, recursive=True)
    made.set_weights(model.get_weights())
    return made
