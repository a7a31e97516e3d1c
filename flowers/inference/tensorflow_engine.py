"""TensorFlow as the engine: a Keras network in this process, on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from flowers.inference.engine import Engine, Outputs, Photos


class TensorFlowEngine(Engine):
    """A traced function of photos.

    Args:
        function: from a tensor uint8 [n, size, size, 3] to a sequence of tensors.
        image_size: height and width of its input, in pixels.
        sizes: of the batches, ascending.
    """

    def __init__(self, function: Callable[[Any], Sequence[Any]], image_size: int, sizes: Sequence[int]) -> None:
        super().__init__(image_size, sizes)
        # One graph for batches of all sizes: building one takes seconds, which a server that swaps has not.
        batch = self.sizes[0] if len(self.sizes) == 1 else None
        shape = tf.TensorSpec((batch, image_size, image_size, 3), tf.uint8)
        self._forward = tf.function(function, input_signature=[shape])
        traced = self._forward.get_concrete_function().structured_outputs
        self.outputs = [tuple(output.shape[1:]) for output in traced]

    def _compute(self, photos: Photos) -> Outputs:
        return [output.numpy() for output in self._forward(tf.constant(photos))]
