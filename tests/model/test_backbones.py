"""Backbones: scaling, random and loaded weights, frozen statistics, arithmetic, and refusals in one line."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers.errors import InputError
from flowers.model import backbones
from flowers.model import precision as precision_module
from flowers.model.backbones import build_backbone
from flowers.model.classifier import build_head, join
from flowers.model.precision import resolve_precision
from flowers.model.registry import BACKBONES
from flowers.model.weights import weights_key

pytestmark = pytest.mark.networks
# Keras puts the preprocessing into these, and into the wider ones of their kind.
SCALING_THEMSELVES = ["mobilenetv3small", "efficientnetv2b0", "convnexttiny"]


@pytest.fixture(scope="module")
def built() -> Iterator[Callable[[str], Any]]:
    """Random float32 backbones at 64 pixels or what they need, each built once; who changes one changes it back."""

    @cache
    def build(name: str) -> Any:
        model = build_backbone(name, "random", max(BACKBONES[name].smallest, 64), "float32")
        enliven(model.get_layer(name))
        return model

    yield build
    build.cache_clear()


def photos(size: int, count: int = 2) -> Any:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def bare(name: str, size: int) -> Any:
    """The network as `keras.applications` makes it."""
    import keras

    return getattr(keras.applications, BACKBONES[name].constructor)(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )


def enliven(body: Any) -> None:
    """ConvNeXt starts with blocks that add a millionth: now they count."""
    for layer in body.layers:
        if type(layer).__name__ == "LayerScale":
            layer.set_weights([np.random.default_rng(0).uniform(0.5, 1.5, layer.projection_dim)])


def check_against_keras(model: Any, body: Any, name: str) -> None:
    """Compares our network with `body`, which has the same weights, and Keras' own preprocessing."""
    import keras

    constructor = getattr(keras.applications, BACKBONES[name].constructor)
    pixels = photos(model.input_shape[1])
    # It does nothing where the preprocessing is in the network.
    scaled = sys.modules[constructor.__module__].preprocess_input(pixels.astype(np.float32))
    expected = np.asarray(body(scaled, training=False)).mean(axis=(1, 2))
    found = np.asarray(model(pixels, training=False))
    assert found.dtype == np.float32
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()  # two photos, two answers
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# The deep ResNets have the rows of the shallow ones, but for the number of blocks; those that scale themselves are
# compared in the next test.
@pytest.mark.parametrize(
    "name", [name for name in BACKBONES if not name.startswith(("resnet101", "resnet152", *SCALING_THEMSELVES))]
)
def test_scaling_is_that_of_keras_applications(built: Callable[[str], Any], name: str) -> None:
    model = built(name)
    body = bare(name, model.input_shape[1])
    body.set_weights(model.get_layer(name).get_weights())
    check_against_keras(model, body, name)


@pytest.mark.parametrize(
    ("name", "ending"),
    [*((name, ".weights.h5") for name in SCALING_THEMSELVES), ("efficientnetv2b0", ".h5"), ("convnexttiny", ".keras")],
)
def test_weights_of_a_network_that_scales_itself_fit(tmp_path: Path, name: str, ending: str) -> None:
    body = bare(name, 64)
    assert {"Rescaling", "Normalization"} & {type(layer).__name__ for layer in body.layers}
    enliven(body)
    file = tmp_path / f"a{ending}"
    (body.save_weights if ending == ".weights.h5" else body.save)(file)
    check_against_keras(build_backbone(name, str(file), 64, "float32"), body, name)


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in SCALING_THEMSELVES), ("mobilenetv3small", "bfloat16")]
)
def test_a_saved_model_opens_in_plain_keras(
    built: Callable[[str], Any], tmp_path: Path, name: str, precision: str
) -> None:
    import keras

    network = built(name) if precision == "float32" else build_backbone(name, "random", 64, precision)
    depth = network.output_shape[-1]
    model = join(network, build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), 3, 0.5))
    model.get_layer("head").get_layer("logits").kernel.assign(np.random.default_rng(0).normal(size=(depth, 3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.get_layer(name).name == name
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (np.asarray(one(photos(64), training=False)) for one in (model, loaded))
    np.testing.assert_allclose(
        ours, theirs, atol=1e-5 if precision == "float32" else 1e-2
    )  # grouped convolutions are added up in another order


def test_random_weights_do_not_depend_on_the_global_generators(
    built: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    first = built("mobilenetv2").get_weights()
    keras.utils.set_random_seed(99)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    calls = iter(range(10**9))
    monkeypatch.setattr(random, "randint", lambda low, high: next(calls))  # what another thread would do to it
    again = build_backbone("mobilenetv2", "random", 64, "float32").get_weights()
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernels = [value for value in again if value.ndim > 1]
    same = [value for value in kernels if value.shape == kernels[-1].shape]
    assert all(np.ptp(value) > 0 for value in kernels)
    assert len(same) == 1 or not np.array_equal(same[0], same[1])
    for value in kernels:  # Glorot's limit
        receptive = int(np.prod(value.shape[:-2]))
        limit = np.sqrt(6 / (receptive * (value.shape[-2] + value.shape[-1])))
        assert 0.8 * limit < np.abs(value).max() <= limit * (1 + 1e-6)


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet50v2", "convnexttiny"])
def test_batch_normalization_stays_as_it_is(built: Callable[[str], Any], name: str) -> None:
    model = built(name)
    head = build_head(np.zeros(model.output_shape[-1], np.float32), np.ones(model.output_shape[-1], np.float32), 3, 0.5)
    whole = join(model, head)
    before, pixels = model.get_weights(), photos(64)
    answer = np.asarray(model(pixels, training=False))
    for training in (True, False, None):
        np.testing.assert_array_equal(np.asarray(model(pixels, training=training)), answer)
        whole(pixels, training=training)
    assert not model.trainable_variables
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_files_of_every_form(tmp_path: Path, built: Callable[[str], Any]) -> None:
    model = built("mobilenetv2")
    body = model.get_layer("mobilenetv2")
    rng = np.random.default_rng(1)
    before = body.get_weights()
    marked = [value + rng.normal(scale=0.01, size=value.shape).astype(np.float32) ** 2 for value in before]
    head = build_head(np.zeros(1280, np.float32), np.ones(1280, np.float32), 3, 0.5)
    body.set_weights(marked)
    try:
        body.save_weights(tmp_path / "a.weights.h5")
        body.save(tmp_path / "body.keras")
        join(model, head).save(tmp_path / "whole.keras")
        body.save(tmp_path / "legacy.h5")
    finally:
        body.set_weights(before)
    for name in ("a.weights.h5", "legacy.h5", "body.keras", "whole.keras"):
        loaded = build_backbone("mobilenetv2", str(tmp_path / name), 64, "float32")
        for ours, theirs in zip(marked, loaded.get_layer("mobilenetv2").get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def refused(name: str, weights: Path | str, size: int = 96, body: Any = None) -> str:
    with pytest.raises(InputError) as caught:  # noqa: PT012
        if body is None:
            build_backbone(name, str(weights), size, "float32")
        else:
            backbones._load(body, name, str(weights))
    text = str(caught.value)
    assert "\n" not in text
    assert "Example error" not in text  # of Keras', which breaks off at the end of its line
    return text


@pytest.mark.filterwarnings("error:Skipping nested container")
def test_wrong_weights_files_are_refused_in_one_line(tmp_path: Path, built: Callable[[str], Any]) -> None:
    body = built("mobilenetv2").get_layer("mobilenetv2")
    good, whole = tmp_path / "good.weights.h5", tmp_path / "good.keras"
    body.save_weights(good)
    body.save(whole)
    mobile, residual = bare("mobilenetv2", 64), built("resnet50v2").get_layer("resnet50v2")
    before = residual.get_weights()
    for source in (good, whole):
        half = tmp_path / f"half-{source.name}"
        half.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        assert str(half) in refused("mobilenetv2", half, body=mobile)
        assert "ResNet50V2" in refused("resnet50v2", source, body=residual)
    residual.set_weights(before)
    for ending in (".weights.h5", ".h5", ".keras"):
        (tmp_path / f"text{ending}").write_text("not weights\n")
        (tmp_path / f"empty{ending}").write_bytes(b"")
        refused("mobilenetv2", tmp_path / f"text{ending}", body=mobile)
        refused("mobilenetv2", tmp_path / f"empty{ending}", body=mobile)
    assert "there is no file" in refused("mobilenetv2", tmp_path / "missing.weights.h5")
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert ".keras file" in refused("mobilenetv2", tmp_path / "weights.bin")
    refused("mobilenetv2", tmp_path)
    values = body.get_weights()
    body.set_weights([values[0] * np.nan, *values[1:]])
    try:
        body.save_weights(tmp_path / "nan.weights.h5")
    finally:
        body.set_weights(values)
    assert "not finite" in refused("mobilenetv2", tmp_path / "nan.weights.h5", body=mobile)


@pytest.mark.parametrize(("name", "size"), [("inceptionv3", 74), ("mobilenetv2", 31), ("resnet50", 16)])
@pytest.mark.parametrize("weights", ["random", "imagenet"])
def test_a_too_small_image_is_refused_as_such(name: str, size: int, weights: str) -> None:
    text = refused(name, weights, size)
    assert text.startswith(f"--image-size: received {size}, required for {name}")


def test_smallest_sizes_are_those_of_keras() -> None:
    for name, row in BACKBONES.items():
        with pytest.raises(ValueError, match="at least"):
            bare(name, row.smallest - 1)
    assert bare("inceptionv3", 75).output_shape[-1] == 2048


def test_a_failed_download_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def fail(**_: Any) -> None:
        raise Exception("URL fetch failure on https://example.org\nmore")

    monkeypatch.setattr(keras.applications, "MobileNetV2", fail)
    text = refused("mobilenetv2", "imagenet")
    assert "could not be downloaded" in text
    assert "URL fetch failure" in text


def test_real_weights_give_features(shared: Path) -> None:
    from flowers.data import images

    files = sorted((shared / "flower_photos").rglob("*.jpg"))[:: 1200 // 4][:4]
    weights = shared / "weights" / "mobilenet_v2_224_no_top.weights.h5"
    model = build_backbone("mobilenetv2", str(weights), 224, "float32")
    found = np.asarray(model(np.stack([images.decode(file.read_bytes(), 224) for file in files]), training=False))
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= 6).all()  # MobileNetV2 ends in ReLU6
    assert found.std(axis=0).mean() > 0.1
    assert weights_key("mobilenetv2", str(weights)).startswith("file:")


def test_weights_key_changes_with_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    file.write_bytes(b"1")
    first = weights_key("resnet50", str(file))
    file.write_bytes(b"2")
    keys = {first, weights_key("resnet50", str(file)), weights_key("resnet50", "random")}
    assert len(keys | {weights_key("resnet50", "imagenet")}) == 4


@pytest.mark.parametrize(
    ("flags", "precision", "expected"),
    [
        ({"avx2", "avx512f"}, "auto", "float32"),
        ({"avx2", "avx512_bf16"}, "auto", "bfloat16"),
        ({"amx_bf16"}, "auto", "bfloat16"),
        (set(), "auto", "float32"),
        (set(), "bfloat16", "bfloat16"),
        ({"amx_bf16"}, "float32", "float32"),
    ],
)
def test_precision_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str, expected: str
) -> None:
    monkeypatch.setattr(precision_module, "_cpu_flags", lambda: flags)
    found, why = resolve_precision(precision)
    assert found == expected
    assert why
    if precision == "auto" and expected == "bfloat16":
        assert (flags & {"amx_bf16", "avx512_bf16"}).pop() in why


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_precision_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {"compute_capability": capability})
    assert resolve_precision("auto", gpus=1)[0] == expected
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert resolve_precision("auto", gpus=1)[0] == "float32"


def test_arithmetic_is_set_back_after_an_error() -> None:
    import keras

    before = keras.config.dtype_policy().name
    with pytest.raises(RuntimeError), backbones.arithmetic("bfloat16"):  # noqa: PT012
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise RuntimeError
    assert keras.config.dtype_policy().name == before
