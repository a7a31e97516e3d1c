"""Where a network is cut: below, the frozen part that runs once a photo; above, the tail that is trained.

A cut is the output of a block, one tensor through which everything flows (`flowers.model.registry.cut_of`).
"""

from __future__ import annotations

import math
from typing import Any

import keras

from flowers.model.registry import BACKBONES, PIXELS, POOL

SCALE = "scale"  # the layer that feeds the backbone


def _end(body: Any, name: str) -> Any:
    """The tensor that a block gives: the output of the layer of that name, or of the operation it alone goes into.

    ConvNeXt adds the input of a block by an operation: Keras numbers their names through, so they cannot name a cut.
    """
    layer = body.get_layer(name)
    followers = list({node.operation for node in layer._outbound_nodes})
    if len(followers) == 1 and not isinstance(followers[0], keras.layers.Layer):
        return followers[0].output
    return layer.output


def below(network: Any, backbone: str, cuts: list[str]) -> Any:
    """The network below some of its cuts.

    Args:
        network: what `flowers.model.backbones.build_backbone` returns.
        backbone: its name.
        cuts: one or more of "pool", "pixels" and the names of the backbone's blocks.

    Returns:
        A `keras.Model` from uint8 [n, size, size, 3] to a dict of these outputs.
    """
    body = network.get_layer(backbone)
    inside = [cut for cut in cuts if cut not in (POOL, PIXELS)]
    found: dict[str, Any] = {PIXELS: network.input}
    if inside:
        part = keras.Model(body.input, [*(_end(body, cut) for cut in inside), body.output])
        outputs = part(network.get_layer(SCALE).output, training=False)
        found |= dict(zip(inside, outputs, strict=False))
        found[POOL] = network.get_layer(POOL)(outputs[-1])
    else:
        found[POOL] = network.output
    return keras.Model(network.input, {cut: found[cut] for cut in cuts}, name="below")


def output_bytes(network: Any, backbone: str, cut: str) -> int:
    """Size of one photo's output at a cut, in bytes."""
    output = network.input if cut == PIXELS else _end(network.get_layer(backbone), cut)
    item = {"uint8": 1, "bfloat16": 2, "float32": 4}[keras.backend.standardize_dtype(output.dtype)]
    return item * math.prod(output.shape[1:])


def tail(network: Any, backbone: str, cut: str) -> Any:
    """The network above a cut, sharing its layers with `network`; a `keras.Model` to pooled features float32 [n, d]."""
    if cut == PIXELS:
        return network
    body = network.get_layer(backbone)
    upper = keras.Model(_end(body, cut), body.output)
    return keras.Model(upper.input, network.get_layer(POOL)(upper.output), name="tail")


def trained_variables(network: Any, backbone: str, cut: str) -> list[list[Any]]:
    """Variables above a cut that are trained, by block, from the cut to the head.

    BatchNormalization takes no part: its statistics and its scale stay, as it runs in inference mode.
    """
    ends = BACKBONES[backbone].blocks
    found: list[list[Any]] = [[] for _ in range(len(ends) + 1)]
    block, above = 0, cut == PIXELS
    # Layers come ordered by depth, and everything flows through a block's end: what follows it lies above it.
    for layer in network.get_layer(backbone).layers:
        if above and not isinstance(layer, keras.layers.BatchNormalization):
            found[block].extend(layer.weights)
        above = above or layer.name == cut
        if layer.name in ends:
            block = ends.index(layer.name) + 1
    return [variables for variables in found if variables]
