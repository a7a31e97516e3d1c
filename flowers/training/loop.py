"""What every training worker runs: epochs of steps, exact validation, checkpoints, the best epoch kept."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from flowers import storage
from flowers.config import TrainConfig
from flowers.errors import FlowersError, TrainingDiverged
from flowers.evaluation.metrics import Counts, summarize
from flowers.model.classifier import build_head, standardization
from flowers.model.features import FeatureCache
from flowers.training import checkpoints
from flowers.training.schedule import learning_rate
from flowers.training.step import Batches, HeadStep

# Steps in one TensorFlow call: enough to hide Python, few enough to keep their photos in memory.
STEPS_AT_ONCE = 64


@dataclass(frozen=True)
class Side:
    """The photos of one side, ordered by content: features float32 [n, d] and labels int32 [n]."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]


def train_loop(arguments: dict[str, Any]) -> FlowersError | None:
    """The function that Ray's `TensorflowTrainer` runs in each worker, or in the job itself.

    Args:
        arguments: `run` (URI of the run folder, holding split.parquet), `cache` (URI of the feature cache),
            `classes` and `config` (the fields of a `TrainConfig`).

    Returns:
        What went wrong for good, such as `TrainingDiverged`: raised, Ray would start the workers again for it.
    """
    try:
        _train_head(arguments)
    except FlowersError as error:
        return error
    return None


def _train_head(arguments: dict[str, Any]) -> None:
    import ray.train
    import tensorflow as tf

    config = TrainConfig(**arguments["config"])
    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.get_strategy()
    train, validation = load_sides(arguments["run"], arguments["cache"], arguments["classes"])
    mean, variance = standardization(train.features)
    step = HeadStep(
        config, strategy, lambda: build_head(mean, variance, len(arguments["classes"]), config.dropout), rank
    )
    progress = Progress.resume(arguments["run"], config, step)
    if rank == 0:
        progress.rewrite()
    while not progress.finished():
        line = _epoch(config, step, progress.epoch, train, validation, arguments["classes"], (rank, workers))
        progress.add(line)
        checkpoint = None
        if rank == 0:
            uri = progress.commit(step)
            checkpoint = ray.train.Checkpoint(*reversed(storage.resolve(uri)))
        metrics = {name: line[name] for name in line if name != "seconds"}
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=f"epoch-{progress.epoch:04d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def load_sides(run: str, cache: str, classes: list[str]) -> tuple[Side, Side]:
    """Features and labels of the training and the validation photos, in the order of split.parquet."""
    table = pq.read_table(io.BytesIO(storage.read(storage.join(run, "split.parquet"))))
    split, digests = table["split"].to_numpy(), table["sha256"].to_pylist()
    index = {label: number for number, label in enumerate(classes)}
    labels = np.array([index[label] for label in table["label"].to_pylist()], np.int32)
    features = FeatureCache(cache).open()
    sides = []
    for name in ("train", "validation"):
        places = np.flatnonzero(split == name)
        sides.append(Side(features.rows([digests[place] for place in places]), labels[places]))
    return sides[0], sides[1]


@dataclass
class Progress:
    """How far a run is: its history, its best epoch, and when it ends.

    Attributes:
        run: URI of the run folder.
        config: of the run.
        history: one line of metrics an epoch.
        best: number of the best epoch, 0 before the first.
        mark: the monitored metric when it last got better by more than `min_delta`.
        waited: epochs since then.
    """

    run: str
    config: TrainConfig
    history: list[dict[str, Any]]
    best: int = 0
    mark: float | None = None
    waited: int = 0

    @classmethod
    def resume(cls, run: str, config: TrainConfig, step: HeadStep) -> Progress:
        """Goes on from the newest complete checkpoint, if there is one."""
        found, _ = checkpoints.newest(storage.join(run, "checkpoints"))
        if found is None:
            return cls(run, config, [])
        step.restore(found.arrays)
        return cls(run, config, **found.state)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def finished(self) -> bool:
        """Whether all epochs are done or the monitored metric has stopped getting better."""
        return self.epoch >= self.config.epochs or 0 < self.config.patience <= self.waited

    def add(self, line: dict[str, Any]) -> None:
        """Takes in the metrics of one more epoch."""
        name = f"val_{self.config.monitor}"
        sign = -1 if self.config.monitor == "log_loss" else 1
        self.history.append(line)
        if not self.best or sign * (line[name] - self.history[self.best - 1][name]) > 0:
            self.best = self.epoch
        if self.mark is None or sign * (line[name] - self.mark) > self.config.min_delta:
            self.mark, self.waited = line[name], 0
        else:
            self.waited += 1

    def commit(self, step: HeadStep) -> str:
        """Writes the checkpoint and the line of metrics of this epoch; returns the checkpoint's URI."""
        state = {"history": self.history, "best": self.best, "mark": self.mark, "waited": self.waited}
        folder = storage.join(self.run, "checkpoints")
        uri = checkpoints.save(folder, checkpoints.Checkpoint(self.epoch, step.state(), state))
        checkpoints.prune(folder, self.best)
        self.rewrite()
        return uri

    def rewrite(self) -> None:
        """Makes metrics.jsonl what the newest checkpoint says: a killed epoch leaves no line behind."""
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        storage.write(storage.join(self.run, "metrics.jsonl"), lines.encode())


def _epoch(
    config: TrainConfig,
    step: HeadStep,
    epoch: int,
    train: Side,
    validation: Side,
    classes: list[str],
    worker: tuple[int, int],
) -> dict[str, Any]:
    """Trains one epoch, counted from 0, and validates; returns its line of metrics."""
    started = time.perf_counter()
    losses, rows, rate = [], [], 0.0
    for batches in _batches(config, epoch, train, len(classes), worker[0]):
        loss = step.run(batches)
        if not np.isfinite(loss).all():
            number = batches.first + int(np.flatnonzero(~np.isfinite(loss))[0])
            raise TrainingDiverged(
                f"the loss is {loss[~np.isfinite(loss)][0]} in step {number + 1} (epoch {epoch + 1}), learning rate "
                f"{batches.rates[number - batches.first]:g}; lower --learning-rate"
            )
        losses.append(loss)
        rows.append(batches.rows)
        rate = float(batches.rates[-1])
    summary = summarize(validate(step, epoch, validation, len(classes), worker), classes)
    return {
        "epoch": epoch + 1,
        "loss": float(np.average(np.concatenate(losses), weights=np.concatenate(rows))),
        **{f"val_{name}": summary[name]["value"] for name in ("accuracy", "macro_accuracy", "log_loss")},
        "learning_rate": rate,
        "seconds": round(time.perf_counter() - started, 3),
    }


def validate(step: HeadStep, epoch: int, side: Side, classes: int, worker: tuple[int, int]) -> Counts:
    """Exact counts over all rows of a side after an epoch, counted from 0; each worker takes every N-th row."""
    rank, workers = worker
    probabilities = step.probabilities(side.features[rank::workers])
    if not np.isfinite(probabilities).all():
        raise TrainingDiverged(
            f"the validation scores after epoch {epoch + 1} are not finite numbers; lower --learning-rate"
        )
    counts = Counts.of(side.labels[rank::workers], probabilities)
    return Counts.from_vector(step.total(counts.to_vector()), classes)


def _batches(config: TrainConfig, epoch: int, side: Side, classes: int, rank: int) -> Iterator[Batches]:
    """This worker's part of the epoch's global batches.

    The order depends on seed and epoch alone: a resumed epoch sees the photos that the killed one would have seen,
    and global batch t holds the same photos for every number of workers.
    """
    total, size = len(side.labels), config.batch_size
    share = size // config.workers
    order = np.random.Generator(np.random.Philox(key=[config.seed, epoch])).permutation(total)
    per_epoch = -(-total // size)
    order = np.concatenate([order, np.full(per_epoch * size - total, -1)]).reshape(per_epoch, size)
    mine = order[:, rank * share : (rank + 1) * share]
    weights = _class_weights(config, side.labels, classes)
    for start in range(0, per_epoch, STEPS_AT_ONCE):
        places = mine[start : start + STEPS_AT_ONCE]
        real = places >= 0
        labels = side.labels[places]
        first = epoch * per_epoch + start
        yield Batches(
            features=side.features[places],
            labels=labels,
            weights=np.where(real, weights[labels], 0).astype(np.float32),
            rows=(order[start : start + STEPS_AT_ONCE] >= 0).sum(axis=1).astype(np.float32),
            rates=np.array(
                [learning_rate(config, first + number, per_epoch) for number in range(len(places))], np.float32
            ),
            first=first,
        )


def _class_weights(config: TrainConfig, labels: npt.NDArray[np.int32], classes: int) -> npt.NDArray[np.float64]:
    """The weight of each class, float64 [K]; their mean over the training photos is 1."""
    if config.class_weights == "none":
        return np.ones(classes)
    sizes = np.bincount(labels, minlength=classes)
    present = (sizes > 0).sum()
    return np.where(sizes > 0, len(labels) / (present * np.maximum(sizes, 1)), 0)
