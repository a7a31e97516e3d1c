"""The step against the same thing written out in NumPy and in plain Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.config import TrainConfig
from flowers.model.classifier import build_head
from flowers.training.step import Batches, HeadStep

WIDTH, CLASSES, SIZE = 6, 4, 8
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=WIDTH).astype(np.float32)
VARIANCE = RNG.uniform(0.5, 2, WIDTH).astype(np.float32)
FEATURES = RNG.normal(size=(5, SIZE, WIDTH)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (5, SIZE)).astype(np.int32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)


def config(**changes: Any) -> TrainConfig:
    plain = {"batch_size": SIZE, "dropout": 0.0, "label_smoothing": 0.0, "l2": 0.0, "optimizer": "sgd", "momentum": 0.0}
    return TrainConfig(**{**plain, **changes})


def made(options: TrainConfig, kernel: npt.NDArray[np.float32] = KERNEL) -> HeadStep:
    import tensorflow as tf

    step = HeadStep(
        options, tf.distribute.get_strategy(), lambda: build_head(MEAN, VARIANCE, CLASSES, options.dropout), 0
    )
    step.head.get_layer("logits").set_weights([kernel, BIAS])
    return step


def batches(steps: int = 1, rows: int = SIZE, weights: Any = None, rate: float = 0.1, first: int = 0) -> Batches:
    full = np.ones((steps, SIZE), np.float32) if weights is None else np.tile(weights, (steps, 1)).astype(np.float32)
    full[-1, rows:] = 0
    real = np.full(steps, SIZE, np.float32)
    real[-1] = rows
    return Batches(FEATURES[:steps], LABELS[:steps], full, real, np.full(steps, rate, np.float32), first)


def by_hand(
    kernel: Any, bias: Any, features: Any, labels: Any, weights: Any, rows: int, smoothing: float, l2: float
) -> tuple[float, Any, Any]:
    """Loss and gradients of one batch, float64."""
    inputs = (features.astype(np.float64) - MEAN) / np.sqrt(VARIANCE.astype(np.float64))
    logits = inputs @ kernel + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    targets = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    losses = -(targets * np.log(probabilities)).sum(axis=1)
    error = (probabilities - targets) * weights[:, None] / rows
    return (
        float((losses * weights).sum() / rows + l2 * (kernel**2).sum()),
        inputs.T @ error + 2 * l2 * kernel,
        error.sum(axis=0),
    )


CASES = [
    {"label_smoothing": 0.0, "l2": 0.0, "rows": SIZE, "weighted": False},
    {"label_smoothing": 0.2, "l2": 0.0, "rows": SIZE, "weighted": False},
    {"label_smoothing": 0.1, "l2": 0.05, "rows": SIZE, "weighted": True},
    {"label_smoothing": 0.1, "l2": 0.05, "rows": 3, "weighted": True},
    {"label_smoothing": 0.1, "l2": 0.0, "rows": 1, "weighted": False},
]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_sgd_step_equal_the_hand_computation(case: dict[str, Any]) -> None:
    rows, smoothing, l2 = case["rows"], case["label_smoothing"], case["l2"]
    weights = np.array([0.5, 2, 1, 0.25])[LABELS[0]] if case["weighted"] else np.ones(SIZE)
    step = made(config(label_smoothing=smoothing, l2=l2))
    loss = step.run(batches(rows=rows, weights=weights))
    expected, kernel, bias = by_hand(
        KERNEL.astype(np.float64), BIAS, FEATURES[0][:rows], LABELS[0][:rows], weights[:rows], rows, smoothing, l2
    )
    assert loss.shape == (1,)
    assert loss[0] == pytest.approx(expected, rel=1e-5)
    found = step.state()
    np.testing.assert_allclose(found["head:0"], KERNEL - 0.1 * kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["head:1"], BIAS - 0.1 * bias, rtol=1e-5, atol=1e-6)


def test_loss_equals_that_of_keras() -> None:
    import keras

    weights = np.array([0.5, 2, 1, 0.25], np.float32)[LABELS[0]]
    step = made(config(label_smoothing=0.1, l2=0.03))
    probabilities = step.probabilities(FEATURES[0])
    expected = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(
        np.eye(CLASSES, dtype=np.float32)[LABELS[0]], probabilities, sample_weight=weights
    ) + keras.regularizers.L2(0.03)(KERNEL)
    assert step.run(batches(weights=weights))[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_many_steps_equal_plain_keras(optimizer: str) -> None:
    import keras
    import tensorflow as tf

    step = made(config(optimizer=optimizer, momentum=0.9, weight_decay=0.1))
    plain = build_head(MEAN, VARIANCE, CLASSES, 0.0)
    plain.get_layer("logits").set_weights([KERNEL, BIAS])
    theirs = keras.optimizers.SGD(momentum=0.9)
    if optimizer == "adamw":
        theirs = keras.optimizers.AdamW(weight_decay=0.1)
        theirs.exclude_from_weight_decay(var_names=["bias"])
    rates = np.linspace(0.2, 0.05, 5).astype(np.float32)
    made_batches = batches(steps=5)
    losses = step.run(Batches(**{**vars(made_batches), "rates": rates}))
    for number in range(5):
        theirs.learning_rate = rates[number]
        with tf.GradientTape() as tape:
            loss = keras.losses.SparseCategoricalCrossentropy()(LABELS[number], plain(FEATURES[number]))
        theirs.apply(tape.gradient(loss, plain.trainable_variables), plain.trainable_variables)
        assert losses[number] == pytest.approx(float(loss), rel=1e-4)
    np.testing.assert_allclose(step.state()["head:0"], plain.get_layer("logits").get_weights()[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step.state()["head:1"], plain.get_layer("logits").get_weights()[1], rtol=1e-4, atol=1e-5)


def test_one_call_of_many_steps_equals_many_calls() -> None:
    together, apart = (made(config(dropout=0.4, optimizer="adamw")) for _ in range(2))
    whole = batches(steps=5, first=7)
    losses = together.run(whole)
    single = []
    for number in range(5):
        part = {
            name: getattr(whole, name)[number : number + 1]
            for name in ("features", "labels", "weights", "rows", "rates")
        }
        single.extend(apart.run(Batches(**part, first=7 + number)))
    np.testing.assert_array_equal(losses, single)
    for name, value in together.state().items():
        np.testing.assert_array_equal(apart.state()[name], value)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    def loss(seed: int = 0, first: int = 0, before: int = 0) -> float:
        step = made(config(dropout=0.5, seed=seed))
        for number in range(before):
            step.run(batches(first=100 + number, rate=0))
        return float(step.run(batches(first=first, rate=0))[0])

    assert loss() == loss() == loss(before=3)
    assert len({loss(), loss(seed=1), loss(first=1), loss(seed=1, first=1)}) == 4
    assert loss(seed=2**31 - 1) != loss()


def test_dropout_scales_what_it_keeps() -> None:
    import tensorflow as tf

    kept = tf.random.stateless_uniform((SIZE, WIDTH), seed=[0, 5]) >= 0.25
    mask = kept.numpy() / 0.75
    inputs = (FEATURES[0].astype(np.float64) - MEAN) / np.sqrt(VARIANCE) * mask
    logits = inputs @ KERNEL + BIAS
    expected = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(SIZE), LABELS[0]]).mean()
    assert made(config(dropout=0.25)).run(batches(first=5))[0] == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_drop_out() -> None:
    step = made(config(dropout=0.9))
    found = step.probabilities(np.concatenate([FEATURES[0]] * 200))
    logits = (FEATURES[0] - MEAN) / np.sqrt(VARIANCE) @ KERNEL + BIAS
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.concatenate([expected] * 200), rtol=1e-4)
    assert step.probabilities(FEATURES[0][:0]).shape == (0, CLASSES)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_state_and_restore(optimizer: str) -> None:
    options = config(optimizer=optimizer, momentum=0.9, dropout=0.3)
    step = made(options)
    step.run(batches(steps=3))
    kept = step.state()
    after = step.run(batches(steps=2, first=3))
    assert any(not np.array_equal(kept[name], value) for name, value in step.state().items())  # a copy, not a view
    other = made(options, kernel=np.zeros_like(KERNEL))
    other.restore(kept)
    for name, value in other.state().items():
        np.testing.assert_array_equal(value, kept[name])
        assert value.dtype == kept[name].dtype
    np.testing.assert_array_equal(other.run(batches(steps=2, first=3)), after)
    for name, value in other.state().items():
        np.testing.assert_array_equal(value, step.state()[name])


def test_decay_spares_the_bias() -> None:
    options = config(optimizer="adamw", weight_decay=0.5)
    step = made(options)
    step.run(batches(weights=np.zeros(SIZE)))  # no gradient: decay alone
    np.testing.assert_allclose(step.state()["head:0"], KERNEL * (1 - 0.1 * 0.5), rtol=1e-5)
    np.testing.assert_array_equal(step.state()["head:1"], BIAS)


def test_total_of_one_worker_is_itself() -> None:
    values = np.array([1.5, 2**53 - 1.0, 0.0])
    np.testing.assert_array_equal(made(config()).total(values), values)
