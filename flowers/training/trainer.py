"""Runs the training loop under Ray's `TensorflowTrainer`: in this process, or in N workers."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy.typing as npt

from flowers import storage
from flowers.config import TrainConfig
from flowers.errors import DamagedFile, FlowersError
from flowers.training import checkpoints
from flowers.training.loop import train_loop

# Ray rewrites this file in place, and a run whose copy is cut short can never start again. Our own checkpoints
# say where to go on, so it is not kept from one attempt to the next.
_RAY_STATE = "checkpoint_manager_snapshot.json"


def fit(config: TrainConfig, run: str, cache: str, classes: tuple[str, ...]) -> None:
    """Trains, or goes on training, the run in the folder `run`.

    Args:
        config: of the run; `workers` 1 trains in this process.
        run: URI of the run folder, holding split.parquet.
        cache: URI of the feature cache, holding the photos of the split.
        classes: names of the outputs, in order.

    Raises:
        FlowersError: what the training loop returned, or one line on why Ray gave up.
    """
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    storage_path, name = run.rsplit("/", 1)
    filesystem, path = storage.resolve(storage.join(run, _RAY_STATE))
    if storage.exists(storage.join(run, _RAY_STATE)):
        filesystem.delete_file(path)
    # Ray's controller takes one report a poll, so its default would make every epoch last two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    in_process = config.workers == 1
    trainer = TensorflowTrainer(
        train_loop,
        train_loop_config={
            "run": run,
            "cache": cache,
            "classes": list(classes),
            "config": dataclasses.asdict(config),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=0 if in_process else config.workers),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=3, controller_failure_limit=3),
        ),
    )
    try:
        failure = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    if failure is not None:
        raise failure


def best_head(run: str) -> tuple[list[npt.NDArray[Any]], checkpoints.Checkpoint]:
    """The head's trained arrays of the best epoch, in order, and the last checkpoint (with the history).

    Raises:
        DamagedFile: the checkpoint of the best epoch is gone or damaged.
    """
    folder = storage.join(run, "checkpoints")
    last, _ = checkpoints.newest(folder)
    if last is None:
        raise DamagedFile(f"{folder} holds no complete checkpoint; run the same command again")
    best = checkpoints.load(storage.join(folder, f"epoch-{last.state['best']:04d}"))
    count = sum(name.startswith("head:") for name in best.arrays)
    return [best.arrays[f"head:{number}"] for number in range(count)], last


def _cause(error: Any) -> FlowersError:
    """What really happened, from under Ray's wrapping, in one line."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None), error]
    lines = [line for line in str(next(filter(None, failures))).strip().splitlines() if line.strip()]
    return FlowersError(f"training failed: {lines[-1] if lines else type(error).__name__}")
