"""The engine computes what Keras does, for every backbone, from files alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.inference.conversion import convert, in_float32
from flowers.inference.engine import Engine, resolve_engine
from flowers.inference.openvino_engine import NETWORK, OpenVINOEngine
from flowers.inference.tensorflow_engine import TensorFlowEngine
from flowers.model import backbones, classifier
from flowers.model.heatmap import explained
from tests.toys import by_colour, layered

SIZE, CLASSES = 96, ["daisy", "rose", "tulip"]


def layers(model: Any) -> Any:
    return model._flatten_layers()


def trained(name: str, precision: str) -> Any:
    """A classifier whose normalization and head are not as they start."""
    import keras

    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    network = backbones.build_backbone(name, "random", SIZE, precision)
    for layer in layers(network):
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


_SIGNALS = """
import os, signal, sys, tempfile
import openvino
from openvino import opset13
from flowers.inference.openvino_engine import NETWORK, OpenVINOEngine

pixels = opset13.parameter([-1, 8, 8, 3], openvino.Type.u8)
network = openvino.Model([opset13.convert(pixels, "f32")], [pixels], "network")
with tempfile.TemporaryDirectory() as folder:
    openvino.save_model(network, os.path.join(folder, NETWORK[0]), compress_to_fp16=False)
    engines = [OpenVINOEngine(folder, [1], "float32", 1) for _ in range(3)]
heard = []
signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
while engines:
    del engines[0]  # the oldest first, as when a server takes another version
    signal.raise_signal(signal.SIGTERM)
print(len(heard))
"""


def test_signals_are_heard_when_engines_have_gone() -> None:
    """Each OpenVINO of its own would leave a stack for signals behind that was freed."""
    done = subprocess.run([sys.executable, "-c", _SIGNALS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def photos(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def outputs(model: Any, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    return [one.numpy() for one in explained(model)(pixels)]


def converted(model: Any, size: int, folder: Path) -> Path:
    convert(model, explained, size, str(folder))
    return folder


@pytest.mark.networks
@pytest.mark.parametrize(
    "name", ["resnet50v2", "resnet50", "mobilenetv2", "mobilenetv3small", "efficientnetv2b0", "convnexttiny"]
)
def test_every_backbone_gives_what_keras_does(tmp_path: Path, name: str) -> None:
    model, pixels = trained(name, "float32"), photos(3, SIZE)
    before = classifier.weights_sha256(model)
    engine = OpenVINOEngine(str(converted(model, SIZE, tmp_path)), (4,), "float32", 1)
    expected, found = outputs(model, pixels), engine(pixels)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4 * np.abs(expected[1]).max())
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4 * np.abs(expected[2]).max())
    assert engine.outputs == [one.shape[1:] for one in expected]
    assert classifier.weights_sha256(model) == before


@pytest.mark.networks
def test_a_network_trained_in_bfloat16_is_converted_from_float32(tmp_path: Path) -> None:
    model, pixels = trained("mobilenetv2", "bfloat16"), photos(4, SIZE)
    plain = in_float32(model)
    assert {layer.compute_dtype for layer in layers(plain)} == {"float32"}
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    folder = str(converted(model, SIZE, tmp_path))
    exact, rounded = outputs(plain, pixels)[0], outputs(model, pixels)[0]
    np.testing.assert_allclose(OpenVINOEngine(folder, (4,), "float32", 1)(pixels)[0], exact, atol=1e-5)
    assert np.abs(rounded - exact).max() > 1e-5
    np.testing.assert_allclose(OpenVINOEngine(folder, (4,), "bfloat16", 1)(pixels)[0], rounded, atol=2e-2)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[Engine]:
    model, sizes = layered(32, CLASSES).model, (1, 4, 6)
    folder = converted(model, 32, tmp_path_factory.mktemp("network"))
    return [OpenVINOEngine(str(folder), sizes, "float32", 1), TensorFlowEngine(explained(model), 32, sizes)]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 12, 13, 17])
def test_both_engines_at_any_number_of_photos(engines: list[Engine], count: int) -> None:
    pixels = photos(count, 32)
    first, second = (engine(pixels) for engine in engines)
    expected = outputs(layered(32, CLASSES).model, pixels)
    for one, other, wanted in zip(first, second, expected, strict=True):
        assert one.shape == other.shape == wanted.shape
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, wanted, atol=1e-5)
        np.testing.assert_allclose(other, wanted, atol=1e-5)


def test_an_answer_is_not_changed_by_the_next(engines: list[Engine]) -> None:
    pixels = photos(2, 32)
    for engine in engines:
        first = engine(pixels[:1])[0]
        kept = first.copy()
        engine(pixels[1:])
        np.testing.assert_array_equal(first, kept)


def test_files_are_all_it_takes(tmp_path: Path) -> None:
    """A process that loads them imports no TensorFlow, no Keras, and nothing that reports to anyone."""
    folder = converted(by_colour(8, CLASSES).model, 8, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NETWORK)
    code = (
        "import sys, numpy as np\n"
        "from flowers.inference.openvino_engine import OpenVINOEngine\n"
        f"engine = OpenVINOEngine({str(folder)!r}, (1,), 'float32', 1)\n"
        "photo = np.zeros((1, 8, 8, 3), np.uint8)\n"
        "photo[..., 2] = 200\n"
        "print(engine(photo)[0].argmax())\n"
        "print(*sorted(name for name in ('tensorflow', 'keras', 'ray', 'openvino_telemetry') if sys.modules.get(name)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split("\n") == ["2", "", ""], result.stderr


@pytest.mark.parametrize(
    ("asked", "gpus", "found"),
    [
        ("auto", 0, ("openvino", "no GPU is used")),
        ("auto", 0.5, ("tensorflow", "on GPUs")),
        ("openvino", 2, ("openvino", "as asked")),
        ("tensorflow", 0, ("tensorflow", "as asked")),
    ],
)
def test_which_engine(asked: str, gpus: float, found: tuple[str, str]) -> None:
    assert resolve_engine(asked, gpus) == found
