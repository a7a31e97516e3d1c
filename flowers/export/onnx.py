"""ONNX: from a frozen graph of the Keras model, by tf2onnx; its labels are in the metadata."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from flowers.bundle import Bundle
from flowers.inference.conversion import frozen_graph
from flowers.inference.engine import Photos, usable_cpus

# Version of the operators: of ONNX 1.15 (2023), which the runtimes in use know.
_OPSET = 18
IMPORTS = "import onnxruntime"
CALL = """\
network = onnxruntime.InferenceSession(here / "{file}")
scores = network.run(["probabilities"], {{"pixels": pixels}})[0][0]"""


def write(bundle: Bundle, path: str, quantize: str, calibration: Photos | None) -> None:
    """Converts it; the metadata holds `labels`, a class a line."""
    model = bundle.model
    frozen = frozen_graph(lambda pixels: [model(pixels, training=False)], model.weights, bundle.image_size)
    converted, _ = tf2onnx.convert.from_graph_def(
        tf.compat.v1.GraphDef.FromString(frozen),
        input_names=["pixels:0"],
        output_names=["output_0:0"],
        opset=_OPSET,
        tensors_to_rename={"pixels:0": "pixels", "output_0:0": "probabilities"},
    )
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.helper.set_model_props(converted, {"labels": "\n".join(bundle.classes)})
    onnx.checker.check_model(converted)
    onnx.save(converted, path)


def runner(path: str) -> Any:
    """See `flowers.export.formats`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    network = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: network.run(["probabilities"], {"pixels": pixels})[0]
