"""The words and numbers of a report, the same on its page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flowers.evaluation.metrics import Metric, Summary
from flowers.evaluation.unknown import Unknown
from flowers.options import flag
from flowers.report.record import CrossValidation, Report, Spread

LARGE = 12
"""Above this many classes the tables scroll inside the page and the terminal lists the worst only."""


@dataclass(frozen=True)
class MetricRow:
    """A row of the table of metrics.

    Attributes:
        name: of the metric.
        percent: whether it is a share.
        headline: whether it is one of the few that are shown first.
        test: the metric of the test photos.
        validation: of the validation photos.
        held: of the set to report on.
    """

    name: str
    percent: bool
    headline: bool
    test: Metric
    validation: Metric
    held: Metric


@dataclass(frozen=True)
class TimePart:
    """A stage's seconds, its share of the total, and its images a second if it has a speed."""

    name: str
    seconds: float
    share: float
    rate: float | None


def number(x: float | None, digits: int) -> str:
    """A number with so many digits, a dash where there is none."""
    return "–" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def percent(x: float | None) -> str:
    """A fraction as per cent."""
    return "–" if x is None else f"{number(100 * x, 1)} %"


def count(x: int) -> str:
    """A whole number with thousands separated."""
    return f"{x:,}"


def short(x: float | None) -> str:
    """At most four digits, or a whole number: for rates and histories of any magnitude."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def probability(p: float) -> str:
    """A p-value, as "= 0.012" or "< 0.001"."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def value(metric: Metric, as_percent: bool) -> str:
    """The value of a metric."""
    return percent(metric.value) if as_percent else number(metric.value, 3)


def interval(metric: Metric, as_percent: bool) -> str:
    """The 95 % interval of a metric."""
    if metric.low is None or metric.high is None:
        return "–"
    between = " to " if metric.low < 0 else "–"
    if as_percent:
        return f"{100 * metric.low:.1f}{between}{100 * metric.high:.1f} %"
    return f"{metric.low:.3f}{between}{metric.high:.3f}"


def unknown_lines(unknown: Unknown, name: str) -> list[str]:
    """What is said of photos that are none of the classes.

    Args:
        unknown: what was measured.
        name: of the photos of the classes, "test".
    """
    found = {f"{name} photos": unknown.rejected, **unknown.detected}
    lines = [
        f"{value(share, True)} of {count(share.n)} {what} get no label ({interval(share, True)})"
        for what, share in found.items()
    ]
    right, shown = unknown.accuracy, f"{name} photos with a label"
    return [*lines, f"{value(right, True)} of {count(right.n)} {shown} are right ({interval(right, True)})"]


def held_out(report: Report) -> tuple[str, Summary]:
    """The set to report on: the test photos, or the validation photos when there are none."""
    return ("validation", report.validation) if report.validation.n and not report.test.n else ("test", report.test)


@dataclass(frozen=True)
class SummaryRow:
    """A row of the metrics of one set of photos; see `MetricRow`."""

    name: str
    percent: bool
    headline: bool
    metric: Metric


def summary_rows(summary: Summary) -> list[SummaryRow]:
    """Rows of the table of metrics of one set of photos."""
    return [SummaryRow(name, percent, headline, get(summary)) for name, get, percent, headline in _kinds(summary)]


def _kinds(summary: Summary) -> list[tuple[str, Callable[[Summary], Metric], bool, bool]]:
    """Name of each metric, how it is had, whether it is a share, and one of the few that are shown first."""

    def top(k: int) -> tuple[str, Callable[[Summary], Metric], bool, bool]:
        return f"Top-{k} accuracy", lambda summary: summary.top_k[k], True, False

    return [
        ("Accuracy", lambda summary: summary.accuracy, True, True),
        ("Macro accuracy", lambda summary: summary.macro_accuracy, True, True),
        ("Macro F1", lambda summary: summary.macro_f1, True, True),
        *map(top, summary.top_k),
        ("Log-loss", lambda summary: summary.log_loss, False, True),
        ("Log-loss reduction", lambda summary: summary.log_loss_reduction, False, False),
    ]


def metric_rows(report: Report) -> list[MetricRow]:
    """Rows of the table of metrics."""
    test, validation, (_, held) = report.test, report.validation, held_out(report)
    return [
        MetricRow(name, percent, headline, get(test), get(validation), get(held))
        for name, get, percent, headline in _kinds(held)
    ]


@dataclass(frozen=True)
class SpreadRow:
    """A row of the table of folds: a metric over the folds, and of all photos together."""

    name: str
    percent: bool
    spread: Spread
    metric: Metric

    @property
    def mean(self) -> str:
        """Mean over the folds."""
        return _plain(self.spread.mean, self.percent)

    @property
    def sd(self) -> str:
        """Their standard deviation."""
        return _plain(self.spread.sd, self.percent)

    @property
    def range(self) -> str:
        """The least and the largest value."""
        return f"{_plain(self.spread.low, self.percent)}–{_plain(self.spread.high, self.percent)}"


def spread_rows(found: CrossValidation) -> list[SpreadRow]:
    """Rows of the table of folds."""
    return [
        SpreadRow("Accuracy", True, found.accuracy, found.held_out.accuracy),
        SpreadRow("Macro accuracy", True, found.macro_accuracy, found.held_out.macro_accuracy),
        SpreadRow("Log-loss", False, found.log_loss, found.held_out.log_loss),
    ]


def search_rows(report: Report) -> list[tuple[str, str, str, str, bool]]:
    """Rows of the table of a search: options, best epoch, accuracy, log-loss, and whether they were chosen."""
    return [
        (
            " ".join(f"{flag(name)} {value:g}" for name, value in tried.options.items()) or "as given",
            count(tried.best_epoch),
            percent(tried.val_accuracy),
            number(tried.val_log_loss, 3),
            tried.chosen,
        )
        for tried in report.search
    ]


def folds_said(report: Report) -> str:
    """What the folds are, in a sentence; "" if there are none."""
    found = report.cross_validation
    if found is None:
        return ""
    least = min(fold.train for fold in found.folds)
    return (
        f"the same training {len(found.folds)} times more, each time with other photos held out: "
        f"{count(found.held_out.n)} photos, all but the test photos, each judged once by a training on {count(least)} "
        f"or more others{'; the options were chosen with these photos before' if report.search else ''}"
    )


def limit_said(report: Report) -> str:
    """What --time-limit came to, in a line; "" without one."""
    limit = report.time_limit
    if limit is None:
        return ""
    said = (
        f"time limit {limit.limit:.0f} s: {limit.training:.0f} s of it for this training, which took {limit.used:.0f} s"
    )
    for phase in limit.phases:
        said += (
            f"; {phase.name}: {phase.fit} of {phase.most} epochs fit" if phase.fit else f"; {phase.name}: no epoch fits"
        )
    if (over := report.timing_s.total - limit.limit) > 1:
        said += f"; the job took {over:.0f} s longer than that"
    return said


def _plain(x: float, as_percent: bool) -> str:
    return percent(x) if as_percent else number(x, 3)


def time_parts(report: Report) -> list[TimePart]:
    """Seconds by stage with shares of the total; what no stage accounts for is "other"."""
    timing, speed = report.timing_s, report.images_per_s
    stages = timing.stages()
    known = sum(seconds for _, seconds in stages)
    total = max(timing.total, known)
    if total <= 0:
        return []
    if (other := total - known) > 0.005 * total:
        stages.append(("other", other))
    rates = {"read": speed.read, "features": speed.features}
    return [TimePart(name, seconds, seconds / total, rates.get(name)) for name, seconds in stages]
