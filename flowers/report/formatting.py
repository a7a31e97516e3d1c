"""The words and numbers of a report, the same on its page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flowers.evaluation.metrics import Metric, Summary
from flowers.report.record import Report

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


def value(metric: Metric, as_percent: bool) -> str:
    """The value of a metric."""
    return percent(metric.value) if as_percent else number(metric.value, 3)


def interval(metric: Metric, as_percent: bool) -> str:
    """The 95 % interval of a metric."""
    if metric.low is None or metric.high is None:
        return "–"
    if as_percent:
        return f"{100 * metric.low:.1f}–{100 * metric.high:.1f} %"
    return f"{metric.low:.3f}–{metric.high:.3f}"


def held_out(report: Report) -> tuple[str, Summary]:
    """The set to report on: the test photos, or the validation photos when there are none."""
    return ("validation", report.validation) if report.validation.n and not report.test.n else ("test", report.test)


def metric_rows(report: Report) -> list[MetricRow]:
    """Rows of the table of metrics."""
    test, validation, (_, held) = report.test, report.validation, held_out(report)

    def row(name: str, metric: Callable[[Summary], Metric], percent: bool = True, headline: bool = True) -> MetricRow:
        return MetricRow(name, percent, headline, metric(test), metric(validation), metric(held))

    def top(k: int) -> MetricRow:
        return row(f"Top-{k} accuracy", lambda summary: summary.top_k[k], headline=False)

    return [
        row("Accuracy", lambda summary: summary.accuracy),
        row("Macro accuracy", lambda summary: summary.macro_accuracy),
        row("Macro F1", lambda summary: summary.macro_f1),
        *map(top, held.top_k),
        row("Log-loss", lambda summary: summary.log_loss, percent=False),
        row("Log-loss reduction", lambda summary: summary.log_loss_reduction, percent=False, headline=False),
    ]


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
