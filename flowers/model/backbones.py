"""The networks to choose from, with their start weights and their arithmetic.

A backbone here takes uint8 RGB pixels: the scaling its weights expect is its first layer.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowers import storage
from flowers.errors import InputError, first_line
from flowers.model.cuts import POOL, SCALE
from flowers.model.depthwise import use_depthwise
from flowers.model.registry import BACKBONES, Preprocessing

NAMED_WEIGHTS = ("imagenet", "random")
# Random weights have a seed of their own: another --seed need not compute all features again.
RANDOM_SEED = 1


def resolve_precision(precision: str, gpus: int = 0) -> tuple[str, str]:
    """Returns the arithmetic to use, "float32" or "bfloat16", and why.

    bfloat16 halves the time of a forward pass where the hardware multiplies it (AVX512-BF16, AMX, GPUs from compute
    capability 8.0 on) and is slower than float32 where it does not.

    Args:
        precision: "auto" or a choice already made.
        gpus: GPUs of the cluster; with 0 TensorFlow is not imported.
    """
    if precision != "auto":
        return precision, "as asked"
    if gpus:
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        if not found:
            return "float32", "the GPUs are on other nodes, so their kind is unknown; see --precision"
        major, minor = tf.config.experimental.get_device_details(found[0]).get("compute_capability", (0, 0))
        return ("bfloat16" if major >= 8 else "float32"), f"a GPU of compute capability {major}.{minor}"
    wanted = {"avx512_bf16", "amx_bf16"} & _cpu_flags()
    if wanted:
        return "bfloat16", f"the CPU has {' and '.join(sorted(wanted))}"
    return "float32", "the CPU has neither avx512_bf16 nor amx_bf16"


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((set(line.split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Layers made inside compute in `precision`; their variables stay float32."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
    import keras

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
    import keras

    if how.reverse:
        pixels = keras.ops.flip(keras.ops.cast(pixels, "float32"), axis=-1)
    factor, offset = (list(value) if isinstance(value, tuple) else value for value in (how.factor, how.offset))
    # In float32, rounded once on the way into the first convolution; bfloat16 would round twice and take longer.
    return keras.layers.Rescaling(factor, offset=offset, dtype="float32", name=SCALE)(pixels)


def _randomize(body: Any) -> None:
    """Draws the kernels again: Keras takes them from Python's global generator, which other threads use as well."""
    import keras

    for number, variable in enumerate(body.trainable_variables):
        if len(variable.shape) > 1:
            variable.assign(keras.initializers.GlorotUniform(seed=RANDOM_SEED + number)(variable.shape))


def _load(body: Any, name: str, weights: str) -> None:
    import keras

    row = BACKBONES[name]
    names = {name, row.weights or name}
    try:
        if weights.endswith(".keras"):
            body.set_weights(_body_of(keras.saving.load_model(weights, compile=False), names).get_weights())
        else:
            body.load_weights(weights)
    except Exception as error:
        raise InputError(
            f"--weights {weights} do not fit {name}: {first_line(error)}; give the weights of keras.applications' "
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
