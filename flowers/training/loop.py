"""What every training worker runs: phases of epochs, exact validation, a checkpoint after each, the best one kept.

A run's folds and the trials of a search are trained in the same way, one after the other; of these an outcome is kept.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import tensorflow as tf

from flowers import storage
from flowers.cluster.nodes import keep_to_own_gpus
from flowers.errors import FlowersError, OutOfMemory, TrainingDiverged
from flowers.evaluation.metrics import Counts, summarize
from flowers.plan import Plan
from flowers.training import checkpoints, failures
from flowers.training.batches import class_weights, epoch_batches, needed, share
from flowers.training.history import History
from flowers.training.inner import Outcome, read_outcome, write_outcome
from flowers.training.inputs import Inputs, Subset, read_subsets
from flowers.training.pace import Pace, steps_s
from flowers.training.phase import PreparedPhase, Worker, prepare_phase, standard_of
from flowers.training.schedule import learning_rate, phases
from flowers.training.step import Batches, Step


def train_loop(arguments: dict[str, Any]) -> FlowersError | None:
    """The function that Ray's `TensorflowTrainer` runs in each worker, or in the job itself.

    Args:
        arguments: `plan` (a `Plan`), `phases` (names of those to train), `classes` (names of the outputs, in order),
            `inner` (plans of its folds or trials: if there are any, these are trained and not the run itself), and
            `pace` (a `Pace`).

    Returns:
        What went wrong for good, such as `TrainingDiverged`: raised, Ray would start the workers again for it.
    """
    plan: Plan = arguments["plan"]
    inner: list[Plan] = arguments["inner"]
    context = ray.train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    if known := failures.noted(plan.run):
        return known
    training = plan
    try:
        if not plan.in_process:
            keep_to_own_gpus()
        if count > 1:
            tf.config.threading.set_intra_op_parallelism_threads(plan.worker_cpus)
        strategy = tf.distribute.MultiWorkerMirroredStrategy() if count > 1 else tf.distribute.get_strategy()
        worker = Worker(rank, count, strategy)
        if not inner:
            _train(plan, arguments["phases"], arguments["classes"], worker, arguments["pace"])
        for training in inner:
            if read_outcome(training.run) is None:
                history = _train(
                    training, arguments["phases"], arguments["classes"], worker, arguments["pace"], told=False
                )
                _conclude(training, history, arguments["classes"], worker)
    except TrainingDiverged as error:  # the loss is the same number on every worker: all of them end here
        return error
    except (FlowersError, tf.errors.ResourceExhaustedError) as error:
        failure = error if isinstance(error, FlowersError) else failures.out_of_memory(training, count)
        if plan.in_process:
            return failure
        if not isinstance(failure, OutOfMemory) or not failure.retry:
            failures.note(plan.run, failure)
        raise  # the others wait for this worker: Ray has to end them
    return None


def _train(
    plan: Plan, names: Sequence[str], classes: list[str], worker: Worker, pace: Pace, told: bool = True
) -> History:
    """Trains from where the run is to the end of the phases named.

    Ray is told of each epoch of the run itself, not of inner trainings.
    """
    history, found, _ = History.resume(plan.run, plan.config, pace)
    watch = Watch(history.spent_s)
    if worker.rank == 0:
        storage.sweep(plan.run.checkpoints)
        history.rewrite()
    train, validation = read_subsets(plan.run, classes)
    subsets = (
        train.only(needed(len(train.labels), plan.config.batch_size, worker.rank, worker.count)),
        validation.only(share(len(validation.labels), worker.rank, worker.count)),
    )
    del train, validation  # the photos of other workers
    standard = standard_of(found) if found else None
    while (phase := history.phase()) is not None and phase.name in names:
        prepared = prepare_phase(plan, phase, subsets, standard, len(classes), worker)
        if found and history.epoch > history.began:
            prepared.step.restore(found.arrays)
            watch = Watch(history.spent_s)  # what was prepared before it was killed counted then
        elif history.epoch:  # a new phase starts from the best head of the one before
            best = checkpoints.load(checkpoints.uri_of(plan.run.checkpoints, history.best))
            prepared.step.restore(best.arrays, "head")
        # The arrays of the checkpoint, some hundred MB, are not held while the phase trains.
        found, standard = None, prepared.standard
        while (now := history.phase()) is not None and now.name == phase.name:
            prepared = dataclasses.replace(prepared, phase=now)  # the epochs of its plan may have changed
            epoch = _epoch(plan, prepared, history, subsets, classes, worker, watch)
            if epoch is None:
                history.give_up(now)
                if worker.rank == 0:
                    history.amend()
                break
            prepared = dataclasses.replace(prepared, traced=True)
            line, counts, epoch_s = epoch
            history.add(line)
            if history.budget_s is not None:
                history.keep_pace(*_agreed(prepared.step, worker, watch.spent_s, epoch_s))
            uri = history.commit(prepared.arrays(counts)) if worker.rank == 0 else None
            if told:
                _report(history, uri)  # here workers wait for each other: the checkpoint is there for all of them
            else:
                _agreed(prepared.step, worker, 0.0)
    return history


class Watch:
    """Seconds that a training took: those that earlier processes noted, and those since this was made."""

    def __init__(self, spent_s: float = 0.0) -> None:
        self._before, self._began = spent_s, time.perf_counter()

    @property
    def spent_s(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._began


def _agreed(step: Step, worker: Worker, *values: float) -> list[float]:
    """The numbers of the first worker, for all of them: their clocks differ, what they decide may not."""
    return step.total(np.array(values if worker.rank == 0 else [0.0] * len(values))).tolist()


def _conclude(plan: Plan, history: History, classes: list[str], worker: Worker) -> None:
    """Keeps what a fold or a trial came to, with its best epoch on the photos that were held out, if there are any.

    These had no part in anything before.
    """
    line = history.lines[history.best - 1]
    (held,) = read_subsets(plan.run, classes, ["test"])
    counts = Counts.zero(len(classes))
    if len(held.labels):
        held = held.only(share(len(held.labels), worker.rank, worker.count))
        best = checkpoints.load(checkpoints.uri_of(plan.run.checkpoints, history.best))
        phase = next(phase for phase in phases(plan.config) if phase.name == line["phase"])
        prepared = prepare_phase(plan, phase, (held, held), standard_of(best), len(classes), worker)
        for kind in ("head", "tail"):
            prepared.step.restore(best.arrays, kind)
        counts = validate(prepared.step, history.best - 1, held, prepared.validation, len(classes), worker)
    if worker.rank == 0:
        write_outcome(plan.run, Outcome(line, counts.to_vector().tolist()))
        storage.delete(plan.run.checkpoints)


def _report(history: History, uri: str | None) -> None:
    """Tells Ray of an epoch, and where its checkpoint is."""
    known = ray.train.Checkpoint(*reversed(storage.resolve(uri))) if uri else None
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
    subsets: Sequence[Subset],
    classes: list[str],
    worker: Worker,
    watch: Watch,
) -> tuple[dict[str, Any], Counts, float] | None:
    """Trains one epoch and validates.

    Returns:
        Its line of metrics, the counts of the validation, and the seconds that an epoch takes once TensorFlow has
        traced it, 0.0 if that is not known yet. None if a deeper phase turns out, in its first epoch, not to fit into
        the time.
    """
    started = time.perf_counter()
    train, epoch = subsets[0], history.epoch
    order = epoch_batches(plan.config, epoch, len(train.labels), worker.rank, worker.count)
    per_epoch = len(order.indices)
    weights = class_weights(plan.config, train.labels, len(classes))[train.labels]
    begun = (epoch - history.began) * per_epoch
    rates = [learning_rate(plan.config, prepared.phase, begun + number, per_epoch) for number in range(per_epoch)]
    losses: list[npt.NDArray[np.float64]] = []
    done = 0
    may_not_fit = history.budget_s is not None and history.epoch == history.began > 0
    calls: list[tuple[int, float]] = []  # steps and seconds of each call that traced nothing
    began = started
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
        if prepared.traced or done > len(chunk):
            calls.append((len(chunk), time.perf_counter() - began))
        if may_not_fit and calls:
            expected = watch.spent_s + steps_s(calls, per_epoch - done)
            if _agreed(prepared.step, worker, expected)[0] > (history.budget_s or 0.0):
                return None
        began = time.perf_counter()
    trained = time.perf_counter()
    counts = validate(prepared.step, epoch, subsets[1], prepared.validation, len(classes), worker)
    epoch_s = steps_s(calls, per_epoch) + time.perf_counter() - trained if calls else 0.0
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
    return line, counts, epoch_s


def check_finite(losses: npt.NDArray[np.float64], batches: Batches, epoch: int) -> None:
    """Raises `TrainingDiverged` naming the first step with a loss that is not a finite number."""
    if not np.isfinite(losses).all():
        index = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise TrainingDiverged(
            f"the loss is {losses[index]} in step {batches.first + index + 1} (epoch {epoch + 1}), learning rate "
            f"{batches.rates[index]:g}; lower --learning-rate or --tail-learning-rate"
        )


def validate(step: Step, epoch: int, subset: Subset, inputs: Inputs, classes: int, worker: Worker) -> Counts:
    """Exact counts over all rows of a subset after an epoch, counted from 0; each worker has its share of them."""
    labels = subset.labels[subset.part]
    counts, done, wrong = Counts.zero(classes), 0, 0
    for chunk in inputs.rows():
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
