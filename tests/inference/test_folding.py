"""Folding changes how fast a network is, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.inference.folding import _layers, folded
from flowers.model import backbones, classifier
from flowers.model.heatmap import explained
from flowers.model.registry import POOL

pytestmark = pytest.mark.networks
SIZE = 96
NEWER = ["mobilenetv3small", "efficientnetv2b0", "convnexttiny"]


def trained(name: str, precision: str) -> Any:
    """A classifier whose normalization and head are not as they start."""
    import keras

    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    network = backbones.build_backbone(name, "random", SIZE, precision)
    for layer in _layers(network):
        if type(layer).__name__ == "LayerScale":  # starts at a millionth
            layer.set_weights([rng.uniform(0.5, 1.5, layer.projection_dim)])
        if isinstance(layer, keras.layers.BatchNormalization):
            shapes = {variable.name: variable.shape for variable in layer.weights}
            layer.set_weights(
                [
                    rng.uniform(0.8, 1.2, shape) if name in ("gamma", "moving_variance") else rng.normal(0, 0.1, shape)
                    for name, shape in shapes.items()
                ]
            )
    depth = network.output_shape[-1]
    head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), 5, 0.2)
    head.get_layer("logits").set_weights([rng.normal(0, 0.05, (depth, 5)), rng.normal(0, 0.05, 5)])
    return classifier.join(network, head)


def outputs(model: Any, photos: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    return [one.numpy() for one in explained(model)(photos)]


@pytest.mark.parametrize("name", ["resnet50v2", "resnet50", "mobilenetv2", *NEWER])
def test_the_answers_are_the_same(name: str) -> None:
    photos = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    model = trained(name, "float32")
    before = classifier.weights_sha256(model)
    made = folded(model)
    expected, found = outputs(model, photos), outputs(made, photos)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4 * np.abs(expected[1]).max())
    assert classifier.weights_sha256(model) == before
    assert [layer.name for layer in made.layers] == [layer.name for layer in model.layers]
    assert made.get_layer(POOL).output.shape == model.get_layer(POOL).output.shape


def test_bfloat16_is_as_near_to_float32_as_before() -> None:
    photos = np.random.default_rng(1).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    exact, rounded = trained("resnet50v2", "float32"), trained("resnet50v2", "bfloat16")
    rounded.set_weights(exact.get_weights())
    expected = outputs(exact, photos)[0]
    before, after = (np.abs(outputs(one, photos)[0] - expected).max() for one in (rounded, folded(rounded)))
    assert 0 < after < max(3 * before, 1e-3)


def test_all_normalization_is_gone() -> None:
    import keras

    def kinds(model: Any) -> set[type]:
        return {type(layer) for layer in _layers(model)}

    model = trained("mobilenetv2", "float32")
    gone = {keras.layers.BatchNormalization, keras.layers.Conv2D, keras.layers.DepthwiseConv2D}
    assert gone <= kinds(model)
    assert not gone & kinds(folded(model))


def test_no_convolution_of_convnext_is_left_to_xla() -> None:
    import keras

    model = trained("convnexttiny", "float32")
    assert sum(type(layer) is keras.layers.Conv2D for layer in _layers(model)) == 22
    assert not any(isinstance(layer, keras.layers.Conv2D) for layer in _layers(folded(model)))
