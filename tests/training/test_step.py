"""The step against the same thing written out in NumPy and in plain Keras: of a head, and of a tail below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.config import TrainConfig
from flowers.model.classifier import build_head
from flowers.training.step import Batches, Step, Trained

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


def made(options: TrainConfig, kernel: npt.NDArray[np.float32] = KERNEL, microbatches: int = 1) -> Step:
    import tensorflow as tf

    def build() -> Trained:
        return Trained(build_head(MEAN, VARIANCE, CLASSES, options.dropout))

    step = Step(options, tf.distribute.get_strategy(), build, microbatches=microbatches)
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
    single: list[float] = []
    for number in range(5):
        part = {
            name: getattr(whole, name)[number : number + 1] for name in ("inputs", "labels", "weights", "rows", "rates")
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


def test_workers_parts_add_up_to_the_whole() -> None:
    """Of photos, dropout and loss; here each worker is alone, so the gradients are not shared."""
    import tensorflow as tf

    options, whole = config(dropout=0.5, label_smoothing=0.1), batches(rows=5, rate=0)
    parts = []
    for rank in range(2):
        mine = slice(rank * SIZE // 2, (rank + 1) * SIZE // 2)
        step = Step(
            options,
            tf.distribute.get_strategy(),
            lambda: Trained(build_head(MEAN, VARIANCE, CLASSES, 0.5)),
            rank=rank,
            workers=2,
        )
        step.head.get_layer("logits").set_weights([KERNEL, BIAS])
        part = {name: getattr(whole, name)[:, mine] for name in ("inputs", "labels", "weights")}
        parts.append(step.run(Batches(**{**vars(whole), **part}))[0])
    assert sum(parts) == pytest.approx(made(options).run(whole)[0], rel=1e-5)
    assert 0 < parts[1] < parts[0]


def test_what_augmentation_makes_is_trained_on_but_not_validated() -> None:
    """It gets the photos' weights at their classes, and the number of the step in the whole run."""
    import tensorflow as tf

    def augment(inputs: Any, targets: Any, number: Any) -> tuple[Any, Any]:
        mixed = (targets + tf.gather(targets, [1, 0, 3, 2, 5, 4, 7, 6])) / 2
        return inputs * tf.cast(number, tf.float32), mixed

    def build() -> Trained:
        return Trained(build_head(MEAN, VARIANCE, CLASSES, 0.0), augment=augment)

    step = Step(config(label_smoothing=0.1), tf.distribute.get_strategy(), build)
    step.head.get_layer("logits").set_weights([KERNEL, BIAS])
    weights = np.array([0.5, 2, 1, 0.25])[LABELS[0]]
    logits = (3 * FEATURES[0].astype(np.float64) - MEAN) / np.sqrt(VARIANCE) @ KERNEL + BIAS
    logarithms = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.eye(CLASSES)[LABELS[0]] * weights[:, None]
    targets = (targets + targets[[1, 0, 3, 2, 5, 4, 7, 6]]) / 2
    targets = 0.9 * targets + 0.1 * targets.sum(axis=1, keepdims=True) / CLASSES
    assert step.run(batches(weights=weights, first=3, rate=0))[0] == pytest.approx(
        -(targets * logarithms).sum() / SIZE, rel=1e-5
    )
    np.testing.assert_array_equal(step.probabilities(FEATURES[0]), made(config()).probabilities(FEATURES[0]))


# ---- a tail

PICTURES = RNG.normal(size=(5, SIZE, 6, 6, 3)).astype(np.float32)
FRACTIONS = (0.25, 0.5)


def body() -> Any:
    """Two blocks of a convolution and a BatchNormalization each, with statistics and scales of their own."""
    import keras

    rng = np.random.default_rng(5)
    start = flow = keras.Input((6, 6, 3))
    for block in ("one", "two"):
        flow = keras.layers.Conv2D(WIDTH, 3, name=block)(flow)
        flow = keras.layers.BatchNormalization(name=f"{block}_norm")(flow)
        flow = keras.layers.ReLU()(flow)
    model = keras.Model(start, keras.layers.GlobalAveragePooling2D()(flow))
    model.set_weights([abs(rng.normal(size=value.shape)) + 0.1 for value in model.get_weights()])
    for block in ("one", "two"):
        layer = model.get_layer(block)
        layer.set_weights([rng.normal(size=value.shape) / 3 for value in layer.get_weights()])
    return model


def tailed(options: TrainConfig, fractions: tuple[float, ...] = FRACTIONS, microbatches: int = 1) -> Step:
    import tensorflow as tf

    def build() -> Trained:
        below = body()
        below.trainable = False
        groups = [below.get_layer(block).weights for block in ("one", "two")]
        return Trained(
            build_head(MEAN, VARIANCE, CLASSES, options.dropout),
            body=below,
            validation_body=below,
            groups=tuple(zip(fractions, groups, strict=True)),
        )

    step = Step(options, tf.distribute.get_strategy(), build, microbatches=microbatches)
    step.head.get_layer("logits").set_weights([KERNEL, BIAS])
    return step


def pictures(steps: int = 1, **changes: Any) -> Batches:
    return Batches(**{**vars(batches(steps, **changes)), "inputs": PICTURES[:steps]})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_tail_and_its_head_equal_plain_keras(optimizer: str) -> None:
    """Layers marked trainable, BatchNormalization in inference mode, an optimizer for each block."""
    import keras
    import tensorflow as tf

    def theirs() -> Any:
        if optimizer == "sgd":
            return keras.optimizers.SGD(momentum=0.9)
        made = keras.optimizers.AdamW(weight_decay=0.1)
        made.exclude_from_weight_decay(var_names=["bias"])
        return made

    step = tailed(config(optimizer=optimizer, momentum=0.9, weight_decay=0.1))
    below, head = body(), build_head(MEAN, VARIANCE, CLASSES, 0.0)
    for block in ("one", "two"):
        below.get_layer(f"{block}_norm").trainable = False
    head.get_layer("logits").set_weights([KERNEL, BIAS])
    blocks = [
        *((below.get_layer(block).trainable_variables, fraction, theirs()) for block, fraction in
          zip(("one", "two"), FRACTIONS, strict=True)),
        (head.trainable_variables, 1.0, theirs()),
    ]  # fmt: skip
    variables = [*below.trainable_variables, *head.trainable_variables]
    assert len(variables) == 6
    rates = np.linspace(0.02, 0.005, 5).astype(np.float32)
    losses = step.run(Batches(**{**vars(pictures(5)), "rates": rates}))
    for number in range(5):
        with tf.GradientTape() as tape:
            answer = head(below(PICTURES[number], training=False))
            loss = keras.losses.SparseCategoricalCrossentropy()(LABELS[number], answer)
        gradients = tape.gradient(loss, variables)
        for group, fraction, theirs_ in blocks:
            theirs_.learning_rate = rates[number] * fraction
            theirs_.apply(gradients[: len(group)], group)
            gradients = gradients[len(group) :]
        assert losses[number] == pytest.approx(float(loss), rel=1e-4)
    found = step.state()
    ours = [*(found[f"tail:{number}"] for number in range(4)), found["head:0"], found["head:1"]]
    for mine, other in zip(ours, variables, strict=True):
        np.testing.assert_allclose(mine, np.asarray(other), rtol=1e-3, atol=1e-5)
    answer = np.asarray(head(below(PICTURES[0], training=False), training=False))
    np.testing.assert_allclose(step.probabilities(PICTURES[0]), answer, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_batch_normalization_is_left_as_it_is(optimizer: str) -> None:
    step = tailed(config(optimizer=optimizer, momentum=0.9, dropout=0.3))
    norms = [step.trained.body.get_layer(f"{block}_norm") for block in ("one", "two")]
    before = [[np.asarray(value).copy() for value in layer.weights] for layer in norms]
    tail = step.state()
    step.run(pictures(5, rate=0.5))
    step.probabilities(PICTURES[0])
    for layer, values in zip(norms, before, strict=True):
        assert len(values) == 4  # scale, shift, and two statistics
        for variable, value in zip(layer.weights, values, strict=True):
            np.testing.assert_array_equal(np.asarray(variable), value)
    moved = [np.abs(value - tail[name]).max() for name, value in step.state().items() if name.startswith("tail:")]
    assert len(moved) == 4
    assert min(moved) > 0.01


def test_each_block_learns_at_its_fraction_of_the_rate() -> None:
    updates = []
    for fractions in (FRACTIONS, (1.0, 1.0)):
        step = tailed(config(), fractions)
        before = step.state()
        step.run(pictures(rate=0.5))
        after = step.state()
        updates.append({name: after[name] - before[name] for name in after if not name.startswith("optimizer")})
    decayed, plain = updates
    for name, update in plain.items():
        fraction = {"tail:0": 0.25, "tail:1": 0.25, "tail:2": 0.5, "tail:3": 0.5}.get(name, 1.0)
        assert np.abs(update).max() > 1e-3, name
        np.testing.assert_allclose(decayed[name], fraction * update, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_state_and_restore_of_a_tail(optimizer: str) -> None:
    options = config(optimizer=optimizer, momentum=0.9, dropout=0.3)
    step = tailed(options)
    step.run(pictures(steps=3))
    kept = step.state()
    assert {name.split(":")[0] for name in kept} == {"head", "tail", "optimizer"}
    assert [kept[f"tail:{number}"].shape for number in range(4)] == [(3, 3, 3, WIDTH), (WIDTH,), (3, 3, 6, 6), (WIDTH,)]
    after = step.run(pictures(steps=2, first=3))
    other = tailed(options)
    start = other.state()
    other.restore(kept, "head")
    for name, value in other.state().items():
        np.testing.assert_array_equal(value, (kept if name.startswith("head:") else start)[name])
    other.restore(kept)
    np.testing.assert_array_equal(other.run(pictures(steps=2, first=3)), after)
    for name, value in other.state().items():
        np.testing.assert_array_equal(value, step.state()[name])


@pytest.mark.parametrize(("optimizer", "microbatches"), [("adamw", 2), ("adamw", 3), ("sgd", 3), ("sgd", 100)])
def test_photos_go_through_in_microbatches_with_the_same_result(optimizer: str, microbatches: int) -> None:
    """Also where dropout and the penalty take part, the microbatches are uneven and the last batch is short."""
    options = config(optimizer=optimizer, momentum=0.9, dropout=0.4, l2=0.02, label_smoothing=0.1)
    whole, parts = tailed(options), tailed(options, microbatches=microbatches)
    some = pictures(5, rows=5, rate=0.01, weights=np.linspace(0.5, 2, SIZE))
    np.testing.assert_allclose(parts.run(some), whole.run(some), rtol=1e-5)
    for name, value in whole.state().items():
        np.testing.assert_allclose(parts.state()[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_validation_photos_go_through_in_microbatches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = made(config()), made(config(), microbatches=3)
    sizes: list[int] = []
    infer = parts._infer

    def noted(inputs: Any) -> Any:
        sizes.append(len(inputs))
        return infer(inputs)

    monkeypatch.setattr(parts, "_infer", noted)
    np.testing.assert_allclose(parts.probabilities(FEATURES[0]), whole.probabilities(FEATURES[0]), rtol=1e-6)
    assert sizes == [2, 2, 2, 2]  # of 8 photos a step, a third


def test_validation_may_have_another_input_than_training() -> None:
    import tensorflow as tf

    def build() -> Trained:
        below = body()
        return Trained(
            build_head(MEAN, VARIANCE, CLASSES, 0.0),
            body=below,
            groups=((1.0, below.get_layer("two").weights),),
        )

    step = Step(config(), tf.distribute.get_strategy(), build)
    step.head.get_layer("logits").set_weights([KERNEL, BIAS])
    step.run(pictures(2))
    features = np.asarray(step.trained.body(PICTURES[0], training=False))
    expected = np.asarray(step.head(features, training=False))
    np.testing.assert_allclose(step.probabilities(features), expected, rtol=1e-5)
