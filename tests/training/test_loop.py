"""The loop under Ray's trainer in this process: two phases, going on, ending, and what it learns."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers.config import TrainConfig
from flowers.errors import TrainingDiverged
from flowers.evaluation.metrics import Counts, summarize
from flowers.features.cache import FeatureCache
from flowers.model import backbones, classifier, cuts
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import checkpoints, inputs, loop, trainer
from flowers.training.batches import class_weights
from flowers.training.history import History
from flowers.training.inner import read_outcome
from flowers.training.inputs import Cached, read_subsets
from flowers.training.loop import _conclude
from flowers.training.pace import Pace
from flowers.training.phase import Worker
from flowers.training.step import Batches, Step
from tests.parity.runs import CLASSES, TINY, Place, check_same_state, drawn, fit, kept, lines_of, newest, tiny_network

TRAIN, VALIDATION, SIZE = 101, 37, 16
STEPS = 7  # an epoch
WIDTH = 8  # of the pooled features


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("filled"), drawn(TRAIN, VALIDATION), tiny_network("mobilenetv2", "", 32, ""))
    for config in (tail(), small()):
        place.plan("run", config)
    return place


@pytest.fixture(scope="module")
def whole(filled: Place) -> Callable[[str], Plan]:
    """The run that nothing happened to, with an optimizer: trained once."""

    @cache
    def run(optimizer: str) -> Plan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backbones, "build_backbone", tiny_network)
            return fitted(filled, optimizer, tail(optimizer=optimizer))

    return run


@pytest.fixture
def here(tmp_path: Path, filled: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Runs of photos whose outputs are in the caches; the tail is that of a tiny network."""
    monkeypatch.setattr(backbones, "build_backbone", tiny_network)
    shutil.copytree(filled.folder / "cache", tmp_path / "cache")
    return Place(tmp_path, filled.photos, filled.network)


def head(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{**TINY, "trainable": "head", "epochs": 6, "batch_size": SIZE, "learning_rate": 0.02, **changes}
    )


def tail(**changes: Any) -> TrainConfig:
    rates = {"learning_rate": 0.02, "tail_learning_rate": 0.004}
    return TrainConfig(**{**TINY, "head_epochs": 2, "epochs": 3, "batch_size": SIZE, **rates, **changes})


def small(**changes: Any) -> TrainConfig:
    """One block and the plainest optimizer, where these are not what is tested: half of TensorFlow's graph."""
    return tail(trainable="block_16", optimizer="sgd", **changes)


def fitted(place: Place, name: str, config: TrainConfig, **changes: Any) -> Plan:
    plan = place.plan(name, config, **changes)
    assert fit(plan) == []
    return plan


# ---- what is learned


def test_it_learns_what_can_be_learned(here: Place) -> None:
    plan = fitted(here, "run", head())
    lines = lines_of(plan)
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    assert {line["phase"] for line in lines} == {"head"}
    assert lines[-1]["val_accuracy"] > 0.95
    assert lines[-1]["val_macro_accuracy"] > 0.95
    assert lines[-1]["val_log_loss"] < lines[0]["val_log_loss"]
    assert lines[-1]["loss"] < lines[0]["loss"] < np.log(3) + 0.05
    assert newest(plan).state["lines"] == lines
    best, last = trainer.best(plan.run)
    assert last.epoch == 6
    assert lines[best.epoch - 1]["val_log_loss"] == min(line["val_log_loss"] for line in lines)
    assert [best.arrays[f"head:{number}"].shape for number in range(2)] == [(WIDTH, 3), (3,)]
    assert not [name for name in best.arrays if name.startswith("tail")]


def test_the_tail_follows_the_head(here: Place, whole: Callable[[str], Plan]) -> None:
    plan = whole("adamw")
    lines = lines_of(plan)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["phase"] for line in lines] == ["head", "head", "tail", "tail", "tail"]
    assert lines[-1]["loss"] < lines[2]["loss"] < lines[1]["loss"] + 0.05
    assert lines[-1]["val_log_loss"] < lines[1]["val_log_loss"]
    assert max(line["learning_rate"] for line in lines[:2]) > 0.004 > lines[-1]["learning_rate"] > 0
    arrays = newest(plan).arrays
    shapes = [arrays[f"tail:{number}"].shape for number in range(4)]
    assert shapes == [(3, 3, 4, 6), (6,), (3, 3, 6, WIDTH), (WIDTH,)]
    blocks = cuts.trained_variables(here.network, "mobilenetv2", plan.cut)
    start = [np.asarray(variable) for block in blocks for variable in block]
    for number, value in enumerate(start):
        assert np.abs(arrays[f"tail:{number}"] - value).max() > 1e-3


@pytest.mark.parametrize("best", [1, 2])
def test_the_tail_starts_from_the_best_head(here: Place, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    """Not from the last one, and with the optimizer anew."""
    starts: list[dict[str, Any]] = []
    run, add = Step.run, History.add

    def noted(self: Step, batches: Batches) -> Any:
        if self.trained.body is not None and not starts:
            starts.append(self.state())
        return run(self, batches)

    def judged(self: History, line: dict[str, Any]) -> None:
        add(self, {**line, "val_log_loss": 0.5 if len(self.lines) + 1 == best else 0.9})

    monkeypatch.setattr(Step, "run", noted)
    monkeypatch.setattr(History, "add", judged)
    plan = fitted(here, "run", small(epochs=1))
    head_arrays = checkpoints.load(checkpoints.uri_of(plan.run.checkpoints, best)).arrays
    other = [epoch for epoch in kept(plan) if epoch < 3 and epoch != best]
    for number in range(2):
        np.testing.assert_array_equal(starts[0][f"head:{number}"], head_arrays[f"head:{number}"])
        for epoch in other:
            arrays = checkpoints.load(checkpoints.uri_of(plan.run.checkpoints, epoch)).arrays
            assert not np.array_equal(starts[0][f"head:{number}"], arrays[f"head:{number}"])
    optimizer = [value for name, value in starts[0].items() if name.startswith("optimizer") and value.ndim]
    assert optimizer
    assert not any(value.any() for value in optimizer)
    assert kept(plan) == sorted({2, 3, best})


def test_the_reported_validation_is_that_of_the_saved_head(here: Place) -> None:
    plan = fitted(here, "run", head(epochs=2))
    train, validation = read_subsets(plan.run, list(CLASSES))
    assert (len(train.labels), len(validation.labels)) == (TRAIN, VALIDATION)
    features, test = (Cached(plan, "pool", ("plain",), subset, (-1,)).views[0] for subset in (train, validation))
    model = classifier.build_head(*classifier.standardization(features), 3, 0.0)
    found = newest(plan)
    model.get_layer("logits").set_weights([found.arrays[f"head:{number}"] for number in range(2)])
    check_summary(plan, Counts.of(validation.labels, np.asarray(model(test, training=False))))
    np.testing.assert_array_equal(found.arrays["standardize:mean"], classifier.standardization(features)[0])


def test_the_reported_validation_is_that_of_the_saved_tail(here: Place, whole: Callable[[str], Plan]) -> None:
    """Of the whole network, from pixels, with the arrays of the checkpoint and nothing else."""
    plan = whole("adamw")
    arrays = newest(plan).arrays
    network = tiny_network("mobilenetv2", "", 32, "float32")
    blocks = cuts.trained_variables(network, "mobilenetv2", plan.cut)
    for number, variable in enumerate(variable for block in blocks for variable in block):
        variable.assign(arrays[f"tail:{number}"])
    model = classifier.build_head(arrays["standardize:mean"], arrays["standardize:variance"], 3, 0.2)
    model.get_layer("logits").set_weights([arrays["head:0"], arrays["head:1"]])
    joined = classifier.join(network, model)
    labels = np.array([CLASSES.index(label) for label in here.photos.labels("validation")])
    check_summary(plan, Counts.of(labels, np.asarray(joined(here.photos.of("validation"), training=False))))


def test_photos_held_out_are_measured_as_validation_photos_are(
    tmp_path: Path, here: Place, whole: Callable[[str], Plan]
) -> None:
    """Of the tail: the same photos under the other name give the same counts."""
    import tensorflow as tf

    plan = whole("adamw")
    last = newest(plan)
    assert "tail:0" in last.arrays
    inner = dataclasses.replace(plan, run=Run(str(tmp_path / "inner")))
    shutil.copytree(plan.run.uri, inner.run.uri)
    renamed = {"train": "train", "validation": "test", "test": "validation"}
    rows = [{**row, "split": renamed[row["split"]]} for row in here.photos.split.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=here.photos.split.schema), inner.run.split)
    history, _, _ = History.resume(inner.run, inner.config)
    history.best = last.epoch
    _conclude(inner, history, list(CLASSES), Worker(0, 1, tf.distribute.get_strategy()))
    outcome = read_outcome(inner.run)
    assert outcome is not None
    assert outcome.line == lines_of(plan)[-1]
    np.testing.assert_allclose(outcome.held_out, last.arrays["validation"], rtol=1e-5)
    assert not Path(inner.run.checkpoints).exists()


def check_summary(plan: Plan, counts: Counts) -> None:
    summary = summarize(counts, CLASSES)
    for name in ("accuracy", "macro_accuracy", "log_loss"):
        assert lines_of(plan)[-1][f"val_{name}"] == pytest.approx(getattr(summary, name).value, rel=1e-5)
    saved = Counts.from_vector(newest(plan).arrays["validation"], 3)
    assert summarize(saved, CLASSES).log_loss.value == pytest.approx(lines_of(plan)[-1]["val_log_loss"])


# ---- the same again


def test_the_same_seed_gives_the_same_bits(here: Place) -> None:
    options = {"class_weights": "balanced", "l2": 0.01, "augment": "flip", "head_epochs": 1, "epochs": 2}
    one, two = (fitted(here, name, tail(**options)) for name in ("one", "two"))
    check_same_state(one, two)
    other = fitted(here, "other", tail(**options, seed=1))
    assert lines_of(other, "seconds") != lines_of(one, "seconds")


class Killed(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize(
    ("optimizer", "when", "epoch"),
    [
        ("sgd", "before the checkpoint", 2),
        ("adamw", "after the checkpoint", 2),  # the last of the head
        ("adamw", "before the checkpoint", 3),  # the first of the tail
        ("sgd", "after the checkpoint", 3),
        ("adamw", "after the checkpoint", 4),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    here: Place,
    whole: Callable[[str], Plan],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    when: str,
    epoch: int,
) -> None:
    commit = History.commit

    def dying(self: History, arrays: Any) -> str:
        if self.epoch == epoch and when == "before the checkpoint":
            raise Killed
        uri = commit(self, arrays)
        if self.epoch == epoch:
            raise Killed
        return uri

    monkeypatch.setattr(History, "commit", dying)
    killed = here.plan("killed", tail(optimizer=optimizer))
    with pytest.raises(Killed):
        fit(killed)
    monkeypatch.setattr(History, "commit", commit)
    done = epoch - 1 if when.startswith("before") else epoch
    assert newest(killed).epoch == done
    before = lines_of(killed)
    assert len(before) == done
    fit(killed)
    assert lines_of(killed)[:done] == before  # not trained again
    check_same_state(whole(optimizer), killed)


def test_a_finished_run_is_left_as_it_is(whole: Callable[[str], Plan]) -> None:
    plan = whole("adamw")
    before = lines_of(plan)
    fit(plan)
    assert lines_of(plan) == before


def test_patience_ends_a_phase_not_the_run(here: Place) -> None:
    plan = fitted(here, "run", small(patience=1, min_delta=100, head_epochs=9, epochs=9))
    assert [line["phase"] for line in lines_of(plan)] == ["head", "head", "tail", "tail"]


# ---- its part of the photos


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_worker_is_given_its_part_of_the_photos(here: Place, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    given: list[Any] = []

    def noted(plan: Plan, phase: Any, subsets: Any, *_: Any) -> None:
        given.extend(subsets)
        raise Killed

    monkeypatch.setattr(loop, "prepare_phase", noted)
    plan = here.plan("run", head())
    with pytest.raises(Killed):
        loop._train(plan, ["head"], list(CLASSES), Worker(rank, 4, None), Pace())
    for subset, whole in zip(given, read_subsets(plan.run, list(CLASSES)), strict=True):
        n = len(whole.labels)
        assert subset.part == slice(n * rank // 4, n * (rank + 1) // 4)
        assert subset.photos.equals(whole.photos.slice(subset.part.start, subset.part.stop - subset.part.start))
        np.testing.assert_array_equal(subset.labels, whole.labels)


# ---- the steps


def recorded(place: Place, monkeypatch: pytest.MonkeyPatch, name: str, config: TrainConfig) -> list[Batches]:
    """All that went into the steps of a run."""
    seen: list[Batches] = []
    run = Step.run

    def noted(self: Step, batches: Batches) -> Any:
        seen.append(batches)
        return run(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "run", noted)
        fitted(place, name, config)
    return seen


def test_steps_are_counted_over_the_run_and_rates_over_the_phase(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_STEPS", 3)
    seen = recorded(here, monkeypatch, "run", small(epochs=2))
    assert [part.first for part in seen[:4]] == [0, 3, 6, 7]
    assert [part.first + step for part in seen for step in range(len(part.rows))] == list(range(4 * STEPS))
    rates = np.concatenate([part.rates for part in seen])
    for phase, peak in ((rates[: 2 * STEPS], 0.02), (rates[2 * STEPS :], 0.004)):
        assert phase.argmax() == STEPS  # one epoch of warm-up
        assert phase.max() == np.float32(peak)
        assert (np.diff(phase[: STEPS + 1]) > 0).all()
        assert (np.diff(phase[STEPS:]) < 0).all()
        assert 0 < phase[-1] < 0.1 * peak


@pytest.mark.parametrize("balanced", [False, True])
def test_each_photo_counts_once_an_epoch_with_its_weight(
    here: Place, monkeypatch: pytest.MonkeyPatch, balanced: bool
) -> None:
    config = head(epochs=1, class_weights="balanced" if balanced else "none")
    (batches,) = recorded(here, monkeypatch, "run", config)
    subset, _ = read_subsets(Run(str(here.folder / "run")), list(CLASSES))
    per_class = class_weights(config, subset.labels, 3)
    assert batches.inputs.shape == (STEPS, SIZE, WIDTH)
    assert batches.weights.dtype == np.float32
    real = batches.weights > 0
    np.testing.assert_array_equal(real.sum(axis=1), batches.rows)
    assert batches.rows.tolist() == [SIZE] * (STEPS - 1) + [TRAIN - SIZE * (STEPS - 1)]
    np.testing.assert_allclose(batches.weights[real], per_class[batches.labels[real]], rtol=1e-6)
    features = Cached(here.plan("run", config), "pool", ("plain",), subset, (-1,)).views[0]
    assert sorted(map(bytes, batches.inputs[real])) == sorted(map(bytes, features))
    label_of = {bytes(row): label for row, label in zip(features, subset.labels, strict=True)}
    assert [label_of[bytes(row)] for row in batches.inputs[real]] == batches.labels[real].tolist()


def test_chunks_of_steps_do_not_change_the_result(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = fitted(here, "one", small(head_epochs=1, epochs=1))
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 40_000)
    monkeypatch.setattr(inputs, "MOST_STEPS", 2)
    two = fitted(here, "two", small(head_epochs=1, epochs=1))
    for name in ("loss", "val_log_loss"):
        for mine, other in zip(lines_of(one), lines_of(two), strict=True):
            assert mine[name] == pytest.approx(other[name], rel=1e-6)


# ---- when it fails


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_rate_far_too_high_is_called_so(here: Place, optimizer: str) -> None:
    plan = here.plan("run", head(learning_rate=1e38, optimizer=optimizer, warmup_epochs=0))
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch 1\).*--learning-rate") as caught:
        fit(plan)
    assert "\n" not in str(caught.value)


def test_a_tail_that_diverges_keeps_the_head(here: Place) -> None:
    plan = here.plan("run", tail(tail_learning_rate=1e38, warmup_epochs=0))
    with pytest.raises(TrainingDiverged, match=r"epoch 3.*--tail-learning-rate"):
        fit(plan)
    assert newest(plan).epoch == 2
    assert [line["phase"] for line in lines_of(plan)] == ["head", "head"]


def test_divergence_in_the_last_step_names_the_epoch(here: Place) -> None:
    plan = here.plan("run", head(learning_rate=3e38, optimizer="sgd", batch_size=128, warmup_epochs=0))
    with pytest.raises(TrainingDiverged, match=r"epoch 1\b"):
        fit(plan)


def test_a_feature_that_is_no_number_is_noticed(tmp_path: Path) -> None:
    place = Place(tmp_path, drawn(TRAIN, VALIDATION))
    plan = place.plan("run", head())
    features = np.random.default_rng(0).normal(size=(len(place.photos.digests), WIDTH)).astype(np.float32)
    features[7, 3] = np.nan
    cache = FeatureCache(plan.cache(plan.feature("pool")))
    cache.add(place.photos.digests, features)
    cache.flush()
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch 1\)"):
        fit(plan)
    assert not checkpoints.newest(plan.run.checkpoints)[0]
