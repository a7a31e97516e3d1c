"""Runs the training loop under Ray's `TensorflowTrainer`: in this process, or in N workers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
from ray.train.tensorflow import TensorflowTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from flowers import storage
from flowers.cluster.access import joined
from flowers.cluster.nodes import cluster_nodes
from flowers.errors import DamagedFile, FlowersError, OutOfMemory, ProcessLost
from flowers.plan import Plan, fewer_workers
from flowers.runs import Run
from flowers.training import checkpoints, failures
from flowers.training.history import History
from flowers.training.loop import train_loop
from flowers.training.pace import Pace
from flowers.training.rendezvous import RendezvousConfig

# Ray rewrites this file in place, and a run whose copy is cut short can never start again. Our own checkpoints
# say where to go on, so it is not kept from one attempt to the next.
_RAY_STATE = "checkpoint_manager_snapshot.json"
_AS_PLANNED = Pace()
_RAY_MARKER = ".validate_storage_marker"
# What Ray raises where nodes are missing, or are lost while workers start; so often they are started in all.
_NOT_STARTED, _STARTS = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError), 4
_ANOTHER_NODE_S = 60
# TensorFlow's words for an operation in which a worker waited for another one, in vain.
_WAITED = re.compile(r"\bCollective\w+V2\b|Collective ops is aborted")


class _Trainer(TensorflowTrainer):
    """Leaves out what costs a run seconds and gives it nothing, and leaves signals to the job.

    The workers read the caches themselves, so nobody asks the process that hands datasets out. On a Ray that is of this
    job alone, what a dead controller leaves ends with the job, and its cleaner would wait ten seconds at the end for a
    dashboard that is not there.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        """Does nothing: Ray's handler of Ctrl-C would exit with 0, and stays when the training has ended."""

    def _create_default_callbacks(self) -> list[Any]:
        left_out = {"DatasetsCallback"} | (set() if joined() else {"PlacementGroupCleanerCallback"})
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in left_out]


def prepare(plan: Plan, say: Callable[[str], None]) -> None:
    """Forgets what went wrong before, and takes out what will be trained again: half a checkpoint, lines of metrics.

    Args:
        plan: of the run.
        say: told of checkpoints that cannot be used, a line each.
    """
    failures.forget(plan.run)
    storage.sweep(plan.run.checkpoints)
    history, _, skipped = History.resume(plan.run, plan.config)
    for line in skipped:
        say(f"warning: {line}")
    history.rewrite()


def fit(
    plan: Plan,
    classes: tuple[str, ...],
    say: Callable[[str], None],
    inner: Sequence[Plan] = (),
    pace: Pace = _AS_PLANNED,
) -> None:
    """Trains, or goes on training, a run that `prepare` made ready; or its folds, or its trials.

    Args:
        plan: of the run. Its folder holds split.parquet; the caches hold the photos of the split.
        classes: names of the outputs, in order.
        say: told what the user should know, a line at a time.
        inner: trainings inside the run's folder (`flowers.training.inner`); those that are not done are trained, and
            not the run itself.
        pace: what a time limit leaves for each training, or how many epochs it has.

    Raises:
        FlowersError: what the training loop returned, or one line on why Ray gave up.
    """
    before = failures.microbatches(plan.run)
    failure = None
    for part, phases in _parts(plan, inner):
        failure = _persist(part, phases, classes, inner, pace, say)
        if failure is not None:
            break
    after, lost = failures.microbatches(plan.run), failures.losses(plan.run)
    if not plan.in_process and after > before:
        say(f"warning: a worker ran out of memory; photos went through the network in {after} parts a step")
    elif lost:
        say(f"warning: workers were lost; new ones went on from the newest checkpoint ({lost} x)")
    if failure is not None:
        raise failure
    failures.forget(plan.run)


def _parts(plan: Plan, inner: Sequence[Plan]) -> list[tuple[Plan, list[str]]]:
    """Who trains which phases, one after the other; folds and trials are trained as a whole."""
    phases = list(plan.config.phase_epochs)
    if not plan.head_alone or (inner and len(phases) > 1):
        return [(plan, phases)]
    rest = [(plan, phases)] if len(phases) > 1 else []
    return [(plan.alone(), ["head"]), *rest]


def _persist(
    plan: Plan,
    phases: list[str],
    classes: tuple[str, ...],
    inner: Sequence[Plan],
    pace: Pace,
    say: Callable[[str], None],
) -> FlowersError | None:
    """Attempts it until it is done, or until another attempt would end as the last one did."""
    starts = 1
    while True:
        failure = _attempt(plan, phases, classes, inner, pace)
        if isinstance(failure, OutOfMemory) and failure.retry:
            say(f"warning: {failure}")
            continue
        left = fewer_workers(plan, cluster_nodes()) if isinstance(failure, ProcessLost) and starts < _STARTS else None
        if left is None:
            return failure
        if left.workers < plan.workers:
            say(f"warning: the nodes that are left have room for {left.workers} of {plan.workers} workers; these go on")
        plan, starts = left, starts + 1


def _attempt(
    plan: Plan, phases: list[str], classes: tuple[str, ...], inner: Sequence[Plan], pace: Pace
) -> FlowersError | None:
    class Losses(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            failures.lose(plan.run)

    filesystem, folder = storage.resolve(storage.parent(plan.run.uri))
    storage.delete_file(storage.join(plan.run.uri, _RAY_STATE))
    # Ray's controller takes one report a poll, so its default would make every epoch last two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # So long workers wait for a node in place of a lost one, before fewer of them go on.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(max(_ANOTHER_NODE_S, plan.config.wait_s)))
    if plan.in_process:
        scaling = ray.train.ScalingConfig(num_workers=0)
    else:
        resources = {"CPU": plan.worker_cpus} | ({"GPU": plan.worker_gpus} if plan.worker_gpus else {})
        scaling = ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.worker_gpus > 0, resources_per_worker=resources
        )
    if not joined():  # one machine is not taken away in parts
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    trainer = _Trainer(
        train_loop,
        train_loop_config={
            "plan": plan,
            "phases": phases,
            "classes": list(classes),
            "inner": list(inner),
            "pace": pace,
        },
        tensorflow_config=RendezvousConfig(),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=plan.run.name,
            # Ray takes no checkpoint of another file system than its own, which would not ask a store again either.
            storage_filesystem=filesystem,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=plan.config.max_failures, controller_failure_limit=0),
            callbacks=[Losses()],
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        if noted := failures.noted(plan.run):
            raise noted from error
        if isinstance(error, ray.train.ControllerError) and isinstance(error.controller_failure, _NOT_STARTED):
            return ProcessLost(
                "training failed: the cluster did not start the workers: others use its CPUs or GPUs, or nodes were "
                "lost (python -m jobs.doctor looks); the same command goes on from the last finished epoch"
            )
        raise _cause(error) from error
    finally:
        storage.delete_file(storage.join(plan.run.uri, _RAY_MARKER))


def best(run: Run) -> tuple[checkpoints.Checkpoint, checkpoints.Checkpoint]:
    """The checkpoints of the best epoch and of the last one, which has the history.

    Raises:
        DamagedFile: there is none.
    """
    last, _ = checkpoints.newest(run.checkpoints)
    if last is None:
        raise DamagedFile(f"{run.checkpoints} holds no complete checkpoint; run the same command again")
    return checkpoints.load(checkpoints.uri_of(run.checkpoints, last.state["best"])), last


def _cause(error: Any) -> FlowersError:
    """What really happened, from under Ray's wrapping, in one line."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None), error]
    texts = [str(failure).strip() for failure in failures if failure]
    # A worker that waits for a lost one fails too, often before Ray knows of the loss: it is heard only when alone.
    text = next((text for text in texts if not _WAITED.search(text)), texts[0])
    if "low on memory" in text:
        what = "memory ran out and a worker was ended; lower --batch-size or --workers, or train less of the network"
    elif "worker process has died" in text or _WAITED.search(text):
        what = "a worker ended unexpectedly: it crashed, or was killed, perhaps because memory ran out"
    else:
        what = text.splitlines()[-1] if text else type(error).__name__
    return FlowersError(f"training failed: {what}; the same command goes on from the last finished epoch")
