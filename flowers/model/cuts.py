"""Where a network is cut: below, the frozen part that runs once a photo; above, the tail that is trained.

A cut is the output of a block, one tensor through which everything flows. "pool" is the cut above the last block
(only the head is trained), "pixels" the one below the first (everything is).
"""

from __future__ import annotations

import math
from typing import Any

from flowers.errors import InputError

POOL, PIXELS = "pool", "pixels"
SCALE = "scale"  # the layer that feeds the backbone
_SPECIAL = {"head": POOL, "all": PIXELS}

# Blocks of the stages conv2 to conv5.
_RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
# Blocks of MobileNetV2 that add their input: their output has another name.
_ADDING = {2, 4, 5, 7, 8, 9, 11, 12, 14, 15}


def blocks(backbone: str) -> list[str]:
    """Names of the layers that end the blocks of `backbone`, from the input to the output."""
    if backbone == "mobilenetv2":
        ends = [f"block_{number}_{'add' if number in _ADDING else 'project_BN'}" for number in range(1, 17)]
        return ["expanded_conv_project_BN", *ends]
    if backbone == "inceptionv3":
        return [f"mixed{number}" for number in range(11)]
    sizes = _RESNETS[backbone.removeprefix("resnet").removesuffix("v2")]
    return [f"conv{stage}_block{number}_out" for stage, size in enumerate(sizes, 2) for number in range(1, size + 1)]


def trainable_names(backbone: str) -> list[str]:
    """What `--trainable` may be for `backbone`, the shallowest first."""
    return ["head", *reversed(_starts(backbone)), "all"]


def cut_of(backbone: str, trainable: str) -> str:
    """The layer after which training starts: its output is what is cached.

    Raises:
        InputError: `backbone` has no part of that name.
    """
    if trainable in _SPECIAL:
        return _SPECIAL[trainable]
    starts = _starts(backbone)
    if trainable not in starts:
        raise InputError(
            f"--trainable: received {trainable!r}, required for {backbone} is one of "
            f"{', '.join(trainable_names(backbone))}"
        )
    return starts[trainable]


def _starts(backbone: str) -> dict[str, str]:
    """Names from which on the network can be trained, the deepest first, and the cut below each."""
    ends = blocks(backbone)
    if backbone == "mobilenetv2":
        return {f"block_{number}": ends[number - 1] for number in range(1, 17)}
    if backbone == "inceptionv3":
        return {f"mixed{number}": ends[number - 1] for number in range(1, 11)}
    last = {end.split("_")[0]: end for end in ends}
    return {f"stage{number}": last[f"conv{number - 1}"] for number in (3, 4, 5)}


def front(network: Any, backbone: str, cuts: list[str]) -> Any:
    """The network up to some of its cuts.

    Args:
        network: what `flowers.model.backbones.build_backbone` returns.
        backbone: its name.
        cuts: one or more of "pool", "pixels" and the names of `blocks`.

    Returns:
        A `keras.Model` from uint8 [n, size, size, 3] to a dict of these outputs.
    """
    import keras

    body = network.get_layer(backbone)
    inside = [cut for cut in cuts if cut not in (POOL, PIXELS)]
    found: dict[str, Any] = {PIXELS: network.input}
    if inside:
        part = keras.Model(body.input, [*(body.get_layer(cut).output for cut in inside), body.output])
        outputs = part(network.get_layer(SCALE).output, training=False)
        found |= dict(zip(inside, outputs, strict=False))
        found[POOL] = network.get_layer(POOL)(outputs[-1])
    else:
        found[POOL] = network.output
    return keras.Model(network.input, {cut: found[cut] for cut in cuts}, name="front")


def output_bytes(network: Any, backbone: str, cut: str) -> int:
    """Size of one photo's output at a cut, in bytes."""
    import keras

    output = network.input if cut == PIXELS else network.get_layer(backbone).get_layer(cut).output
    item = {"uint8": 1, "bfloat16": 2, "float32": 4}[keras.backend.standardize_dtype(output.dtype)]
    return item * math.prod(output.shape[1:])


def tail(network: Any, backbone: str, cut: str) -> Any:
    """The network above a cut, sharing its layers with `network`; a `keras.Model` to pooled features float32 [n, d]."""
    import keras

    if cut == PIXELS:
        return network
    body = network.get_layer(backbone)
    upper = keras.Model(body.get_layer(cut).output, body.output)
    return keras.Model(upper.input, network.get_layer(POOL)(upper.output), name="tail")


def trained_variables(network: Any, backbone: str, cut: str) -> list[list[Any]]:
    """Variables above a cut that are trained, by block, from the cut to the head.

    BatchNormalization takes no part: its statistics and its scale stay, as it runs in inference mode.
    """
    import keras

    ends = blocks(backbone)
    found: list[list[Any]] = [[] for _ in range(len(ends) + 1)]
    place, above = 0, cut == PIXELS
    # Layers come ordered by depth, and everything flows through a block's end: what follows it lies above it.
    for layer in network.get_layer(backbone).layers:
        if above and not isinstance(layer, keras.layers.BatchNormalization):
            found[place].extend(layer.weights)
        above = above or layer.name == cut
        if layer.name in ends:
            place = ends.index(layer.name) + 1
    return [variables for variables in found if variables]
