"""The loop under Ray's trainer in this process: its batches, when it ends, going on, and what it learns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers.config import TrainConfig
from flowers.errors import TrainingDiverged
from flowers.model.features import FeatureCache
from flowers.training import checkpoints, loop, trainer
from flowers.training.loop import Progress, Side, _batches

CLASSES = ("daisy", "rose", "tulip")
WIDTH = 12


@dataclasses.dataclass
class Place:
    """A feature cache and run folders whose split names its photos."""

    folder: Path
    table: pa.Table

    @property
    def cache(self) -> str:
        return str(self.folder / "cache")

    def run(self, name: str) -> str:
        """The URI of a run folder, made with its split at the first call."""
        run = self.folder / "runs" / name
        run.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table, run / "split.parquet")
        return str(run)

    def fit(self, name: str, config: TrainConfig) -> str:
        trainer.fit(config, self.run(name), self.cache, CLASSES)
        return self.run(name)


def place(folder: Path, spoil: Callable[[Any], None] = lambda features: None) -> Place:
    """Three well-separated classes: 101 photos to train, 37 to validate, 5 to test."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), 143)
    features = (rng.normal(size=(143, WIDTH)) + 6 * np.eye(3, WIDTH)[labels]).astype(np.float32)
    spoil(features)
    digests = [hashlib.sha256(bytes([row])).digest() for row in range(143)]
    cache = FeatureCache(str(folder / "cache"))
    for part in (slice(0, 60), slice(60, 143)):
        cache.add(digests[part], features[part])
        cache.flush()
    sides = ["train"] * 101 + ["validation"] * 37 + ["test"] * 5
    order = rng.permutation(143)
    rows = {"sha256": digests, "label": [CLASSES[label] for label in labels], "split": sides}
    shuffled = {name: [column[row] for row in order] for name, column in rows.items()}
    return Place(folder, pa.table({**shuffled, "sha256": pa.array(shuffled["sha256"], pa.binary(32))}))


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return place(tmp_path)


def options(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 6, "batch_size": 16, "learning_rate": 0.02, **changes})


def history(run: str, *without: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in without} for line in lines]


def newest(run: str) -> checkpoints.Checkpoint:
    found, damaged = checkpoints.newest(f"{run}/checkpoints")
    assert found is not None
    assert not damaged
    return found


def check_same_state(one: str, two: str) -> None:
    """Bit-equal variables, history and early stopping; only `seconds` may differ."""
    mine, other = newest(one), newest(two)
    assert mine.epoch == other.epoch
    assert mine.arrays.keys() == other.arrays.keys()
    for name, array in mine.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name
    assert history(one, "seconds") == history(two, "seconds")
    assert {**mine.state, "history": 0} == {**other.state, "history": 0}


# ---- the whole loop


def test_it_learns_what_can_be_learned(here: Place) -> None:
    run = here.fit("run", options())
    lines = history(run)
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    assert lines[-1]["val_accuracy"] > 0.95
    assert lines[-1]["val_macro_accuracy"] > 0.95
    assert lines[-1]["val_log_loss"] < lines[0]["val_log_loss"]
    assert lines[-1]["loss"] < lines[0]["loss"] < np.log(3) + 0.05
    assert newest(run).state["history"] == lines
    arrays, last = trainer.best_head(run)
    best = last.state["best"]
    assert lines[best - 1]["val_log_loss"] == min(line["val_log_loss"] for line in lines)
    assert [array.shape for array in arrays] == [(WIDTH, 3), (3,)]
    kept = sorted(path.name for path in (Path(run) / "checkpoints").iterdir())
    assert kept == sorted({"epoch-0005", "epoch-0006", f"epoch-{best:04d}"})


def test_the_reported_validation_is_that_of_the_saved_head(here: Place) -> None:
    from flowers.evaluation.metrics import Counts, summarize
    from flowers.model.classifier import build_head, standardization

    run = here.fit("run", options(epochs=2))
    train, validation = loop.load_sides(run, here.cache, list(CLASSES))
    assert (len(train.labels), len(validation.labels)) == (101, 37)
    head = build_head(*standardization(train.features), 3, 0.0)
    head.get_layer("logits").set_weights([newest(run).arrays[f"head:{number}"] for number in range(2)])
    summary = summarize(Counts.of(validation.labels, np.asarray(head(validation.features))), CLASSES)
    for name in ("accuracy", "macro_accuracy", "log_loss"):
        assert history(run)[-1][f"val_{name}"] == pytest.approx(summary[name]["value"], rel=1e-6)


def test_the_same_seed_gives_the_same_bits(here: Place) -> None:
    one, two = (here.fit(name, options(epochs=3, class_weights="balanced", l2=0.01)) for name in ("one", "two"))
    check_same_state(one, two)
    other = here.fit("other", options(epochs=3, class_weights="balanced", l2=0.01, seed=1))
    assert history(other, "seconds") != history(one, "seconds")


class Killed(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    here: Place, monkeypatch: pytest.MonkeyPatch, optimizer: str, when: str
) -> None:
    config = options(epochs=5, optimizer=optimizer)
    whole = here.fit("whole", config)
    commit = Progress.commit

    def dying(self: Progress, step: Any) -> str:
        if self.epoch == 3 and when == "before the checkpoint":
            raise Killed
        uri = commit(self, step)
        if self.epoch == 3:
            raise Killed
        return uri

    monkeypatch.setattr(Progress, "commit", dying)
    with pytest.raises(Killed):
        here.fit("killed", config)
    monkeypatch.undo()
    done = 2 if when.startswith("before") else 3
    assert newest(here.run("killed")).epoch == done
    before = history(here.run("killed"))
    assert len(before) == done
    resumed = here.fit("killed", config)
    assert history(resumed)[:done] == before  # not trained again
    check_same_state(whole, resumed)


def test_metrics_are_rewritten_from_the_checkpoint(here: Place) -> None:
    config = options(epochs=3)
    whole, run = here.fit("whole", config), here.fit("run", config)
    shutil.rmtree(Path(run) / "checkpoints" / "epoch-0003")
    with (Path(run) / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 4, "lo')
    here.fit("run", config)
    check_same_state(whole, run)


def test_a_damaged_checkpoint_is_passed_over(here: Place) -> None:
    config = options(epochs=3)
    whole, run = here.fit("whole", config), here.fit("run", config)
    file = Path(run) / "checkpoints" / "epoch-0003" / checkpoints.ARRAYS
    file.write_bytes(file.read_bytes()[:-1])
    here.fit("run", config)
    check_same_state(whole, run)


def test_a_finished_run_is_left_as_it_is(here: Place) -> None:
    run = here.fit("run", options(epochs=2))
    before = history(run)
    here.fit("run", options(epochs=2))
    assert history(run) == before


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_rate_far_too_high_is_called_so(here: Place, optimizer: str) -> None:
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch 1\).*--learning-rate") as caught:
        here.fit("run", options(learning_rate=1e38, optimizer=optimizer, warmup_epochs=0))
    assert "\n" not in str(caught.value)


def test_divergence_in_the_last_step_names_the_epoch(here: Place) -> None:
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        here.fit("run", options(learning_rate=3e38, optimizer="sgd", batch_size=128, warmup_epochs=0))


def test_a_feature_that_is_no_number_is_noticed(tmp_path: Path) -> None:
    def spoil(features: npt.NDArray[np.float32]) -> None:
        features[7, 3] = np.nan

    spoiled = place(tmp_path, spoil)
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch 1\)"):
        spoiled.fit("run", options())
    assert not checkpoints.newest(f"{spoiled.run('run')}/checkpoints")[0]


# ---- the batches


def side(rows: int = 101) -> Side:
    labels = np.random.default_rng(1).integers(0, 3, rows).astype(np.int32)
    return Side(np.arange(rows, dtype=np.float32)[:, None] + np.zeros((1, 2), np.float32), labels)


def seen(config: TrainConfig, epoch: int, of: Side) -> list[tuple[list[int], list[float]]]:
    """Photos and weights of each global batch, from the parts of all workers put together again."""
    ranks = [list(_batches(config, epoch, of, 3, rank)) for rank in range(config.workers)]
    found = []
    for chunks in zip(*ranks, strict=True):
        for chunk in chunks[1:]:
            for name in ("rows", "rates"):
                np.testing.assert_array_equal(getattr(chunk, name), getattr(chunks[0], name))
            assert chunk.first == chunks[0].first
        for number, rows in enumerate(chunks[0].rows):
            numbers = np.concatenate([chunk.features[number, :, 0] for chunk in chunks]).astype(int)
            labels = np.concatenate([chunk.labels[number] for chunk in chunks])
            weights = np.concatenate([chunk.weights[number] for chunk in chunks])
            np.testing.assert_array_equal(labels, of.labels[numbers])
            real = weights > 0
            assert real.sum() == rows
            found.append((numbers[real].tolist(), weights[real].tolist()))
    return found


@pytest.mark.parametrize("rows", [101, 96, 97, 3])
@pytest.mark.parametrize("at_once", [64, 2])
def test_any_number_of_workers_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch, rows: int, at_once: int) -> None:
    monkeypatch.setattr(loop, "STEPS_AT_ONCE", at_once)
    photos = side(rows)
    config = options(class_weights="balanced")
    one = seen(config, 2, photos)
    assert sorted(number for batch, _ in one for number in batch) == list(range(rows))
    assert [len(batch) for batch, _ in one[:-1]] == [16] * (len(one) - 1)
    for workers in (2, 4):
        assert seen(dataclasses.replace(config, workers=workers), 2, photos) == one


def test_order_changes_with_epoch_and_seed() -> None:
    orders = [
        tuple(number for batch, _ in seen(options(seed=seed), epoch, side()) for number in batch)
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 6
    assert orders[0] == tuple(number for batch, _ in seen(options(), 0, side()) for number in batch)


def test_steps_are_counted_over_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_AT_ONCE", 3)
    config = options(schedule="cosine", epochs=4)
    parts = [part for epoch in range(4) for part in _batches(config, epoch, side(), 3, 0)]
    assert [part.first for part in parts[:4]] == [0, 3, 6, 7]
    rates = np.concatenate([part.rates for part in parts])
    assert len(rates) == 4 * 7
    assert rates.argmax() == 7  # one epoch of warm-up
    assert (np.diff(rates[:8]) > 0).all()
    assert (np.diff(rates[7:]) < 0).all()
    assert 0 < rates[-1] < 0.02 * rates.max()


def test_balanced_weights() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1, np.int32)
    weights = loop._class_weights(options(class_weights="balanced"), labels, 4)
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3])
    assert weights[labels].mean() == pytest.approx(1)
    sums = np.bincount(labels, weights[labels], 4)
    np.testing.assert_allclose(sums[[0, 1, 3]], 10 / 3)
    np.testing.assert_array_equal(loop._class_weights(options(), labels, 4), np.ones(4))


# ---- when it ends


def progress(monitor: str, values: list[float], **changes: Any) -> Progress:
    made = Progress("", options(monitor=monitor, epochs=99, **changes), [])
    for value in values:
        if made.finished():
            break
        names = ("accuracy", "macro_accuracy", "log_loss")
        # What is not monitored gets better all the time.
        better = {name: len(made.history) * (-1.0 if name == "log_loss" else 1.0) for name in names}
        made.add({f"val_{name}": value if name == monitor else better[name] for name in names})
    return made


@pytest.mark.parametrize("monitor", ["accuracy", "macro_accuracy", "log_loss"])
def test_it_stops_when_the_monitored_metric_gets_no_better(monitor: str) -> None:
    values = [0.5, 0.6, 0.7, 0.65, 0.7, 0.1, 0.9]
    made = progress(monitor, [-value for value in values] if monitor == "log_loss" else values, patience=3)
    assert made.epoch == 6
    assert made.best == 3  # of equals the earlier
    endless = progress(monitor, [-value for value in values] if monitor == "log_loss" else values, patience=0)
    assert (endless.epoch, endless.best, endless.finished()) == (7, 7, False)


def test_a_small_gain_is_the_best_but_does_not_reset_the_patience() -> None:
    values = [0.5, 0.505, 0.508, 0.6, 0.601]
    made = progress("accuracy", values, patience=3, min_delta=0.01)
    assert (made.epoch, made.best, made.waited) == (5, 5, 1)
    stopped = progress("accuracy", values, patience=2, min_delta=0.01)
    assert (stopped.epoch, stopped.best, stopped.waited) == (3, 3, 2)


def test_it_ends_after_the_last_epoch() -> None:
    made = Progress("", options(epochs=2), [])
    assert not made.finished()
    for value in (2.0, 1.0):
        made.add({"val_log_loss": value})
    assert made.finished()
