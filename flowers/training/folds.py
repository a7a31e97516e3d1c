"""Folds: the run's training again on other splits of its photos, for an accuracy with a spread.

Each fold is a run inside the run's folder, trained by the same loop from the same caches; what was held out is measured
at its end, and an outcome that is written is not computed again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from flowers import storage
from flowers.evaluation.metrics import Counts
from flowers.plan import Plan
from flowers.runs import Run

_POLL_S = 0.25


@dataclass(frozen=True)
class Outcome:
    """What a fold came to.

    Attributes:
        epoch: the best one, chosen by its validation photos.
        held_out: `Counts.to_vector` of that epoch on the photos that were held out, float64 [K * K + 3 K].
    """

    epoch: int
    held_out: npt.NDArray[np.float64]


def write_outcome(run: Run, outcome: Outcome) -> None:
    """Writes the outcome of a fold: from here on it is done."""
    body = {name: np.asarray(value).tolist() for name, value in vars(outcome).items()}
    storage.write(run.outcome, json.dumps(body).encode())


def read_outcome(run: Run) -> Outcome | None:
    """The outcome of a fold; None if it is not done, or its file is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        body = json.loads(storage.read(run.outcome))
        return Outcome(int(body["epoch"]), np.array(body["held_out"]))
    return None


@dataclass(frozen=True)
class FoldCounts:
    """A fold that is done.

    Attributes:
        train: photos that it was trained on.
        validation: photos that chose its epoch.
        epoch: that they chose.
        held_out: counts of the photos that were held out.
    """

    train: int
    validation: int
    epoch: int
    held_out: Counts


def counts_of(folds: Sequence[Plan], splits: Sequence[pa.Table], classes: int) -> list[FoldCounts]:
    """What the folds that are done came to, in their order.

    Args:
        folds: what `plan_folds` returned.
        splits: that it was given.
        classes: number of outputs, K.
    """
    found = []
    for fold, split in zip(folds, splits, strict=True):
        outcome = read_outcome(fold.run)
        if outcome is not None:
            subsets = split["split"].to_pylist()
            held_out = Counts.from_vector(outcome.held_out, classes)
            found.append(FoldCounts(subsets.count("train"), subsets.count("validation"), outcome.epoch, held_out))
    return found


def plan_folds(plan: Plan, splits: Sequence[pa.Table]) -> list[Plan]:
    """Makes the folders of the folds ready: each has its split.parquet.

    Args:
        plan: of the run.
        splits: what `flowers.data.folds.fold_splits` returned.
    """
    plans = []
    for number, split in enumerate(splits, 1):
        run = plan.run.fold(number)
        storage.make_folder(run.uri)
        sink = io.BytesIO()
        pq.write_table(split, sink, compression="zstd")
        storage.write(run.split, sink.getvalue())
        # Photos that are streamed have cached outputs at the cut only where the run itself validates on them.
        streamed = plan.validation_streamed or plan.streamed
        plans.append(dataclasses.replace(plan, run=run, validation_streamed=streamed))
    return plans


@contextmanager
def follow_folds(folds: Sequence[Plan], classes: int, out: Console) -> Iterator[None]:
    """Prints a line when a fold is done.

    Args:
        folds: what `plan_folds` returned.
        classes: number of outputs, K.
        out: where it is printed.
    """
    done = threading.Event()
    waiting = {number: fold.run for number, fold in enumerate(folds, 1)}

    def look(show: bool = True) -> None:
        for number, run in list(waiting.items()):
            if storage.exists(run.outcome) and (outcome := read_outcome(run)) is not None:
                del waiting[number]
                counts = Counts.from_vector(outcome.held_out, classes)
                right = int(counts.confusion.diagonal().sum())
                text = f"fold {number} of {len(folds)}   held out: {right} of {counts.n} right, accuracy "
                if show:
                    out.print(f"{text}{right / counts.n:.4f}   log-loss {counts.log_loss.sum() / counts.n:.4f}")

    def poll() -> None:
        while not done.wait(_POLL_S):
            look()

    look(show=False)
    if known := len(folds) - len(waiting):
        out.print(f"going on after {known} of {len(folds)} folds")
    thread = threading.Thread(target=poll, name="follow folds", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()
