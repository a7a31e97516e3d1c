"""Tiny classifiers whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowers.bundle import Bundle
from flowers.features.extractor import FeatureExtractor, cuts_of
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FeatureSpec
from flowers.model import classifier
from flowers.model.registry import POOL


def classify(pixels: Any, features: Any, kernel: Any) -> Any:
    """A classifier of the usual structure on a feature map that depends on pixels."""
    import keras

    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name=POOL)(features)
    depth, classes = kernel.shape
    head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), classes, 0.0)
    head.get_layer("logits").set_weights([kernel, np.zeros(classes, np.float32)])
    return classifier.join(keras.Model(pixels, pooled), head)


def unsaved(model: Any, classes: list[str], size: int) -> Bundle:
    """A bundle without files: its network is converted when it is asked for."""
    bundle = Bundle("", {"classes": classes, "image_size": size, "files": {}})
    vars(bundle)["model"] = model  # where the property keeps it
    return bundle


def by_colour(size: int, classes: list[str], scale: float = 25) -> Bundle:
    """Gives each photo the class of its strongest colour: red, green, blue are the classes 0, 1, 2."""
    import keras

    pixels = keras.Input((size, size, 3), dtype="uint8")
    features = keras.layers.Rescaling(1 / scale)(pixels)
    model = classify(pixels, features, np.eye(3, dtype=np.float32))
    return unsaved(model, classes, size)


def layered(size: int, classes: list[str], seed: int = 0) -> Bundle:
    """A small convolutional network with random weights."""
    import keras

    rng = np.random.default_rng(seed)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    layer = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    for width in (16, 32, 64):
        layer = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(layer)
    model = classify(pixels, layer, np.zeros((64, len(classes)), np.float32))
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.15, size=variable.shape))
    return unsaved(model, classes, size)


def extractor(network: Any, specs: Sequence[FeatureSpec], folder: str | Path) -> FeatureExtractor:
    """The feature extractor of a network by the engine that its specs name; converted files go to `folder`."""
    spec = specs[0]
    frozen = FrozenNetwork(
        folder=str(folder),
        backbone=spec.backbone,
        weights=spec.weights,
        image_size=spec.image_size,
        precision=spec.precision,
        engine_name=spec.engine,
        build=lambda: network,
    )
    frozen.prepare(cuts_of(specs), lambda: network)
    return FeatureExtractor(frozen, specs, 1)
