"""A phase made ready: what is trained and at which rate, what stays as it is, and what it is fed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers.config import TAIL_SMOOTHING, TrainConfig
from flowers.evaluation.metrics import Counts
from flowers.model import backbones, classifier, cuts
from flowers.model.augmentation import Augmenter
from flowers.plan import Plan
from flowers.training import failures
from flowers.training.batches import epoch_batches
from flowers.training.checkpoints import Checkpoint
from flowers.training.inputs import Cached, Streamed, Subset, read_subsets
from flowers.training.phase import PreparedPhase, Worker, prepare_phase, standard_of
from flowers.training.schedule import phases
from flowers.training.step import Batches
from tests.parity.runs import CLASSES, TINY, Place, drawn, tiny_network

WIDTH = 8
STANDARD = {
    "standardize:mean": np.linspace(0.1, 0.8, WIDTH, dtype=np.float32),
    "standardize:variance": np.linspace(0.5, 1.2, WIDTH, dtype=np.float32),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("runs"), drawn(41, 17), tiny_network("mobilenetv2", "", 32, "float32"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**TINY, "batch_size": 8, **changes})


def made(plan: Plan, name: str, found: Checkpoint | None = None, rank: int = 0, workers: int = 1) -> PreparedPhase:
    import tensorflow as tf

    (phase,) = (phase for phase in phases(plan.config) if phase.name == name)
    worker = Worker(rank, workers, tf.distribute.get_strategy())
    return prepare_phase(
        plan, phase, read_subsets(plan.run, list(CLASSES)), standard_of(found) if found else None, 3, worker
    )


def head_done() -> Checkpoint:
    return Checkpoint(2, STANDARD, {})


def train(prepared: PreparedPhase, subset: Subset, epochs: int = 1, rate: float = 0.1) -> list[float]:
    """Some epochs at one rate; returns the losses."""
    losses: list[float] = []
    for epoch in range(epochs):
        order = epoch_batches(prepared.step.config, epoch, len(subset.labels), 0, 1)
        for number, inputs in enumerate(prepared.train.steps(order)):
            assert number == 0
            batches = Batches(
                inputs=inputs,
                labels=subset.labels[order.indices],
                weights=order.real.astype(np.float32),
                rows=order.rows,
                rates=np.full(len(order.rows), rate, np.float32),
                first=len(losses),
            )
            losses.extend(prepared.step.run(batches).tolist())
    return losses


# ---- the head


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_the_head_is_fed_with_the_pooled_features_of_every_view(place: Place, augment: str) -> None:
    plan = place.plan("run", config(trainable="head", augment=augment))
    prepared = made(plan, "head")
    assert isinstance(prepared.train, Cached)
    assert isinstance(prepared.validation, Cached)
    pixels = place.photos.of("train")
    views = [pixels] if augment == "none" else [pixels, pixels[:, :, ::-1]]
    features = [np.asarray(place.network(view, training=False)) for view in views]
    assert len(prepared.train.views) == len(views)
    for found, wanted in zip(prepared.train.views, features, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    mean, variance = classifier.standardization(*features)
    np.testing.assert_allclose(prepared.standard[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prepared.standard[1], variance, rtol=1e-3, atol=1e-5)
    assert [view.shape for view in prepared.validation.views] == [(17, WIDTH)]
    assert {name.split(":")[0] for name in prepared.step.variables()} == {"head", "optimizer"}
    assert prepared.step.trained.body is None


@pytest.mark.parametrize("name", ["head", "tail"])
def test_a_resumed_phase_keeps_its_standardization(place: Place, name: str) -> None:
    prepared = made(place.plan("run", config()), name, head_done())
    layer = prepared.step.head.get_layer("standardize")
    for found in (prepared.standard, (layer.mean, layer.variance)):
        np.testing.assert_array_equal(np.asarray(found[0]).ravel(), STANDARD["standardize:mean"])
        np.testing.assert_array_equal(np.asarray(found[1]).ravel(), STANDARD["standardize:variance"])
    arrays = prepared.arrays(Counts.of(np.array([0, 1]), np.eye(3)[[0, 2]]))
    np.testing.assert_array_equal(arrays["standardize:mean"], STANDARD["standardize:mean"])
    np.testing.assert_array_equal(arrays["standardize:variance"], STANDARD["standardize:variance"])
    assert set(arrays) == set(prepared.step.state()) | set(STANDARD) | {"validation"}
    assert Counts.from_vector(arrays["validation"], 3).to_vector().tolist() == arrays["validation"].tolist()


# ---- the tail


@pytest.mark.parametrize(
    ("given", "views", "smoothing"),
    [({}, [1, 2], [0, TAIL_SMOOTHING]), ({"augment": "flip", "label_smoothing": 0.1}, [2, 2], [0.1, 0.1])],
)
def test_what_was_not_asked_for_is_the_tails_alone(
    place: Place, given: dict[str, Any], views: list[int], smoothing: list[float]
) -> None:
    """So the head is the one that `--trainable head` gives."""
    plan = place.plan("run", config(**given))
    prepared = [made(plan, "head"), made(plan, "tail", head_done())]
    assert [len(phase.train.views) for phase in prepared if isinstance(phase.train, Cached)] == views
    assert [phase.step.config.label_smoothing for phase in prepared] == smoothing


def test_the_tail_needs_a_head(place: Place) -> None:
    with pytest.raises(ValueError, match="after the head"):
        made(place.plan("run", config()), "tail")


def test_blocks_further_from_the_head_learn_slower(place: Place) -> None:
    prepared = made(place.plan("run", config(layer_decay=0.5)), "tail", head_done())
    fractions = [fraction for fraction, _ in prepared.step.trained.groups]
    assert fractions == [0.25, 0.5]
    shapes = [[tuple(variable.shape) for variable in group] for _, group in prepared.step.trained.groups]
    assert shapes == [[(3, 3, 4, 6), (6,)], [(3, 3, 6, WIDTH), (WIDTH,)]]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("augment", ["none", "flip", "standard", "strong"])
def test_augmentation_is_the_steps_task_where_it_is_random(place: Place, augment: str, workers: int) -> None:
    streamed = augment in ("standard", "strong")
    plan = place.plan("run", config(augment=augment, seed=7), streamed=streamed)
    found = made(plan, "tail", head_done(), workers - 1, workers).step.trained.augment
    if not streamed:
        assert found is None
        return
    assert isinstance(found, Augmenter)
    assert (found.kind, found.size, found.batch_size, found.seed) == (augment, 32, 8, 7)
    assert found.part == (slice(0, 8) if workers == 1 else slice(4, 8))


@pytest.mark.parametrize(("streamed", "validation"), [(False, False), (True, False), (True, True)])
def test_streamed_photos_go_through_the_whole_network(place: Place, streamed: bool, validation: bool) -> None:
    """Cached ones through the part above the cut; both share their layers, so validation sees what was trained."""
    place.plan("run", config())  # fills the caches
    plan = place.plan("run", config(), streamed=streamed, validation_streamed=validation)
    prepared = made(plan, "tail", head_done())
    assert isinstance(prepared.train, Streamed if streamed else Cached)
    assert isinstance(prepared.validation, Streamed if validation else Cached)
    trained = prepared.step.trained
    cut, pixels = (None, 16, 16, 4), (None, 32, 32, 3)
    assert trained.body.input_shape == (pixels if streamed else cut)
    assert trained.validation_body.input_shape == (pixels if validation else cut)
    for _, group in trained.groups:
        for variable in group:
            variable.assign(variable * 1.5)
    photos = place.photos.of("validation")
    rows = photos if validation else next(prepared.validation.rows())
    network = tiny_network("mobilenetv2", "", 32, "float32")
    for block in cuts.trained_variables(network, "mobilenetv2", plan.cut):
        for variable in block:
            variable.assign(variable * 1.5)
    prepared.step.head.get_layer("logits").set_weights([np.eye(WIDTH, 3), np.zeros(3)])
    wanted = prepared.step.head(network(photos, training=False), training=False)
    np.testing.assert_allclose(prepared.step.probabilities(rows), np.asarray(wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("workers", "nodes", "cpus"), [(1, 1, 1.0), (2, 1, 0.0), (1, 2, 0.0)])
def test_readers_do_not_wait_for_cpus_that_workers_hold(place: Place, workers: int, nodes: int, cpus: float) -> None:
    plan = place.plan("run", config(), streamed=True, validation_streamed=True, workers=workers, nodes=nodes)
    prepared = made(plan, "tail", head_done(), 0, workers)
    for inputs in (prepared.train, prepared.validation):
        assert isinstance(inputs, Streamed)
        assert inputs._cpus == cpus


def test_microbatches_noted_by_an_earlier_attempt_are_taken(place: Place) -> None:
    plan = place.plan("microbatches", config(auto_batch=True))
    assert made(plan, "tail", head_done()).step.microbatches == 1
    failures.out_of_memory(plan, 1)
    assert made(plan, "tail", head_done()).step.microbatches == 2
    assert made(plan, "head").step.microbatches == 2


def test_the_network_starts_from_the_weights_of_the_plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the path in the options, which means something else in the folder of a worker."""
    asked: list[tuple[Any, ...]] = []

    def build(*arguments: Any) -> Any:
        asked.append(arguments)
        return tiny_network(*arguments)

    monkeypatch.setattr(backbones, "build_backbone", build)
    plan = place.plan("run", config(), weights="/weights/here.weights.h5", precision="float32")
    made(plan, "tail", head_done())
    assert asked == [("mobilenetv2", "/weights/here.weights.h5", 32, "float32")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_trained_is_float32_under_every_precision(place: Place, precision: str) -> None:
    network = tiny_network("mobilenetv2", "", 32, precision)
    plan = Place(place.folder, place.photos, network).plan("run", config(), precision=precision)
    prepared = made(plan, "tail", head_done())
    assert isinstance(prepared.train, Cached)
    assert prepared.train.views[0].dtype.name == precision
    losses = train(prepared, read_subsets(plan.run, list(CLASSES))[0], 3, rate=0.01)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) < 1.2
    assert {array.dtype.kind for array in prepared.arrays(Counts.zero(3)).values()} <= set("fi")
    assert {array.dtype.name for name, array in prepared.step.state().items() if "optimizer" not in name} == {"float32"}
    assert prepared.step.probabilities(next(prepared.validation.rows())).dtype == np.float32


@pytest.mark.networks
def test_nothing_but_the_tail_of_a_real_network_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a high rate: BatchNormalization keeps its statistics and its scale, and what lies below the cut stays."""
    monkeypatch.undo()
    kept: list[Any] = []
    build = backbones.build_backbone

    def noted(*arguments: Any) -> Any:
        kept.append(build(*arguments))
        return kept[-1]

    monkeypatch.setattr(backbones, "build_backbone", noted)
    network = build("resnet50v2", "random", 32, "float32")
    options = {"backbone": "resnet50v2", "trainable": "stage5", "weights": "random", "image_size": 32}
    place = Place(tmp_path, drawn(24, 5), network)
    plan = place.plan("run", config(**options))
    ones = np.ones(2048, np.float32)
    prepared = made(plan, "tail", Checkpoint(1, {"standardize:mean": 0 * ones, "standardize:variance": ones}, {}))
    (used,) = kept
    trained = {id(variable) for _, group in prepared.step.trained.groups for variable in group}
    before = {id(variable): np.asarray(variable).copy() for variable in used.weights}
    losses = train(prepared, read_subsets(plan.run, list(CLASSES))[0], 1, rate=0.05)
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    prepared.step.probabilities(next(prepared.validation.rows()))
    assert len(before) - len(trained) > 200
    for variable in used.weights:
        now, was = np.asarray(variable), before[id(variable)]
        if id(variable) in trained:
            assert not np.array_equal(now, was), variable.path
        else:
            assert now.tobytes() == was.tobytes(), variable.path
    names = {variable.path.split("/")[-2].rsplit("_", 2)[0] for variable in used.weights if id(variable) in trained}
    assert names == {"conv5_block1", "conv5_block2", "conv5_block3"}
