"""Where in a photo the network found what speaks for its answer: class activation maps (Zhou et al. 2016).

The classifier averages the last feature map and applies one dense layer, so its logit is a mean over positions: the
same sum before the mean says what each position adds. Exact, and nearly free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from flowers.model.registry import POOL


def explained(model: Any) -> Callable[[Any], tuple[Any, Any, Any]]:
    """The forward pass of a classifier with a map of what speaks for its answer, and what its head was given.

    Args:
        model: what `flowers.model.classifier.join` returned, or the same loaded from a file.

    Returns:
        A function from uint8 [n, size, size, 3] to probabilities float32 [n, K], maps float32 [n, h, w] and pooled
        features float32 [n, d]. A map says how much each position adds to the logit of the class of the highest
        probability, against the mean of all classes and the average training photo. 0 is neutral.
    """
    head = model.get_layer("head")
    normalize, dense = head.get_layer("standardize"), head.get_layer("logits")
    pool = model.get_layer(POOL)
    inside = keras.Model(model.input, [pool.input, pool.output, model.output])

    def forward(pixels: Any) -> tuple[Any, Any, Any]:
        features, pooled, probabilities = inside(pixels, training=False)
        kernel = dense.kernel - tf.reduce_mean(dense.kernel, axis=1, keepdims=True)
        deviation = tf.maximum(tf.sqrt(tf.reshape(normalize.variance, [-1])), keras.backend.epsilon())
        chosen = tf.gather(tf.transpose(kernel), tf.argmax(probabilities, axis=1)) / deviation
        centred = tf.cast(features, tf.float32) - tf.reshape(normalize.mean, [-1])
        heat = tf.einsum("nhwd,nd->nhw", centred, chosen)
        return probabilities, heat, tf.cast(pooled, tf.float32)

    return forward
