"""The backbones to choose from, one row each: a new one is one more row, and nothing else.

Nothing heavy is imported here, since the command line offers what the table holds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from flowers.errors import InputError

# Cuts that every backbone has: above its last block (only the head is trained) and below the first (everything is).
POOL, PIXELS = "pool", "pixels"
_SPECIAL = {"head": POOL, "all": PIXELS}

Parts = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Preprocessing:
    """What the weights expect of a pixel from 0 to 255: `pixel * factor + offset`, one number or one a channel.

    Attributes:
        factor: applied first.
        offset: added then.
        reverse: the channels are blue, green, red.
    """

    factor: float | tuple[float, ...]
    offset: float | tuple[float, ...]
    reverse: bool = False


@dataclass(frozen=True)
class Backbone:
    """What there is to know of a backbone.

    Attributes:
        constructor: its function in `keras.applications`.
        image_size: height and width it was trained at, in pixels.
        preprocessing: what its weights expect of the pixels.
        parts: from the input to the output, the layers that end the blocks of each part. All but the first part are
            names for --trainable: all from there on is trained.
        weights: its name in Keras, where block table or ImageNet weights go by that name; "" where any will do.
        smallest: height and width it needs at least, in pixels.
        scales_itself: whether Keras puts the preprocessing into the network unless told not to.
    """

    constructor: str
    image_size: int
    preprocessing: Preprocessing
    parts: Parts
    weights: str = ""
    smallest: int = 32
    scales_itself: bool = False

    @property
    def blocks(self) -> list[str]:
        """Names of the layers that end the blocks, from the input to the output."""
        return [end for ends in self.parts.values() for end in ends]

    @property
    def starts(self) -> dict[str, str]:
        """Names from which on the network can be trained, the deepest first, and the block below each."""
        names = list(self.parts)
        return {name: self.parts[below][-1] for below, name in itertools.pairwise(names)}

    @property
    def trainable_names(self) -> list[str]:
        """What `--trainable` may be, the shallowest first."""
        return ["head", *reversed(self.starts), "all"]


def _resnet(*sizes: int) -> Parts:
    return {
        f"stage{stage}": tuple(f"conv{stage}_block{number}_out" for number in range(1, size + 1))
        for stage, size in enumerate(sizes, 2)
    }


def _mobilenet(prefix: str, norm: str, last: int, adding: set[int]) -> Parts:
    """Blocks 0 to `last`; those that add their input (`adding`) end in a layer of another name."""
    layers = ["expanded_conv", *(f"{prefix}_{number}" for number in range(1, last + 1))]
    return {
        f"block_{number}": (f"{layer}_{'add' if number in adding else norm}",) for number, layer in enumerate(layers)
    }


def _efficientnet(first: str, *sizes: int) -> Parts:
    """`first` ends the first block; later ones add their input, but for the first of a part."""
    parts = {
        f"block{part}": tuple(
            f"block{part}{chr(97 + number)}_{'add' if number else 'project_bn'}" for number in range(size)
        )
        for part, size in enumerate(sizes, 1)
    }
    return {"stem": ("stem_activation",), **parts, "block1": (f"block1a_{first}", *parts["block1"][1:])}


def _convnext(name: str, *sizes: int) -> Parts:
    stages = {
        f"stage{stage + 1}": tuple(f"{name}_stage_{stage}_block_{number}_identity" for number in range(size))
        for stage, size in enumerate(sizes)
    }
    return {"stem": (f"{name}_stem",), **stages}


_HALVES = Preprocessing(1 / 127.5, -1.0)
_HALVES_OF_256 = Preprocessing(1 / 128, -1.0)
# Mean and standard deviation of ImageNet: of the Caffe models, and of PyTorch's for pixels from 0 to 1.
_CAFFE = Preprocessing(1.0, (-103.939, -116.779, -123.68), reverse=True)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STANDARD = Preprocessing(
    tuple(1 / (255 * deviation) for deviation in _DEVIATION),
    tuple(-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
)

BACKBONES: dict[str, Backbone] = {
    "resnet50v2": Backbone("ResNet50V2", 224, _HALVES, _resnet(3, 4, 6, 3)),
    "resnet101v2": Backbone("ResNet101V2", 224, _HALVES, _resnet(3, 4, 23, 3)),
    "resnet152v2": Backbone("ResNet152V2", 224, _HALVES, _resnet(3, 8, 36, 3)),
    "resnet50": Backbone("ResNet50", 224, _CAFFE, _resnet(3, 4, 6, 3)),
    "resnet101": Backbone("ResNet101", 224, _CAFFE, _resnet(3, 4, 23, 3)),
    "resnet152": Backbone("ResNet152", 224, _CAFFE, _resnet(3, 8, 36, 3)),
    "mobilenetv2": Backbone(
        "MobileNetV2", 224, _HALVES, _mobilenet("block", "project_BN", 16, {2, 4, 5, 7, 8, 9, 11, 12, 14, 15})
    ),
    "mobilenetv3small": Backbone(
        "MobileNetV3Small",
        224,
        _HALVES,
        _mobilenet("expanded_conv", "project_bn", 10, {2, 4, 5, 7, 9, 10}),
        scales_itself=True,
    ),
    "mobilenetv3large": Backbone(
        "MobileNetV3Large",
        224,
        _HALVES,
        _mobilenet("expanded_conv", "project_bn", 14, {0, 2, 4, 5, 7, 8, 9, 11, 13, 14}),
        scales_itself=True,
    ),
    "inceptionv3": Backbone(
        "InceptionV3", 299, _HALVES, {f"mixed{number}": (f"mixed{number}",) for number in range(11)}, smallest=75
    ),
    "efficientnetv2b0": Backbone(
        "EfficientNetV2B0",
        224,
        _STANDARD,
        _efficientnet("project_activation", 1, 2, 2, 3, 5, 8),
        weights="efficientnetv2-b0",
        scales_itself=True,
    ),
    "efficientnetv2s": Backbone(
        "EfficientNetV2S",
        384,
        _HALVES_OF_256,
        _efficientnet("add", 2, 4, 4, 6, 9, 15),
        weights="efficientnetv2-s",
        scales_itself=True,
    ),
    "convnexttiny": Backbone(
        "ConvNeXtTiny",
        224,
        _STANDARD,
        _convnext("convnext_tiny", 3, 3, 9, 3),
        weights="convnext_tiny",
        scales_itself=True,
    ),
}


def cut_of(backbone: str, trainable: str) -> str:
    """The layer after which training starts: its output is what is cached.

    Raises:
        InputError: `backbone` has no part of that name.
    """
    if trainable in _SPECIAL:
        return _SPECIAL[trainable]
    starts = BACKBONES[backbone].starts
    if trainable not in starts:
        raise InputError(
            f"--trainable: received {trainable!r}, required for {backbone} is one of "
            f"{', '.join(BACKBONES[backbone].trainable_names)}"
        )
    return starts[trainable]


def trainable_help() -> str:
    """What --trainable may be, for its help: "stage3 to stage5 (resnet50v2, ...); ..."."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, backbone in BACKBONES.items():
        starts = list(backbone.starts)
        groups.setdefault((starts[0], starts[-1]), []).append(name)
    return "; ".join(f"{first} to {last} ({', '.join(names)})" for (first, last), names in groups.items())
