"""Inner trainings: the folds of a run, and the trials of a search, each a run inside the run's folder.

The same loop trains them from the same caches; an outcome that is written is not computed again.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowers import storage
from flowers.config import TrainConfig
from flowers.errors import DamagedFile
from flowers.evaluation.metrics import Counts
from flowers.plan import Plan
from flowers.progress import polled
from flowers.runs import Run
from flowers.training.search import Trial


@dataclass(frozen=True)
class Outcome:
    """What an inner training came to.

    Attributes:
        line: of metrics, of its best epoch.
        held_out: `Counts.to_vector` of that epoch on the photos that were held out, [K * K + 3 K].
    """

    line: dict[str, Any]
    held_out: list[float]


def write_outcome(run: Run, outcome: Outcome) -> None:
    """Writes the outcome: from here on the training is done."""
    storage.write(run.outcome, json.dumps(vars(outcome)).encode())


def read_outcome(run: Run) -> Outcome | None:
    """The outcome; None if the training is not done, or the file is damaged."""
    with suppress(OSError, ValueError, TypeError):
        return Outcome(**json.loads(storage.read(run.outcome)))
    return None


def plan_fold(plan: Plan, number: int, split: pa.Table) -> Plan:
    """The plan of a fold, whose folder has its split.parquet.

    Args:
        plan: of the run.
        number: of the fold, from 1.
        split: one of what `flowers.data.folds.fold_splits` returned.
    """
    # Photos that are streamed have cached outputs at the cut only where the run itself validates on them.
    streamed = plan.validation_streamed or plan.streamed
    return _planned(dataclasses.replace(plan, run=plan.run.fold(number), validation_streamed=streamed), split)


def plan_trial(plan: Plan, number: int, config: TrainConfig, split: pa.Table) -> Plan:
    """The plan of a trial, which has the run's training and validation photos; test photos choose nothing.

    Args:
        plan: of the run.
        number: of the trial, from 1.
        config: what is tried.
        split: `Ledger.split` of the run.
    """
    seen = split.filter(pc.not_equal(split["split"], "test"))
    return _planned(dataclasses.replace(plan, run=plan.run.trial(number), config=config), seen)


def _planned(plan: Plan, split: pa.Table) -> Plan:
    storage.make_folder(plan.run.uri)
    sink = io.BytesIO()
    pq.write_table(split, sink, compression="zstd")
    storage.write(plan.run.split, sink.getvalue())
    return plan


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


def fold_counts(fold: Plan, split: pa.Table, classes: int) -> FoldCounts | None:
    """What a fold came to; None if it is not done.

    Args:
        fold: what `plan_fold` returned.
        split: that it was given.
        classes: number of outputs, K.
    """
    outcome = read_outcome(fold.run)
    if outcome is None:
        return None
    subsets = split["split"].to_pylist()
    held_out = Counts.from_vector(outcome.held_out, classes)
    return FoldCounts(subsets.count("train"), subsets.count("validation"), outcome.line["epoch"], held_out)


def trial_of(plan: Plan) -> Trial:
    """What a trial came to.

    Raises:
        DamagedFile: it is not done, or its outcome cannot be read.
    """
    outcome = read_outcome(plan.run)
    if outcome is None:
        raise DamagedFile(f"{plan.run.outcome} is missing or damaged; run the same command again")
    line = outcome.line
    return Trial(plan.config, line["epoch"], line["val_accuracy"], line["val_macro_accuracy"], line["val_log_loss"])


@contextmanager
def follow_inner(inner: Sequence[Plan], said: Callable[[int, Outcome], None]) -> Iterator[None]:
    """Says of each training when it is done; of those that are done already nothing.

    Args:
        inner: the trainings.
        said: takes the place of a training among them, and its outcome.
    """
    waiting = {number: plan.run for number, plan in enumerate(inner) if read_outcome(plan.run) is None}

    def look() -> None:
        for number, run in list(waiting.items()):
            if storage.exists(run.outcome) and (outcome := read_outcome(run)) is not None:
                del waiting[number]
                said(number, outcome)

    with polled(look, "follow inner trainings"):
        yield
