"""Random changes of training photos, computed by Keras' layers in the training step.

The layers only do the pixels. What they do is drawn here, as a function of the seed, the number of the step and the
photo's index in the global batch, so that neither the number of workers nor a resumed run changes a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import layers

KINDS = ("standard", "strong")

_GREY = 128  # what uncovered corners and erased rectangles are filled with
_FLIP, _COLOUR, _CHOICE, _FIRST, _SECOND, _ERASE, _COIN, _BLEND, _PASTE = range(9)  # what numbers are drawn for

# Changes float32 images [b, size, size, 3] in 0 to 255 by float32 draws [b, 2], uniform in [-1, 1).
Operation = Callable[[Any, Any], Any]


class Augmenter:
    """Changes batches of photos; random crops are the decoder's task (`flowers.data.crops`).

    "standard" flips half of the photos and shifts brightness, contrast and colour. "strong" flips, applies two of ten
    operations to all photos, each photo with a strength of its own (Cubuk et al. 2019, RandAugment), erases a
    rectangle in a quarter of them (Zhong et al. 2017), and mixes neighbours, photos 2i and 2i + 1: the step either
    blends them (Zhang et al. 2017, mixup) or pastes a part of one into the other (Yun et al. 2019, CutMix).

    Args:
        kind: one of `KINDS`.
        size: height and width of the photos, in pixels.
        batch_size: photos in the global batch, B.
        workers: that divide it.
        rank: this worker's number; it gets the photos from `rank * local_batch` on, where local_batch = B / workers.
        seed: from 0 to 2**31 - 1.

    Raises:
        ValueError: no such kind, or the workers' batches are not whole, or odd where neighbours are to be mixed.
    """

    def __init__(self, kind: str, *, size: int, batch_size: int, workers: int, rank: int, seed: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: received {kind!r}, required is one of {', '.join(KINDS)}")
        local_batch, rest = divmod(batch_size, workers)
        if rest or (kind == "strong" and local_batch % 2):
            required = "an even number" if kind == "strong" else "a whole number"
            raise ValueError(f"{batch_size} photos for {workers} workers: required is {required} for each")
        self.kind, self.size, self.batch_size, self.seed = kind, size, batch_size, seed
        self.part = slice(rank * local_batch, (rank + 1) * local_batch)
        # Moves and copies are made of bytes, a quarter of what floats would take.
        self.flip = layers.RandomFlip("horizontal", dtype="uint8", seed=0)
        self.erasing = layers.RandomErasing(dtype="uint8", seed=0)
        self.cut_mix = layers.CutMix(dtype="uint8", seed=0)
        self.mix_up = layers.MixUp(dtype="float32", seed=0)
        self.neighbours = [index ^ 1 for index in range(local_batch)]
        self.operations = (
            _colours(brightness=0.15, contrast=0.3, saturation=0.3)
            if kind == "standard"
            else [*_colours(brightness=0.3, contrast=0.6, saturation=0.8), *_tones(), *_moves(size)]
        )

    def __call__(self, pixels: Any, targets: Any, number: Any) -> tuple[Any, Any]:
        """Changes this worker's part of a batch, inside a `tf.function`.

        Args:
            pixels: uint8 [local_batch, size, size, 3].
            targets: float32 [local_batch, K], probabilities of the classes.
            number: int32 scalar tensor, number of the global step.

        Returns:
            Pixels and targets of the same shapes and types.
        """
        flips = self._draw(number, _FLIP, 1)[:, :, None, None] < 0.5
        images = tf.cast(self.flip.transform_images(pixels, {"flips": flips}), tf.float32)
        if self.kind == "standard":
            signed = 2 * self._draw(number, _COLOUR, 2 * len(self.operations)) - 1
            for index, operation in enumerate(self.operations):
                images = operation(images, signed[:, 2 * index : 2 * index + 2])
            return _bytes(images), targets
        choice = tf.random.stateless_uniform((2,), self._seed(number, _CHOICE), 0, len(self.operations), tf.int32)
        for index, purpose in enumerate((_FIRST, _SECOND)):
            images = self._operate(choice[index], images, 2 * self._draw(number, purpose, 2) - 1)
        return self._mix(self._erase(_bytes(images), number), targets, number)

    def _seed(self, number: Any, purpose: int) -> Any:
        return tf.random.fold_in(tf.stack([self.seed, number]), purpose)

    def _draw(self, number: Any, purpose: int, columns: int) -> Any:
        """Uniform numbers in [0, 1), float32 [local_batch, columns]: this worker's rows of the global batch's."""
        return tf.random.stateless_uniform((self.batch_size, columns), self._seed(number, purpose))[self.part]

    def _operate(self, choice: Any, images: Any, signed: Any) -> Any:
        """Computes one operation only; `keras.layers.RandAugment` would compute all and throw the others away."""
        return tf.switch_case(choice, [lambda each=each: each(images, signed) for each in self.operations])

    def _erase(self, pixels: Any, number: Any) -> Any:
        chance, width, height, across, down = tf.unstack(self._draw(number, _ERASE, 5), axis=1)
        width, height = (tf.sqrt(0.02 + (0.33 - 0.02) * length) for length in (width, height))
        rectangles = {
            "apply_erasing": chance < 0.25,
            "batch_masks": self._rectangles(width, height, across, down),
            "fill_value": tf.constant(_GREY, tf.uint8),
        }
        return self.erasing.transform_images(pixels, rectangles)

    def _mix(self, pixels: Any, targets: Any, number: Any) -> tuple[Any, Any]:
        """Mixes each photo with its neighbour in the batch: each epoch with another one of the slot beside its own."""

        def blend() -> tuple[Any, Any]:
            gammas = tf.random.stateless_gamma((self.batch_size, 2), self._seed(number, _BLEND), alpha=0.2)[self.part]
            kept = tf.math.divide_no_nan(gammas[:, 0], tf.reduce_sum(gammas, axis=1))  # Beta(0.2, 0.2)
            mixing = {"mix_weight": kept, "permutation_order": self.neighbours}
            images = self.mix_up.transform_images(pixels, mixing)
            return _bytes(images), self.mix_up.transform_labels(targets, mixing)

        def paste() -> tuple[Any, Any]:
            area, across, down = tf.unstack(self._draw(number, _PASTE, 3), axis=1)  # uniform, that is Beta(1, 1)
            masks = self._rectangles(tf.sqrt(area), tf.sqrt(area), across, down)
            kept = 1 - tf.reduce_mean(tf.cast(masks, tf.float32), axis=(1, 2, 3))
            mixing = {"mix_weight": kept, "permutation_order": self.neighbours, "batch_masks": masks}
            return self.cut_mix.transform_images(pixels, mixing), self.cut_mix.transform_labels(targets, mixing)

        coin = tf.random.stateless_uniform((), self._seed(number, _COIN))
        return tf.cond(coin < 0.5, blend, paste)

    def _rectangles(self, width: Any, height: Any, across: Any, down: Any) -> Any:
        """Masks bool [b, size, size, 1] that are true in a rectangle.

        Args:
            width: float32 [b], parts of the photo's.
            height: the same.
            across: float32 [b] in [0, 1), where the rectangle lies among all positions it fits into.
            down: the same.
        """

        def between(length: Any, position: Any) -> Any:
            pixels, length = tf.range(self.size, dtype=tf.float32), length[:, None] * self.size
            start = position[:, None] * (self.size - length)
            return (start <= pixels) & (pixels < start + length)

        return between(height, down)[:, :, None, None] & between(width, across)[:, None, :, None]


def _bytes(images: Any) -> Any:
    """Images rounded to uint8."""
    return tf.saturate_cast(tf.round(images), tf.uint8)


def _operation(layer: Any, transformation: Callable[[Any], dict[str, Any]]) -> Operation:
    return lambda images, signed: layer.transform_images(images, transformation(signed))


def _each(signed: Any) -> Any:
    """The first number of each photo, float32 [b, 1, 1, 1]."""
    return signed[:, :1, None, None]


def _colours(brightness: float, contrast: float, saturation: float) -> list[Operation]:
    """Shifts up and down: of a part of the range of values, and by factors around 1."""
    # Not the dtype of --precision: bfloat16 has too few bits for 256 levels. A seed, though none is used, as Keras
    # would take one from Python's global generator.
    exact: dict[str, Any] = {"dtype": "float32", "seed": 0}
    return [
        _operation(
            layers.RandomBrightness(brightness, **exact),
            lambda signed: {"rgb_delta": 255 * brightness * _each(signed)},
        ),
        _operation(
            layers.RandomContrast(contrast, **exact),
            lambda signed: {"contrast_factor": 1 + contrast * _each(signed)},
        ),
        _operation(  # towards grey and, with a negative factor, away from it
            layers.RandomColorDegeneration(saturation, **exact),
            lambda signed: {"factor": saturation * _each(signed)},
        ),
    ]


def _tones() -> list[Operation]:
    exact: dict[str, Any] = {"dtype": "float32", "seed": 0}
    return [
        _operation(layers.AutoContrast(dtype="float32"), lambda signed: {}),
        _operation(  # 0.5 changes nothing
            layers.RandomSharpness(1.0, **exact), lambda signed: {"factor": 0.5 + 0.4 * signed[:, 0]}
        ),
        _operation(  # drops one to four of eight bits
            layers.RandomPosterization(8, **exact),
            lambda signed: {"shift_factor": tf.cast(3 + 2 * signed[:, 0], tf.uint8)},
        ),
        _operation(
            layers.Solarization(**exact),
            lambda signed: {"additions": 0.0, "thresholds": 192 + 64 * _each(signed)},
        ),
    ]


def _moves(size: int) -> list[Operation]:
    options: dict[str, Any] = {"fill_mode": "constant", "fill_value": _GREY, "dtype": "float32", "seed": 0}

    def matrix(angle: Any) -> Any:
        """Rotations about the middle, float32 [b, 8], for angles in radians, float32 [b]."""
        cos, sin, middle = tf.cos(angle), tf.sin(angle), (size - 1) / 2
        right, down = middle * (1 - cos + sin), middle * (1 - cos - sin)
        zero = tf.zeros_like(angle)
        return tf.stack([cos, -sin, right, sin, cos, down, zero, zero], axis=1)

    return [
        _operation(layers.RandomShear(0.2, 0.2, **options), lambda signed: {"shear_factor": 0.2 * signed}),
        _operation(layers.RandomTranslation(0.2, 0.2, **options), lambda signed: {"translations": 0.2 * size * signed}),
        _operation(
            layers.RandomRotation(1 / 12, **options),
            lambda signed: {"rotation_matrix": matrix(signed[:, 0] * math.pi / 6)},
        ),
    ]
