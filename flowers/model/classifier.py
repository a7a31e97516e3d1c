"""The classifier that is saved: uint8 RGB pixels in, probabilities out, made of plain Keras layers only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt


def standardization(
    *views: npt.NDArray[np.float32],
    total: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda sums: sums,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and variance of training features float32 [n, d], over one or more views of the photos, each float32 [d].

    The variance has a floor, so a feature that hardly ever differs from zero is not blown up.

    Args:
        views: those of the photos that this process has, perhaps none.
        total: adds up sums float64 [k] over all processes.
    """
    width = views[0].shape[1]
    sums = np.zeros(2 * width + 1)
    for features in views:
        sums[-1] += len(features)
        for start in range(0, len(features), 4096):  # a memory-mapped matrix is never whole in memory
            chunk = np.asarray(features[start : start + 4096], dtype=np.float64)
            sums[:width] += chunk.sum(axis=0)
            sums[width:-1] += (chunk**2).sum(axis=0)
    sums = total(sums)
    mean = sums[:width] / sums[-1]
    variance = np.maximum(sums[width:-1] / sums[-1] - mean**2, 0)
    variance += 0.01 * variance.mean() + 1e-14
    return mean.astype(np.float32), variance.astype(np.float32)


def build_head(mean: npt.NDArray[np.float32], variance: npt.NDArray[np.float32], classes: int, dropout: float) -> Any:
    """The trained part: standardize, drop out, one dense layer, softmax; all in float32.

    The dense layer starts at zero: the loss is convex in it, so there is no symmetry to break.

    Args:
        mean: float32 [d].
        variance: float32 [d].
        classes: number of outputs, K.
        dropout: part of the features dropped in training.

    Returns:
        A `keras.Model` from float32 [n, d] to probabilities float32 [n, K].
    """
    return keras.Sequential(
        [
            keras.Input((len(mean),), name="features"),
            keras.layers.Normalization(mean=mean, variance=variance, dtype="float32", name="standardize"),
            keras.layers.Dropout(dropout, dtype="float32", name="dropout"),
            keras.layers.Dense(classes, kernel_initializer="zeros", dtype="float32", name="logits"),
            keras.layers.Softmax(dtype="float32", name="probabilities"),
        ],
        name="head",
    )


def join(network: Any, head: Any) -> Any:
    """One `keras.Model` from uint8 [n, size, size, 3] to probabilities float32 [n, K]."""
    return keras.Model(network.input, head(network.output), name="flowers")


def weights_sha256(model: Any) -> str:
    """SHA-256 over all variables of a model in order: shape, type and bytes."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        array = np.ascontiguousarray(value)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.data)
    return digest.hexdigest()
