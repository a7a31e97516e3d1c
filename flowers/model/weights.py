"""The start weights of a backbone by name or path: what may be given, and the key that names them."""

from __future__ import annotations

import importlib.metadata
import os

from flowers import storage
from flowers.errors import InputError

NAMED_WEIGHTS = ("imagenet", "random")
# Random weights have a seed of their own: another --seed need not compute all features again.
RANDOM_SEED = 1


def weights_key(backbone: str, weights: str) -> str:
    """Names the start weights without loading them, for the key of the feature cache.

    Raises:
        InputError: the weights file cannot be read.
    """
    keras_version = importlib.metadata.version("keras")
    if weights == "imagenet":
        return f"imagenet:keras-{keras_version}"
    if weights == "random":
        return f"random:{RANDOM_SEED}:keras-{keras_version}"
    check_weights(weights)
    return f"file:{storage.file_sha256(weights)}"


def check_weights(weights: str) -> None:
    """Raises `InputError` unless `weights` is imagenet, random or a readable weights file."""
    if weights in NAMED_WEIGHTS:
        return
    if not os.path.isfile(weights):
        raise InputError(f"--weights: there is no file {weights!r}; give imagenet, random or a weights file")
    if not weights.endswith((".h5", ".keras")):
        raise InputError(f"--weights: received {weights!r}, required is a .weights.h5, .h5 or .keras file")
