"""The engine: a classifier compiled for this machine, by TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from flowers.inference.folding import folded
from flowers.model.heatmap import explained


class Engine:
    """The forward pass of a classifier, with a heat map; called with uint8 [n, size, size, 3].

    Args:
        model: what `flowers.model.classifier.join` returned, or the same loaded from a file.
        image_size: height and width of its input, in pixels.
    """

    def __init__(self, model: Any, image_size: int) -> None:
        # One graph for batches of every size: building one takes seconds, which a server that swaps has not.
        pixels = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8)
        self.forward = tf.function(explained(folded(model)), input_signature=[pixels])

    def __call__(self, photos: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probabilities float32 [n, K] and heat float32 [n, h, w]."""
        probabilities, heat = self.forward(tf.constant(photos))
        return probabilities.numpy(), heat.numpy()
