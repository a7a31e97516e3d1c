"""The networks of the table, built with their start weights and their arithmetic.

A backbone here takes uint8 RGB pixels: the scaling its weights expect is its first layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from flowers.errors import InputError, first_line
from flowers.model.cuts import SCALE
from flowers.model.depthwise import use_depthwise
from flowers.model.registry import BACKBONES, POOL, Preprocessing
from flowers.model.weights import RANDOM_SEED, check_weights


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Layers made inside compute in `precision`; their variables stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_backbone(name: str, weights: str, image_size: int, precision: str) -> Any:
    """Builds the frozen network.

    Args:
        name: a key of `BACKBONES`.
        weights: "imagenet", "random", or the path of a weights file for this backbone.
        image_size: height and width of the input, in pixels.
        precision: "float32" or "bfloat16".

    Returns:
        A `keras.Model` from uint8 [n, image_size, image_size, 3] (RGB) to float32 [n, d], the mean of the last
        feature map, in inference mode.

    Raises:
        InputError: the weights do not fit or cannot be had.
    """
    row = BACKBONES[name]
    if image_size < row.smallest:
        raise InputError(f"--image-size: received {image_size}, required for {name} is {row.smallest} or more")
    check_weights(weights)
    with arithmetic(precision):
        try:
            body = getattr(keras.applications, row.constructor)(
                include_top=False,
                weights="imagenet" if weights == "imagenet" else None,
                input_shape=(image_size, image_size, 3),
                name=row.weights or name,
                **({"include_preprocessing": False} if row.scales_itself else {}),
            )
        except Exception as error:
            if weights != "imagenet":
                raise
            raise InputError(
                f"--weights imagenet could not be downloaded for {name} ({first_line(error)}); check the connection, "
                "or give --weights random or a weights file"
            ) from error
        body.name = name
        use_depthwise(body)
        if weights == "random":
            _randomize(body)
        elif weights != "imagenet":
            _load(body, name, weights)
        body.trainable = False
        pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
        features = body(_scaled(pixels, row.preprocessing), training=False)
        # Averaged in float32: the mean of 49 bfloat16 numbers would lose the bits that tell classes apart.
        pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name=POOL)(features)
        return keras.Model(pixels, pooled, name="frozen")


def _scaled(pixels: Any, how: Preprocessing) -> Any:
    if how.reverse:
        pixels = keras.ops.flip(keras.ops.cast(pixels, "float32"), axis=-1)
    factor, offset = (list(value) if isinstance(value, tuple) else value for value in (how.factor, how.offset))
    # In float32, rounded once on the way into the first convolution; bfloat16 would round twice and take longer.
    return keras.layers.Rescaling(factor, offset=offset, dtype="float32", name=SCALE)(pixels)


def _randomize(body: Any) -> None:
    """Draws the kernels again: Keras takes them from Python's global generator, which other threads use as well."""
    for number, variable in enumerate(body.trainable_variables):
        if len(variable.shape) > 1:
            variable.assign(keras.initializers.GlorotUniform(seed=RANDOM_SEED + number)(variable.shape))


def _load(body: Any, name: str, weights: str) -> None:
    row = BACKBONES[name]
    names = {name, row.weights or name}
    try:
        with warnings.catch_warnings(action="ignore"):  # of what does not fit, which the error says
            if weights.endswith(".keras"):
                body.set_weights(_body_of(keras.saving.load_model(weights, compile=False), names).get_weights())
            else:
                body.load_weights(weights)
    except Exception as error:
        why = first_line(error).partition(" Example error message")[0].rstrip(".:; ")
        raise InputError(
            f"--weights {weights} do not fit {name}: {why}; give the weights of keras.applications' "
            f"{row.constructor} with include_top=False"
        ) from error
    if not all(np.isfinite(value).all() for value in body.get_weights()):
        raise InputError(f"--weights {weights}: holds numbers that are not finite; the file is damaged")


def _body_of(model: Any, names: set[str]) -> Any:
    """The backbone inside a `.keras` model: the model itself, or the layer of one of the names at any depth."""
    if model.name in names:
        return model
    for layer in getattr(model, "layers", []):
        if layer.name in names:
            return layer
        inner = _body_of(layer, names) if getattr(layer, "layers", None) else None
        if inner is not None and inner.name in names:
            return inner
    return model
