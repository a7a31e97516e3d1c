"""Makes the report of a run out of what its parts found."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flowers import runs, storage
from flowers.data.ledger import Ledger
from flowers.data.listing import Listing
from flowers.evaluation.evaluate import Evaluation
from flowers.evaluation.metrics import Counts, summarize
from flowers.features.extraction import Extraction
from flowers.plan import Plan
from flowers.report import findings
from flowers.report.record import (
    CrossValidation,
    DataUsed,
    EpochMetrics,
    FeatureUse,
    Fold,
    ImagesPerSecond,
    LimitedPhase,
    PhaseResult,
    Report,
    SplitCounts,
    Spread,
    StageSeconds,
    SubsetCounts,
    TimeLimit,
    TriedOptions,
)
from flowers.training.choice import monitored
from flowers.training.inner import FoldCounts
from flowers.training.search import Trial, best_of, changed

if TYPE_CHECKING:
    from flowers.training.best import BestModel

_SPREADS = ("accuracy", "macro_accuracy", "log_loss")


def build_report(
    command: str,
    plan: Plan,
    listing: Listing,
    extraction: Extraction,
    best: BestModel,
    evaluation: Evaluation,
    seconds: Mapping[str, float],
    folds: Sequence[FoldCounts] = (),
    trials: Sequence[Trial] = (),
) -> Report:
    """The report of a run that has just ended.

    Args:
        command: how the job was called.
        plan: of the run, with the options that were given.
        listing: its files.
        extraction: what became of them.
        best: the saved model.
        evaluation: of that model on the test photos.
        seconds: what `flowers.progress.Stopwatch.report` returned.
        folds: those that are done.
        trials: of a search, if there was one.
    """
    ledger, config = extraction.ledger, plan.config
    timing = StageSeconds.model_validate(seconds, extra="forbid")  # a new stage must not go missing
    reading = timing.read + timing.features
    history = [EpochMetrics.model_validate(line) for line in best.history]
    phases = phase_results(history, best.epoch)
    return Report(
        created=runs.now(),
        command=command,
        name=config.run_name(),
        sample=listing.drawn,
        data=_data(listing, ledger, config.max_pixels),
        split=_split(ledger),
        monitor=monitored(config.monitor, config.trainable != "head"),
        timing_s=timing,
        images_per_s=ImagesPerSecond(
            read=round(ledger.table.num_rows / reading, 1) if reading else None,
            features=round(extraction.computed / reading, 1) if extraction.computed and reading else None,
        ),
        features=FeatureUse(hits=extraction.hits, computed=extraction.computed, cache=plan.cache(plan.features[0])),
        trainable=config.trainable,
        augment=config.augmentation,
        cut=plan.cut,
        streamed=plan.streamed,
        workers=plan.workers,
        backbone=config.backbone,
        weights=config.weights,
        image_size=plan.image_size,
        precision=plan.precision,
        precision_reason=plan.precision_reason,
        seed=config.seed,
        warnings=ledger.warnings(),
        config=config.identity(),
        versions=best.versions,
        validation=best.validation,
        best_epoch=best.epoch,
        history=history,
        phases=phases,
        advice=advice(phases, config.monitor),
        weights_sha256=best.weights_sha256,
        bundle=best.bundle,
        test=evaluation.summary,
        predictions=evaluation.examples,
        calibration=evaluation.calibration,
        slices=evaluation.slices,
        galleries=evaluation.galleries,
        cells=evaluation.cells,
        cross_validation=cross_validation(folds, ledger.classes) if len(folds) > 1 else None,
        search=_tried(plan, trials),
        time_limit=_time_limit(plan, best),
        unknown=evaluation.unknown,
    )


def _tried(plan: Plan, trials: Sequence[Trial]) -> list[TriedOptions]:
    chosen = best_of(trials, plan.config.monitor) if trials else None
    return [
        TriedOptions(
            options=changed(plan.config, trial.config),
            best_epoch=trial.epoch,
            val_accuracy=trial.val_accuracy,
            val_log_loss=trial.val_log_loss,
            chosen=trial is chosen,
        )
        for trial in trials
    ]


def _time_limit(plan: Plan, best: BestModel) -> TimeLimit | None:
    """What --time-limit came to; a phase of which nothing was planned began too late."""
    config = plan.config
    if config.limit_s is None or best.pace.budget_s is None:
        return None
    wanted, planned = config.phase_epochs, best.pace.planned
    phases = [LimitedPhase(name=name, most=most, fit=planned.get(name, most)) for name, most in wanted.items()]
    training, used = round(best.pace.budget_s, 2), round(best.spent_s, 2)
    return TimeLimit(limit=config.limit_s, training=training, used=used, phases=phases)


def cross_validation(folds: Sequence[FoldCounts], classes: Sequence[str]) -> CrossValidation:
    """What the folds say together; there are two or more of them."""
    found, total = [], Counts.zero(len(classes))
    for fold in folds:
        total += fold.held_out
        summary = summarize(fold.held_out, classes)
        found.append(
            Fold(
                train=fold.train,
                validation=fold.validation,
                held_out=fold.held_out.n,
                best_epoch=fold.epoch,
                **{name: getattr(summary, name).value for name in _SPREADS},
            )
        )
    return CrossValidation(
        folds=found,
        **{name: _spread([getattr(fold, name) for fold in found]) for name in _SPREADS},
        held_out=summarize(total, classes),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=statistics.fmean(values), sd=statistics.stdev(values), low=min(values), high=max(values))


def phase_results(history: Sequence[EpochMetrics], best_epoch: int) -> list[PhaseResult]:
    """What each phase reached: the best of its epochs in each metric, which may be two epochs."""
    found = []
    for name, lines in itertools.groupby(history, key=lambda line: line.phase or "head"):
        epochs = list(lines)
        found.append(
            PhaseResult(
                name=name,
                epochs=len(epochs),
                val_accuracy=max((line.val_accuracy for line in epochs if line.val_accuracy is not None), default=None),
                val_log_loss=min((line.val_log_loss for line in epochs if line.val_log_loss is not None), default=None),
                kept=any(line.epoch == best_epoch for line in epochs),
            )
        )
    return found


def advice(phases: Sequence[PhaseResult], monitor: str | None) -> str:
    """A line for the user whose deeper training was not kept; "" for all others.

    Args:
        phases: what each reached.
        monitor: the metric that was asked for.
    """
    if len(phases) < 2 or phases[-1].kept:
        return ""
    head, deeper = phases[0], phases[-1]
    missed = {"accuracy": "a higher accuracy", None: "a higher accuracy at no worse log-loss"}.get(
        monitor, f"a better {str(monitor).replace('_', '-')} at no less accuracy"
    )
    said = f"training deeper did not pay: no epoch of it had {missed} than the head, which was kept"
    if monitor != "accuracy" and (deeper.val_accuracy or 0) > (head.val_accuracy or 0):
        return f"{said}; --monitor accuracy keeps the epoch that is right more often, with scores that are less sure"
    return f"{said}; try more photos, --augment standard, another depth, or --trainable head, which takes less time"


def _data(listing: Listing, ledger: Ledger, max_pixels: int) -> DataUsed:
    near = ledger.near_duplicates()
    return DataUsed(
        source=listing.source,
        listed=listing.listed,
        found=ledger.table.num_rows,
        used=ledger.used().num_rows,
        quarantined=ledger.counts().get("quarantined", 0),
        reasons=ledger.reasons(),
        classes=list(ledger.classes),
        per_class={label: sum(subsets.values()) for label, subsets in ledger.per_class().items()},
        notes=list(listing.notes),
        near_duplicates=sum(map(len, near)),
        near_groups=len(near),
        near_examples=[[storage.relative(path, listing.source) for path in group[:3]] for group in near[:3]],
        left_out=findings.left_out(ledger.table, max_pixels, listing.source),
        near=findings.near_duplicates(ledger, max_pixels, listing.source),
        decisions=ledger.decisions(),
    )


def _split(ledger: Ledger) -> SplitCounts:
    counts = ledger.counts()
    return SplitCounts(
        train=counts.get("train", 0),
        validation=counts.get("validation", 0),
        test=counts.get("test", 0),
        per_class={label: SubsetCounts.model_validate(subsets) for label, subsets in ledger.per_class().items()},
        sha256=runs.split_sha256(ledger),
    )
