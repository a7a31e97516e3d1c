"""The trainings of a job: how much time each has, those of a search, the run's own, and its folds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console

from flowers import storage
from flowers.config import TrainConfig
from flowers.data import reading
from flowers.data.ledger import Ledger
from flowers.data.listing import listing_of
from flowers.evaluation.metrics import Counts
from flowers.plan import Plan
from flowers.progress import Stopwatch, warn
from flowers.training.inner import FoldCounts, Outcome, fold_counts, follow_inner, plan_fold, plan_trial, trial_of
from flowers.training.pace import Pace, seconds_to_finish
from flowers.training.search import Trial, best_of, changes, most_trials, others, searched

if TYPE_CHECKING:
    from flowers.training.best import BestModel

# Photos on which a saved network is compared with the trained one, beside the pictures of `check_pictures`.
_SAMPLE = 28


def budget_of(plan: Plan, ledger: Ledger, stopwatch: Stopwatch, out: Console) -> float | None:
    """Seconds for each training: of the run, of its folds and trials if it has any; None without --time-limit.

    A run that goes on has the time that it began with.
    """
    config, seconds = plan.config, stopwatch.seconds
    if config.limit_s is None:
        return None
    noted = plan.run.note("budget")
    with suppress(OSError, ValueError):
        budget = float(storage.read(noted))
        out.print(
            f"  time      --time-limit {config.time_limit}: {budget:.0f} s a training, as it began", highlight=False
        )
        return budget
    photo_s = (seconds["read"] + seconds["features"]) / ledger.table.num_rows
    kept = seconds_to_finish(seconds["start"], photo_s, ledger.counts().get("test", 0))
    kept += 0.0 if plan.in_process else 0.5 * seconds["start"]  # workers start as this process did
    left = max(0.0, config.limit_s - stopwatch.elapsed - kept)
    trainings = 1 + (config.folds or 0) + (most_trials(config) if config.search else 0)
    each = f", {trainings} of them" if trainings > 1 else ""
    out.print(
        f"  time      --time-limit {config.time_limit}: {stopwatch.elapsed:.0f} s until here, {kept:.0f} s kept for "
        f"what is around training, {left:.0f} s for training{each}",
        highlight=False,
    )
    if not left:
        warn("nothing of the --time-limit is left for training: one epoch of the head is trained all the same", out)
    storage.write(noted, repr(left / trainings).encode())
    return left / trainings


def fit(
    plan: Plan,
    ledger: Ledger,
    network: Callable[[], Any],
    budget: float | None,
    stopwatch: Stopwatch,
    out: Console,
) -> BestModel:
    """Trains, and saves the model of the best epoch. What it imports runs on TensorFlow, which is there by now."""
    from flowers.training import trainer
    from flowers.training.best import save_best
    from flowers.training.contact_sheet import write_sheet
    from flowers.training.progress import follow

    config = plan.config
    if config.augmentation != "none":
        write_sheet(plan, ledger)
    say = functools.partial(_tell, out)
    trainer.prepare(plan, say)
    with follow(plan.run, out, config.monitor):
        trainer.fit(plan, ledger.classes, say, pace=Pace(budget))
    stopwatch.lap("train")
    best = save_best(plan, ledger, network(), _sample(plan, ledger))
    if best.precision != plan.precision:
        say(f"  bundle    {best.precision}: in {plan.precision} its scores are too far from those of Keras in float32")
    stopwatch.lap("save")
    return best


def search(
    plan: Plan, ledger: Ledger, budget: float | None, stopwatch: Stopwatch, out: Console
) -> tuple[Plan, list[Trial]]:
    """Tries other values of some options; returns the plan with the best ones, and all that was tried."""
    from flowers.training import trainer

    split, given = ledger.split(), plan.config
    tried, best = list[Trial](), given
    for name in searched(given):
        configs = [*([] if tried else [given]), *others(best, name)]
        trials = [plan_trial(plan, number, config, split) for number, config in enumerate(configs, len(tried) + 1)]

        def said(place: int, outcome: Outcome, configs: list[TrainConfig] = configs, first: int = len(tried)) -> None:
            line, changed = outcome.line, changes(given, configs[place])
            out.print(
                f"trial {first + place + 1} of {most_trials(given)}   validation: accuracy "
                f"{line['val_accuracy']:.4f}  log-loss {line['val_log_loss']:.4f}   {changed or 'as given'}",
                highlight=False,
            )

        with follow_inner(trials, said):
            trainer.fit(plan, ledger.classes, functools.partial(_tell, out), trials, Pace(budget))
        tried += [trial_of(trial) for trial in trials]
        best = best_of(tried, given.monitor).config
    stopwatch.lap("search")
    out.print(f"  search    {changes(given, best) or 'nothing is better than the options given'}", highlight=False)
    return dataclasses.replace(plan, config=best), tried


def cross_validate(
    plan: Plan, ledger: Ledger, splits: list[pa.Table], best: BestModel, stopwatch: Stopwatch, out: Console
) -> list[FoldCounts]:
    """Trains the folds that are not done yet, in as many epochs as the run has; returns what they came to.

    With a time limit a fold begins only if none before it took longer than what is left.
    """
    from flowers.training import trainer

    limit_s, classes = plan.config.limit_s, len(ledger.classes)
    folds = [plan_fold(plan, number, split) for number, split in enumerate(splits, 1)]

    def said(place: int, outcome: Outcome) -> None:
        counts = Counts.from_vector(outcome.held_out, classes)
        right = int(counts.confusion.diagonal().sum())
        out.print(
            f"fold {place + 1} of {len(folds)}   held out: {right} of {counts.n} right, accuracy "
            f"{right / counts.n:.4f}  log-loss {counts.log_loss.sum() / counts.n:.4f}",
            highlight=False,
        )

    with follow_inner(folds, said):
        longest = stopwatch.seconds["train"]
        for part in [[fold] for fold in folds] if limit_s else [folds]:
            began = stopwatch.elapsed
            if limit_s and began + longest > limit_s:
                break
            trainer.fit(plan, ledger.classes, functools.partial(_tell, out), part, Pace(None, best.pace.planned))
            longest = max(longest, stopwatch.elapsed - began)
    stopwatch.lap("folds")
    counts = [fold_counts(fold, split, classes) for fold, split in zip(folds, splits, strict=True)]
    found = [one for one in counts if one is not None]
    if len(found) < len(folds):
        warn(f"{len(found)} of {len(folds)} folds fit into --time-limit {plan.config.time_limit}", out)
    return found


def _tell(out: Console, text: str) -> None:
    out.print(text, highlight=False, markup=False)


def _sample(plan: Plan, ledger: Ledger) -> npt.NDArray[np.uint8]:
    """Some decoded photos that were not trained on, of all classes: uint8 [n, size, size, 3]."""
    rows = listing_of(ledger.subset("test" if ledger.counts().get("test") else "validation"))
    rows = rows.take(np.unique(np.linspace(0, rows.num_rows - 1, _SAMPLE).round().astype(np.int64)))
    block = reading.decode_block(reading.read_block(rows), size=plan.image_size, max_pixels=plan.config.max_pixels)
    shape = (-1, plan.image_size, plan.image_size, 3)
    return np.frombuffer(b"".join(block["pixels"].drop_null().to_pylist()), np.uint8).reshape(shape)
