"""The head and the saved classifier: plain numbers, plain Keras."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers.model.backbones import build_backbone
from flowers.model.classifier import build_head, join, standardization, weights_sha256


def test_standardization_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(5000, 7)) * [1, 2, 3, 0.1, 5, 1, 1] + [0, 100, -3, 7, 0, 0, 1]).astype(np.float32)
    mean, variance = standardization(features)
    exact = features.astype(np.float64)
    assert (mean.dtype, variance.dtype) == (np.dtype(np.float32), np.dtype(np.float32))
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
    floor = 0.01 * exact.var(axis=0).mean() + 1e-14
    np.testing.assert_allclose(variance, exact.var(axis=0) + floor, rtol=1e-6)


def test_standardization_over_several_views_is_that_of_all_their_rows() -> None:
    rng = np.random.default_rng(0)
    views = [(rng.normal(size=(5000, 4)) * [1, 2, 3, 0.1] + [0, 9, -3, 7]).astype(np.float32) for _ in range(2)]
    views[1] += 5
    for found, wanted in zip(standardization(*views), standardization(np.concatenate(views)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for found, wanted in zip(standardization(views[0], views[0]), standardization(views[0]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_standardization_of_photos_that_workers_share_is_that_of_all() -> None:
    features = (np.random.default_rng(0).normal(size=(500, 4)) * [1, 2, 3, 0.1] + [0, 9, -3, 7]).astype(np.float32)
    sums: list[Any] = []

    def noted(values: Any) -> Any:
        sums.append(values)
        return values

    for part in (features[:200], features[200:], features[:0]):
        standardization(part, part + 5, total=noted)
    found = standardization(features[:0], features[:0], total=lambda _: np.sum(sums, axis=0))
    for ours, wanted in zip(found, standardization(features, features + 5), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_a_constant_feature_is_not_blown_up() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    features[:, 2] = 1234.5678
    _, variance = standardization(features)
    assert variance[2] == pytest.approx(0.01 * features.astype(np.float64).var(axis=0).mean(), rel=0.1)
    assert (standardization(np.full((10, 3), 7, np.float32))[1] > 0).all()
    assert np.isfinite(standardization(features[:1])[1]).all()


def test_the_head_standardizes_and_gives_probabilities() -> None:
    rng = np.random.default_rng(1)
    mean, variance = rng.normal(size=6).astype(np.float32), rng.uniform(0.5, 2, 6).astype(np.float32)
    head = build_head(mean, variance, 4, 0.5)
    features = rng.normal(size=(9, 6)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(head(features)), 0.25, atol=1e-7)  # it starts at zero
    kernel, bias = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    head.get_layer("logits").set_weights([kernel, bias])
    found = np.asarray(head(features, training=False))
    logits = (features - mean) / np.sqrt(variance) @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(head.trainable_variables) == 2


READER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flowers", "jobs", "serving"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
try:
    import flowers
except ImportError:
    pass
else:
    raise SystemExit("flowers can be imported")
import keras, numpy as np
model = keras.saving.load_model("model.keras")
print(model.inputs[0].dtype)
np.save("answer.npy", np.asarray(model(np.load("pixels.npy"), training=False)))
"""


@pytest.mark.networks
def test_the_saved_classifier_needs_keras_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    frozen = build_backbone("resnet50", "random", 64, "bfloat16")  # the most layers of our own around it
    head = build_head(*standardization(np.asarray(frozen(pixels))), 3, 0.2)
    head.get_layer("logits").set_weights([rng.normal(size=(2048, 3)) / 45, rng.normal(size=3)])
    model = join(frozen, head)
    model.save(tmp_path / "model.keras")
    expected = np.asarray(model(pixels, training=False))
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["uint8"]
    answer = np.load(tmp_path / "answer.npy")
    assert answer.dtype == np.float32
    assert expected.max() < 0.999
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)


def test_the_hash_of_the_weights_sees_every_change() -> None:
    def made(value: float) -> Any:
        head = build_head(np.zeros(3, np.float32), np.ones(3, np.float32), 2, 0.1)
        kernel = np.zeros((3, 2), np.float32)
        kernel[2, 1] = value
        head.get_layer("logits").set_weights([kernel, np.zeros(2, np.float32)])
        return head

    assert (
        weights_sha256(made(0.5))
        == weights_sha256(made(0.5))
        != weights_sha256(made(np.nextafter(np.float32(0.5), np.float32(1))))
    )
