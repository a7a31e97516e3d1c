"""Cuts: the names are there, everything flows through them, and what lies above is what is trained."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from flowers.errors import InputError
from flowers.model import cuts
from flowers.model.backbones import build_backbone
from flowers.model.registry import BACKBONES, PIXELS, POOL, cut_of

pytestmark = pytest.mark.networks
# One of each kind: the others have the same blocks, more often or wider.
KINDS = [
    name for name in BACKBONES if not name.startswith(("resnet101", "resnet152", "efficientnetv2s", "mobilenetv3l"))
]
STARTS = [(kind, name) for kind in KINDS for name in BACKBONES[kind].trainable_names[1:]]


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """A random float32 network of each kind, at the smallest size."""
    made = {name: build_backbone(name, "random", BACKBONES[name].smallest, "float32") for name in KINDS}
    for variable in made["mobilenetv2"].weights:
        if len(variable.shape) > 1:
            variable.assign(variable * 2.5)  # or its output would hardly depend on its input
    for layer in made["convnexttiny"].get_layer("convnexttiny").layers:
        if type(layer).__name__ == "LayerScale":
            layer.set_weights([np.ones(layer.projection_dim)])  # or its blocks would hardly add anything
    return made


def leaves(model: Any) -> list[Any]:
    """All layers, those inside of others for these."""
    return [leaf for layer in model.layers for leaf in (leaves(layer) if hasattr(layer, "layers") else [layer])]


def photos(name: str, count: int = 3) -> Any:
    size = BACKBONES[name].smallest
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_are_layers_of_the_network_in_its_order(built: dict[str, Any], name: str) -> None:
    import keras

    size = BACKBONES[name].smallest
    constructor = getattr(keras.applications, BACKBONES[name].constructor)
    if name in built:
        body = built[name].get_layer(name)
    else:
        body = constructor(include_top=False, weights=None, input_shape=(size, size, 3))
    layers = [layer.name for layer in body.layers]
    indices = [layers.index(end) for end in BACKBONES[name].blocks]
    assert indices == sorted(indices)


@pytest.mark.parametrize("name", KINDS)
def test_below_and_above_a_cut_it_is_the_network_bit_for_bit(built: dict[str, Any], name: str) -> None:
    network, pixels = built[name], photos(name)
    whole = np.asarray(network(pixels, training=False))
    assert np.ptp(whole, axis=0).max() > 0.01 * np.abs(whole).max()  # three photos, three answers
    every = [PIXELS, *BACKBONES[name].blocks, POOL]
    outputs = cuts.below(network, name, every)(pixels, training=False)
    assert list(outputs) == every
    np.testing.assert_array_equal(np.asarray(outputs[PIXELS]), pixels)
    np.testing.assert_array_equal(np.asarray(outputs[POOL]), whole)
    for cut in {cut_of(name, start) for start in BACKBONES[name].trainable_names} - {POOL}:
        alone = cuts.below(network, name, [cut])(pixels, training=False)[cut]
        np.testing.assert_array_equal(np.asarray(alone), np.asarray(outputs[cut]), err_msg=cut)
        above = cuts.tail(network, name, cut)(outputs[cut], training=False)
        np.testing.assert_array_equal(np.asarray(above), whole, err_msg=cut)


@pytest.mark.parametrize(
    ("name", "trainable", "cut"),
    [
        *[(name, "head", "pool") for name in BACKBONES],
        *[(name, "all", "pixels") for name in BACKBONES],
        ("resnet50v2", "stage5", "conv4_block6_out"),
        ("resnet50", "stage4", "conv3_block4_out"),
        ("resnet50v2", "stage3", "conv2_block3_out"),
        ("resnet101", "stage5", "conv4_block23_out"),
        ("resnet101v2", "stage4", "conv3_block4_out"),
        ("resnet152v2", "stage5", "conv4_block36_out"),
        ("resnet152", "stage4", "conv3_block8_out"),
        ("mobilenetv2", "block_16", "block_15_add"),
        ("mobilenetv2", "block_14", "block_13_project_BN"),
        ("mobilenetv2", "block_1", "expanded_conv_project_BN"),
        ("inceptionv3", "mixed10", "mixed9"),
        ("inceptionv3", "mixed1", "mixed0"),
        ("efficientnetv2b0", "block6", "block5e_add"),
        ("efficientnetv2b0", "block2", "block1a_project_activation"),
        ("efficientnetv2s", "block2", "block1b_add"),
        ("efficientnetv2s", "block1", "stem_activation"),
        ("mobilenetv3small", "block_10", "expanded_conv_9_add"),
        ("mobilenetv3small", "block_1", "expanded_conv_project_bn"),
        ("mobilenetv3large", "block_14", "expanded_conv_13_add"),
        ("mobilenetv3large", "block_1", "expanded_conv_add"),
        ("convnexttiny", "stage4", "convnext_tiny_stage_2_block_8_identity"),
        ("convnexttiny", "stage1", "convnext_tiny_stem"),
    ],
)
def test_the_cut_lies_below_what_is_trained(name: str, trainable: str, cut: str) -> None:
    assert cut_of(name, trainable) == cut


@pytest.mark.parametrize(
    ("name", "trainable", "allowed"),
    [
        ("resnet50v2", "block_16", "head, stage5, stage4, stage3, all"),
        ("resnet50v2", "stage2", "head, stage5, stage4, stage3, all"),
        ("resnet152", "", "head, stage5, stage4, stage3, all"),
        ("mobilenetv2", "stage5", "head, " + ", ".join(f"block_{number}" for number in range(16, 0, -1)) + ", all"),
        ("inceptionv3", "mixed0", "head, " + ", ".join(f"mixed{number}" for number in range(10, 0, -1)) + ", all"),
        ("efficientnetv2s", "block7", "head, block6, block5, block4, block3, block2, block1, all"),
        ("convnexttiny", "stem", "head, stage4, stage3, stage2, stage1, all"),
    ],
)
def test_an_unknown_part_is_refused_with_those_there_are(name: str, trainable: str, allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        cut_of(name, trainable)
    assert str(caught.value) == f"--trainable: received {trainable!r}, required for {name} is one of {allowed}"
    for part in allowed.split(", "):
        cut_of(name, part)


@pytest.mark.parametrize(
    ("name", "cut", "size"),
    [
        ("resnet50v2", "conv4_block6_out", 1 * 1 * 1024 * 4),
        ("resnet50v2", "conv2_block3_out", 4 * 4 * 256 * 4),
        ("mobilenetv2", "block_15_add", 1 * 1 * 160 * 4),
        ("inceptionv3", "mixed10", 1 * 1 * 2048 * 4),
        ("inceptionv3", "pixels", 75 * 75 * 3),
        ("convnexttiny", "convnext_tiny_stage_1_block_2_identity", 4 * 4 * 192 * 4),
        ("efficientnetv2b0", "block5e_add", 2 * 2 * 112 * 4),
    ],
)
def test_the_size_of_an_output_in_bytes(built: dict[str, Any], name: str, cut: str, size: int) -> None:
    assert cuts.output_bytes(built[name], name, cut) == size
    assert np.asarray(cuts.below(built[name], name, [cut])(photos(name, 1))[cut]).nbytes == size


def test_bfloat16_takes_half_the_bytes() -> None:
    network = build_backbone("resnet50v2", "random", 32, "bfloat16")
    assert cuts.output_bytes(network, "resnet50v2", "conv4_block6_out") == 1024 * 2
    assert cuts.output_bytes(network, "resnet50v2", "pixels") == 32 * 32 * 3


@pytest.mark.parametrize(("name", "trainable"), STARTS)
def test_all_above_the_cut_is_trained_but_batch_normalization(built: dict[str, Any], name: str, trainable: str) -> None:
    import keras

    cut = cut_of(name, trainable)
    body = built[name].get_layer(name)
    groups = cuts.trained_variables(built[name], name, cut)
    found = [variable for group in groups for variable in group]
    assert len({id(variable) for variable in found}) == len(found)
    above = body if cut == PIXELS else cuts.tail(built[name], name, cut)
    norms = [layer for layer in leaves(body) if isinstance(layer, keras.layers.BatchNormalization)]
    frozen = {id(variable) for layer in norms for variable in layer.weights}
    assert name == "convnexttiny" or len(frozen) > 50
    assert {id(variable) for variable in found} == {id(variable) for variable in above.weights} - frozen
    assert found
    assert not built[name].trainable_variables  # asking changes nothing


@pytest.mark.parametrize("name", KINDS)
def test_all_has_every_kernel(built: dict[str, Any], name: str) -> None:
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    kernels = {id(layer.kernel) for layer in leaves(built[name].get_layer(name)) if isinstance(layer, kinds)}
    found = [variable for group in cuts.trained_variables(built[name], name, PIXELS) for variable in group]
    assert len(kernels) > 50
    assert kernels <= {id(variable) for variable in found}
    allowed = {"kernel", "bias"}
    if name == "convnexttiny":  # of LayerNormalization and LayerScale
        allowed |= {"gamma", "beta", "variable"}
    assert {variable.path.rsplit("/", 1)[-1].split("_")[0] for variable in found} <= allowed


@pytest.mark.parametrize("name", KINDS)
def test_groups_are_blocks_from_the_cut_to_the_head(built: dict[str, Any], name: str) -> None:
    """A deeper cut puts more groups before those of a shallower one."""
    starts = [cut_of(name, start) for start in BACKBONES[name].trainable_names[1:]]
    nested = [cuts.trained_variables(built[name], name, cut) for cut in starts]
    for groups in nested:
        assert all(groups)
    for fewer, more in itertools.pairwise(nested):
        assert len(more) > len(fewer)
        for one, other in zip(reversed(fewer), reversed(more), strict=False):
            assert [id(variable) for variable in one] == [id(variable) for variable in other]


def test_the_blocks_of_a_stage(built: dict[str, Any]) -> None:
    groups = cuts.trained_variables(built["resnet50v2"], "resnet50v2", "conv3_block4_out")
    blocks = [{variable.path.split("/")[-2].rsplit("_", 2)[0] for variable in group} for group in groups]
    assert blocks == [{f"conv4_block{number}"} for number in range(1, 7)] + [
        {f"conv5_block{number}"} for number in range(1, 4)
    ]
    mobile = cuts.trained_variables(built["mobilenetv2"], "mobilenetv2", "block_15_add")
    names = [{variable.path.split("/")[-2] for variable in group} for group in mobile]
    assert names == [{"block_16_expand", "block_16_depthwise", "block_16_project"}, {"Conv_1"}]
    convnext = cuts.trained_variables(built["convnexttiny"], "convnexttiny", "convnext_tiny_stage_2_block_8_identity")
    names = [{re.sub("^convnext_tiny_", "", variable.path.split("/")[0]) for variable in group} for group in convnext]
    parts = ("depthwise_conv", "layernorm", "pointwise_conv_1", "pointwise_conv_2", "layer_scale")
    blocks = [{f"stage_3_block_{number}_{part}" for part in parts} for number in range(3)]
    last = names.pop()
    assert names == [blocks[0] | {"downsampling_block_2"}, *blocks[1:]]
    assert {name.rstrip("_0123456789") for name in last} == {"layer_normalization"}
