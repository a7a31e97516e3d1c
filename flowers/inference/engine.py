"""The engine: a classifier compiled for this machine, by TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from flowers.inference.folding import folded
from flowers.model.heatmap import explained

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Engine = Callable[[npt.NDArray[np.uint8]], Outputs]


def compiled(model: Any, image_size: int) -> Engine:
    """The forward pass of a classifier, with a heat map.

    Args:
        model: what `flowers.model.classifier.join` returned, or the same loaded from a file.
        image_size: height and width of its input, in pixels.

    Returns:
        A function from uint8 [n, size, size, 3] to probabilities float32 [n, K] and heat float32 [n, h, w].
    """
    # One graph for batches of every size: building one takes seconds, which a server that swaps has not.
    pixels = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8)
    forward = tf.function(explained(folded(model)), input_signature=[pixels])

    def run(photos: npt.NDArray[np.uint8]) -> Outputs:
        probabilities, heat = forward(tf.constant(photos))
        return probabilities.numpy(), heat.numpy()

    return run
