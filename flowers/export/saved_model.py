"""SavedModel: for TensorFlow, TensorFlow Serving and Triton; it takes pixels or whole files.

Inputs and outputs are named as our own server names them in TensorFlow Serving's protocol
(`serving/protocols/tensorflow_serving.py`), so that clients of the one can ask the other.

TensorFlow decodes files by itself here: it does not turn photos by their EXIF orientation, knows JPEG, PNG, WebP, BMP
and GIF only, and resizes by another rule, so answers differ a little from those of our decoder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from flowers import storage
from flowers.bundle import LABELS, Bundle, labels_text
from flowers.inference.engine import Photos

BYTES = "serve_bytes"
IMPORTS = "import tensorflow as tf"
CALL = """\
network = tf.saved_model.load(here / "{file}").signatures["serving_default"]
scores = network(pixels=tf.constant(pixels))["scores"].numpy()[0]"""


def write(bundle: Bundle, path: str, quantize: str, calibration: Photos | None) -> None:
    """Saves the model with both signatures; its labels are an asset, and an output."""
    model, size, labels = bundle.model, bundle.image_size, tf.constant(bundle.classes)

    def answers(pixels: Any) -> dict[str, Any]:
        scores = model(pixels, training=False)
        return {
            "scores": scores,
            "classes": tf.repeat(labels[None], tf.shape(scores)[0], axis=0),
            "label": tf.gather(labels, tf.argmax(scores, axis=1)),
            "score": tf.reduce_max(scores, axis=1),
        }

    def serve(pixels: Any) -> dict[str, Any]:
        return answers(pixels)

    def serve_bytes(image_bytes: Any) -> dict[str, Any]:
        photo = tf.TensorSpec((size, size, 3), tf.uint8)
        return answers(tf.map_fn(lambda data: _decode(data, size), image_bytes, fn_output_signature=photo))

    module = tf.Module()
    module.held = [variable.value for variable in model.variables]
    pixels = tf.TensorSpec((None, size, size, 3), tf.uint8, name="pixels")
    files = tf.TensorSpec((None,), tf.string, name="image_bytes")
    module.serve = tf.function(serve, input_signature=[pixels])
    module.serve_bytes = tf.function(serve_bytes, input_signature=[files])
    with tempfile.TemporaryDirectory(prefix="flowers-") as folder:
        asset = os.path.join(folder, LABELS)
        storage.write(asset, labels_text(bundle.classes).encode())
        module.labels = tf.saved_model.Asset(asset)
        signatures = {"serving_default": module.serve, BYTES: module.serve_bytes}
        tf.saved_model.save(module, path, signatures=signatures)


def _decode(data: Any, size: int) -> Any:
    """The middle square of a file's photo: uint8 [size, size, 3]."""
    photo = tf.io.decode_image(data, channels=3, expand_animations=False)
    height, width = tf.unstack(tf.shape(photo)[:2])
    side = tf.minimum(height, width)
    square = tf.image.crop_to_bounding_box(photo, (height - side) // 2, (width - side) // 2, side, side)
    resized = tf.image.resize(square, (size, size), antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def runner(path: str) -> Any:
    """See `flowers.export.formats`."""
    network = tf.saved_model.load(path).signatures["serving_default"]
    return lambda pixels: network(pixels=tf.constant(pixels))["scores"].numpy()


def bytes_runner(path: str) -> Any:
    """A function from the bytes of n files to probabilities float32 [n, K]; it raises where one cannot be decoded."""
    network = tf.saved_model.load(path).signatures[BYTES]

    def run(files: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(network(image_bytes=tf.constant(list(files)))["scores"])

    return run
