"""What every training worker runs: phases of epochs, exact validation, a checkpoint after each, the best one kept."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import tensorflow as tf

from flowers import storage
from flowers.errors import FlowersError, OutOfMemory, TrainingDiverged
from flowers.evaluation.metrics import Counts, summarize
from flowers.plan import Plan
from flowers.training import checkpoints, failures
from flowers.training.batches import class_weights, epoch_batches
from flowers.training.history import History
from flowers.training.inputs import Inputs, Subset, read_subsets
from flowers.training.phase import PreparedPhase, Worker, prepare_phase, standard_of
from flowers.training.schedule import learning_rate
from flowers.training.step import Batches, Step


def train_loop(arguments: dict[str, Any]) -> FlowersError | None:
    """The function that Ray's `TensorflowTrainer` runs in each worker, or in the job itself.

    Args:
        arguments: `plan` (a `Plan`) and `classes` (names of the outputs, in order).

    Returns:
        What went wrong for good, such as `TrainingDiverged`: raised, Ray would start the workers again for it.
    """
    plan: Plan = arguments["plan"]
    context = ray.train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    if known := failures.noted(plan.run):
        return known
    try:
        if count > 1:
            tf.config.threading.set_intra_op_parallelism_threads(plan.worker_cpus)
        strategy = tf.distribute.MultiWorkerMirroredStrategy() if count > 1 else tf.distribute.get_strategy()
        _train(plan, arguments["classes"], Worker(rank, count, strategy))
    except TrainingDiverged as error:  # the loss is the same number on every worker: all of them end here
        return error
    except (FlowersError, tf.errors.ResourceExhaustedError) as error:
        failure = error if isinstance(error, FlowersError) else failures.out_of_memory(plan, count)
        if plan.in_process:
            return failure
        if not isinstance(failure, OutOfMemory) or not failure.retry:
            failures.note(plan.run, failure)
        raise  # the others wait for this worker: Ray has to end them
    return None


def _train(plan: Plan, classes: list[str], worker: Worker) -> None:
    history, found, _ = History.resume(plan.run, plan.config)
    if worker.rank == 0:
        storage.sweep(plan.run.checkpoints)
        history.rewrite()
    subsets = read_subsets(plan.run, classes)
    standard = standard_of(found) if found else None
    while (phase := history.phase()) is not None:
        prepared = prepare_phase(plan, phase, subsets, standard, len(classes), worker)
        if found and history.epoch > history.began:
            prepared.step.restore(found.arrays)
        elif history.epoch:  # a new phase starts from the best head of the one before
            best = checkpoints.load(checkpoints.uri_of(plan.run.checkpoints, history.best))
            prepared.step.restore(best.arrays, "head")
        # The arrays of the checkpoint, some hundred MB, are not held while the phase trains.
        found, standard = None, prepared.standard
        while history.phase() == phase:
            line, counts = _epoch(plan, prepared, history, subsets, classes, worker)
            history.add(line)
            _report(history, prepared, counts, worker)


def _report(history: History, prepared: PreparedPhase, counts: Counts, worker: Worker) -> None:
    """Commits the epoch, and tells Ray."""
    known = None
    if worker.rank == 0:
        known = ray.train.Checkpoint(*reversed(storage.resolve(history.commit(prepared.arrays(counts)))))
    ray.train.report(
        {name: value for name, value in history.lines[-1].items() if name != "seconds"},
        checkpoint=known,
        checkpoint_dir_name=f"epoch-{history.epoch:04d}",
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _epoch(
    plan: Plan,
    prepared: PreparedPhase,
    history: History,
    subsets: tuple[Subset, Subset],
    classes: list[str],
    worker: Worker,
) -> tuple[dict[str, Any], Counts]:
    """Trains one epoch and validates; returns its line of metrics and the counts of the validation."""
    started = time.perf_counter()
    train, epoch = subsets[0], history.epoch
    order = epoch_batches(plan.config, epoch, len(train.labels), worker.rank, worker.count)
    per_epoch = len(order.indices)
    weights = class_weights(plan.config, train.labels, len(classes))[train.labels]
    begun = (epoch - history.began) * per_epoch
    rates = [learning_rate(plan.config, prepared.phase, begun + number, per_epoch) for number in range(per_epoch)]
    losses: list[npt.NDArray[np.float64]] = []
    done = 0
    for chunk in prepared.train.steps(order):
        part = slice(done, done + len(chunk))
        batches = Batches(
            inputs=chunk,
            labels=train.labels[order.indices[part]],
            weights=np.where(order.real[part], weights[order.indices[part]], 0).astype(np.float32),
            rows=order.rows[part],
            rates=np.array(rates[part], np.float32),
            first=epoch * per_epoch + done,
        )
        losses.append(prepared.step.run(batches))
        check_finite(losses[-1], batches, epoch)
        done = part.stop
    counts = validate(prepared.step, epoch, subsets[1], prepared.validation, len(classes), worker)
    summary = summarize(counts, classes)
    line = {
        "epoch": epoch + 1,
        "phase": prepared.phase.name,
        "loss": float(np.average(np.concatenate(losses), weights=order.rows)),
        "val_accuracy": summary.accuracy.value,
        "val_macro_accuracy": summary.macro_accuracy.value,
        "val_log_loss": summary.log_loss.value,
        "learning_rate": rates[-1],
        "seconds": round(time.perf_counter() - started, 3),
    }
    return line, counts


def check_finite(losses: npt.NDArray[np.float64], batches: Batches, epoch: int) -> None:
    """Raises `TrainingDiverged` naming the first step with a loss that is not a finite number."""
    if not np.isfinite(losses).all():
        index = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise TrainingDiverged(
            f"the loss is {losses[index]} in step {batches.first + index + 1} (epoch {epoch + 1}), learning rate "
            f"{batches.rates[index]:g}; lower --learning-rate or --tail-learning-rate"
        )


def validate(step: Step, epoch: int, subset: Subset, inputs: Inputs, classes: int, worker: Worker) -> Counts:
    """Exact counts over all rows of a subset after an epoch, counted from 0; each worker takes every N-th row."""
    labels = subset.labels[worker.rank :: worker.count]
    counts, done, wrong = Counts.zero(classes), 0, 0
    for chunk in inputs.rows(worker.rank, worker.count):
        probabilities = step.probabilities(chunk)
        wrong += int((~np.isfinite(probabilities)).any(axis=1).sum())
        counts += Counts.of(labels[done : done + len(chunk)], np.nan_to_num(probabilities))
        done += len(chunk)
    vector = step.total(np.append(counts.to_vector(), wrong))
    if vector[-1]:  # known to all workers at once, so that none waits for another
        raise TrainingDiverged(
            f"{int(vector[-1])} validation scores after epoch {epoch + 1} are not finite numbers; lower "
            "--learning-rate or --tail-learning-rate"
        )
    return Counts.from_vector(vector[:-1], classes)
