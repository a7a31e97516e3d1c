"""Conversion: a Keras network becomes files for OpenVINO, which need no TensorFlow any more."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import openvino
import tensorflow as tf

from flowers import storage
from flowers.inference.openvino_engine import CORE, NETWORK

# From a tensor uint8 [n, size, size, 3] to the outputs of a network.
Function = Callable[[Any], Sequence[Any]]


def convert(model: Any, function_of: Callable[[Any], Function], image_size: int, folder: str) -> None:
    """Saves what a function of a model computes as the files `NETWORK`, with its outputs in order.

    Args:
        model: a `keras.Model` of any precision.
        function_of: makes the function of this model in float32.
        image_size: height and width of its input, in pixels.
        folder: a local one, which is there.
    """
    plain = in_float32(model)
    with tempfile.NamedTemporaryFile(prefix="flowers-", suffix=".pb") as file:
        file.write(frozen_graph(function_of(plain), plain.weights, image_size))
        file.flush()
        # `openvino.convert_model` of TensorFlow's objects would do the same, but fails on Python 3.13 (2026.4).
        read = CORE.read_model(file.name)
    named = {name: output for output in read.outputs for name in output.get_names()}
    wanted = itertools.takewhile(named.__contains__, (f"output_{number}:0" for number in itertools.count()))
    network = openvino.Model([named[name] for name in wanted], read.get_parameters(), "network")
    with storage.says_why(folder, weights_bytes(plain)):
        openvino.save_model(network, os.path.join(folder, NETWORK[0]), compress_to_fp16=False)


def weights_bytes(model: Any) -> int:
    """Bytes of the weights of a `keras.Model` in float32: what its files have at least."""
    return 4 * sum(math.prod(variable.shape) for variable in model.weights)


def frozen_graph(function: Function, weights: Sequence[Any], image_size: int) -> bytes:
    """A function as a TensorFlow graph (`GraphDef`) that holds its weights, from `pixels:0` to `output_0:0`, ...

    Keras' variables are constants while it is traced. TensorFlow's own way, `convert_variables_to_constants_v2`, traces
    variables and replaces them afterwards, which takes three times as long.
    """
    values = [(variable, np.asarray(variable)) for variable in weights]
    pixels = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8, name="pixels")

    def constant(photos: Any) -> list[Any]:
        with keras.StatelessScope([(variable, tf.constant(value)) for variable, value in values]):
            outputs = function(photos)
        return [tf.identity(output, f"output_{number}") for number, output in enumerate(outputs)]

    traced = tf.function(constant, input_signature=[pixels]).get_concrete_function()
    graph = traced.graph.as_graph_def()
    nodes = {node.name: node for node in graph.node}
    for value, placeholder in traced.graph.captures:  # what a layer holds that is no variable, such as a mean
        node = nodes[placeholder.op.name]
        node.Clear()
        node.name, node.op = placeholder.op.name, "Const"
        node.attr["dtype"].type = placeholder.dtype.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy()))
    return bytes(graph.SerializeToString())


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
