"""Training the tail from cached outputs is training it from pixels, and is what plain Keras does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.config import TrainConfig
from flowers.model import backbones, classifier
from flowers.plan import Plan
from flowers.training.batches import EpochBatches, epoch_batches
from flowers.training.checkpoints import Checkpoint
from flowers.training.history import History
from flowers.training.inputs import Cached, read_subsets
from flowers.training.loop import Watch, _epoch
from flowers.training.phase import PreparedPhase, Worker, prepare_phase, standard_of
from flowers.training.schedule import learning_rate, phases
from flowers.training.step import Batches
from tests.parity.runs import CLASSES, Arrays, Place, apart, calibrated, drawn, start_of

pytestmark = pytest.mark.networks
SIZE, BATCH, EPOCHS = 64, 8, 3
TRAIN, VALIDATION = 2 * BATCH + 5, 11
FRACTIONS = {"block_15": 0.8**3, "block_16": 0.8**2, "Conv_1": 0.8}
WIDTH = 1280


class Pixels:
    """Photos from the memory, in place of those that are read and decoded again."""

    def __init__(self, photos: npt.NDArray[np.uint8]) -> None:
        self.photos = photos

    def steps(self, order: EpochBatches) -> Iterator[npt.NDArray[np.uint8]]:
        yield self.photos[order.indices]

    def rows(self) -> Iterator[npt.NDArray[np.uint8]]:
        yield self.photos


def planned(folder: Path, precision: str) -> tuple[Place, Plan]:
    photos = drawn(TRAIN, VALIDATION, SIZE)
    weights = str(calibrated(photos.pixels, folder / "mobilenetv2.weights.h5"))
    config = TrainConfig(
        backbone="mobilenetv2",
        weights=weights,
        image_size=SIZE,
        trainable="block_15",
        augment="none",
        batch_size=BATCH,
        epochs=EPOCHS,
        dropout=0.2,
        l2=0.003,
        label_smoothing=0.1,
        warmup_epochs=0.5,
        tail_learning_rate=3e-4,  # at 1e-3 these random weights blow roundings up to 1e-3 of the loss
    )
    network = backbones.build_backbone("mobilenetv2", weights, SIZE, precision)
    place = Place(folder, photos, network)
    return place, place.plan("run", config, precision=precision)


def head_done(plan: Plan) -> Checkpoint:
    """What the first phase leaves: a head that knows something already."""
    train, _ = read_subsets(plan.run, list(CLASSES))
    features = Cached(plan, "pool", ("plain",), train, (-1,)).views[0]
    mean, variance = classifier.standardization(features)
    rng = np.random.default_rng(4)
    arrays: Arrays = {"standardize:mean": mean, "standardize:variance": variance}
    arrays["head:0"] = (rng.normal(size=(WIDTH, 3)) / 99).astype(np.float32)
    arrays["head:1"] = rng.normal(size=3).astype(np.float32) / 9
    return Checkpoint(1, arrays, {})


def trained(plan: Plan, photos: tuple[Pixels, Pixels] | None = None) -> tuple[list[float], list[Any], PreparedPhase]:
    """The loss of each step, the metrics of each epoch, and the phase as prepared; from pixels if they are given."""
    import tensorflow as tf

    subsets, found = read_subsets(plan.run, list(CLASSES)), head_done(plan)
    worker = Worker(0, 1, tf.distribute.get_strategy())
    if photos:
        plan = dataclasses.replace(plan, streamed=True, validation_streamed=True)
    prepared = prepare_phase(plan, phases(plan.config)[1], subsets, standard_of(found) if found else None, 3, worker)
    if photos:
        assert prepared.step.trained.body.input_shape == (None, SIZE, SIZE, 3)
        prepared = dataclasses.replace(prepared, train=photos[0], validation=photos[1])
    else:
        assert prepared.step.trained.body.input_shape == (None, 2, 2, 160)
    prepared.step.restore(found.arrays, "head")
    losses: list[float] = []
    run = prepared.step.run

    def noted(batches: Batches) -> Any:
        losses.extend(run(batches))
        return np.array(losses[-len(batches.rows) :])

    prepared.step.run = noted  # type: ignore[method-assign]
    history, lines = History(plan.run, plan.config), []
    for _ in range(EPOCHS):
        epoch = _epoch(plan, prepared, history, subsets, list(CLASSES), worker, Watch())
        assert epoch is not None
        lines.append(epoch[0])
        history.add(epoch[0])
    return losses, lines, prepared


def plain_keras(plan: Plan, photos: npt.NDArray[np.uint8]) -> tuple[list[float], Arrays]:
    """The same written out: layers marked trainable, a tape, an optimizer for each rate; real photos only."""
    import keras
    import tensorflow as tf

    config, found = plan.config, head_done(plan).arrays
    network = backbones.build_backbone("mobilenetv2", config.weights, SIZE, plan.precision)
    body = network.get_layer("mobilenetv2")
    body.trainable = True
    for layer in body.layers:
        layer.trainable = layer.name.startswith(tuple(FRACTIONS)) and not isinstance(
            layer, keras.layers.BatchNormalization
        )
    dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(config.l2), dtype="float32")
    dense.build((None, WIDTH))
    dense.set_weights([found["head:0"], found["head:1"]])
    groups = [
        (
            fraction,
            [
                variable
                for variable in network.trainable_variables
                if f"{block}/" in variable.path or f"{block}_" in variable.path
            ],
        )
        for block, fraction in FRACTIONS.items()
    ]
    assert sum(len(group) for _, group in groups) == len(network.trainable_variables)
    groups.append((1.0, dense.trainable_variables))
    variables = [variable for _, group in groups for variable in group]
    optimizers = []
    for _ in groups:
        optimizers.append(keras.optimizers.AdamW(weight_decay=config.weight_decay))
        optimizers[-1].exclude_from_weight_decay(var_names=["bias"])
    loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing)
    labels = read_subsets(plan.run, list(CLASSES))[0].labels

    @tf.function
    def forward(pixels: Any, targets: Any, kept: Any) -> Any:
        with tf.GradientTape() as tape:
            features = network(pixels, training=False)
            features = (features - found["standardize:mean"]) / np.sqrt(found["standardize:variance"])
            loss = loss_of(targets, dense(features * kept)) + tf.add_n(dense.losses)
        return loss, tape.gradient(loss, variables)

    losses, number, per_epoch = [], 0, -(-TRAIN // BATCH)
    for epoch in range(EPOCHS):
        order = epoch_batches(config, epoch, TRAIN, 0, 1)
        for indices, real in zip(order.indices, order.real, strict=True):
            kept = tf.random.stateless_uniform((BATCH, WIDTH), seed=[config.seed, number]) >= config.dropout
            mask = tf.cast(kept, tf.float32)[real] / (1 - config.dropout)
            pixels, targets = photos[indices[real]], np.eye(3, dtype=np.float32)[labels[indices[real]]]
            loss, gradients = forward(tf.constant(pixels), tf.constant(targets), mask)
            rate = learning_rate(config, phases(config)[1], number, per_epoch)
            for (fraction, group), optimizer in zip(groups, optimizers, strict=True):
                optimizer.learning_rate = rate * fraction
                optimizer.apply(gradients[: len(group)], group)
                gradients = gradients[len(group) :]
            losses.append(float(loss))
            number += 1
    names = [f"tail:{number}" for number in range(len(variables) - 2)] + ["head:0", "head:1"]
    return losses, dict(zip(names, map(np.asarray, variables), strict=True))


def check_losses(ours: list[float], theirs: list[float], limit: float) -> None:
    assert len(ours) == len(theirs) == EPOCHS * 3
    np.testing.assert_allclose(ours, theirs, rtol=limit)


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_cached_outputs_train_what_pixels_train(tmp_path: Path, precision: str, limit: float) -> None:
    place, plan = planned(tmp_path, precision)
    photos = Pixels(place.photos.of("train")), Pixels(place.photos.of("validation"))
    losses, lines, prepared = trained(plan)
    expected, others, other = trained(plan, photos)
    assert np.ptp(losses) > 0.1  # something is learned, so equal numbers mean something
    check_losses(losses, expected, limit)
    for mine, line in zip(lines, others, strict=True):
        for name in ("loss", "val_log_loss", "val_accuracy"):
            assert mine[name] == pytest.approx(line[name], rel=limit), name
    start = start_of(plan, place.network) | head_done(plan).arrays
    assert apart(prepared.step.state(), other.step.state(), start) < {"float32": 1e-3, "bfloat16": 0.1}[precision]
    if precision == "float32":  # elsewhere two graphs of the same steps are rounded differently
        expected, weights = plain_keras(plan, photos[0].photos)
        check_losses(losses, expected, limit)
        assert apart(prepared.step.state(), weights, start) < 1e-3
