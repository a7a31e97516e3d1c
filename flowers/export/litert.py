"""LiteRT (TensorFlow Lite): for phones and small devices, with labels where MediaPipe looks for them.

A `.tflite` file may end in a zip archive; the metadata in it says that `labels.txt` of that archive names the outputs.
No package that is kept up writes this metadata (tflite-support has none for these Pythons, and MediaPipe's own writer
lacks its compiled part), so it is written here, by the table numbers of `metadata_schema.fbs`.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from flatbuffers import Builder

from flowers.bundle import LABELS, Bundle, labels_text
from flowers.inference.conversion import frozen_graph
from flowers.inference.engine import Photos, usable_cpus

IMPORTS = "from ai_edge_litert.interpreter import Interpreter"
CALL = """\
network = Interpreter(str(here / "{file}")).get_signature_runner()
scores = network(pixels=pixels)["probabilities"][0]"""


def write(bundle: Bundle, path: str, quantize: str, calibration: Photos | None) -> None:
    """Converts it for one photo at a time; pixels go in as bytes, and floats come out, also of 8-bit networks."""
    model, size = bundle.model, bundle.image_size
    frozen = frozen_graph(lambda pixels: [model(pixels, training=False)], model.weights, size)
    graph = tf.compat.v1.GraphDef.FromString(frozen)

    def serve(pixels: Any) -> dict[str, Any]:
        (found,) = tf.import_graph_def(graph, {"pixels:0": pixels}, ["output_0:0"])
        return {"probabilities": found}

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[tf.TensorSpec((1, size, size, 3), tf.uint8, name="pixels")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        if calibration is None:
            raise ValueError("int8 needs photos to calibrate with")
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8

        def photos() -> Iterator[list[Any]]:
            return ([photo[None]] for photo in calibration)

        converter.representative_dataset = photos
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a network with uint8 input says nothing of the range of its floats
        network = converter.convert()
    with open(path, "wb") as file:
        file.write(_with_metadata(network))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, labels_text(bundle.classes))


def _with_metadata(network: bytes) -> bytes:
    """The network with a buffer that says what goes in and what comes out."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(network))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_metadata(), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _metadata() -> bytes:
    """A `ModelMetadata` table of one RGB image and one list of scores that labels.txt names."""
    builder = Builder()
    rgb, image, axis_labels = 1, 2, 2  # values of ColorSpaceType, ContentProperties and AssociatedFileType

    def table(fields: dict[int, tuple[str, int]]) -> int:
        """A table of fields by their number, each of a kind."""
        builder.StartObject(1 + max(fields))
        for number, (kind, value) in fields.items():
            getattr(builder, f"Prepend{kind}Slot")(number, value, 0)
        return int(builder.EndObject())

    def vector(*tables: int) -> int:
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def text(said: str) -> int:
        return int(builder.CreateString(said))

    def to(offset: int) -> tuple[str, int]:
        return "UOffsetTRelative", offset

    labels = table({0: to(text(LABELS)), 2: ("Int8", axis_labels)})
    properties = table({0: ("Int8", rgb)})
    content = table({0: ("Uint8", image), 1: to(properties)})
    pixels = table({0: to(text("pixels")), 3: to(content)})
    files = vector(labels)
    probabilities = table({0: to(text("probabilities")), 6: to(files)})
    inputs, outputs = vector(pixels), vector(probabilities)
    subgraphs = vector(table({2: to(inputs), 3: to(outputs)}))
    builder.Finish(table({0: to(text("flowers")), 3: to(subgraphs)}), b"M001")
    return bytes(builder.Output())


def runner(path: str) -> Any:
    """See `flowers.export.formats`."""
    network = Interpreter(path, num_threads=usable_cpus()).get_signature_runner()
    return lambda pixels: np.concatenate([network(pixels=photo[None])["probabilities"] for photo in pixels])
