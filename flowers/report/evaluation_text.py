"""An evaluation as a short text for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowers.report.evaluation import EvaluationReport
from flowers.report.formatting import count, interval, number, percent, probability, summary_rows, value
from flowers.report.text import recall_by_class, unknown_text
from flowers.text import plain, several


def render_evaluation_text(report: EvaluationReport) -> Group:
    """The evaluation in about thirty terminal lines."""
    rows, summary, calibration = report.rows, report.summary, report.calibration
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "value", "95 %"):
        table.add_column(title, justify="right" if title == "value" else "left")
    for row in summary_rows(summary):
        table.add_row(row.name.lower(), value(row.metric, row.percent), interval(row.metric, row.percent))
    table.add_row("AUC, mean of classes", value(report.macro_auc, False), interval(report.macro_auc, False))
    table.add_row("calibration error", percent(calibration.error), "")
    parts: list[Table | Text] = [
        Text(
            f"{several(rows.found, 'file')} = {count(rows.evaluated)} evaluated + {count(rows.training)} trained on + "
            f"{count(rows.unknown)} of unknown labels + {count(rows.unusable)} unusable\n"
        ),
        table,
        *recall_by_class(summary, "evaluated"),
    ]
    lines = [f"{one.count} {one.true} taken for {one.predicted}" for one in summary.most_confused[:3]]
    if lines:
        parts += [Text(), Text(plain(f"most confused: {'; '.join(lines)}"))]
    fitted = f"not fitted: {calibration.why_not}"
    if calibration.temperature is not None:
        fitted = (
            f"{number(calibration.temperature, 2)}, fitted on {several(calibration.fitted_on, 'validation photo')}; "
            f"with it the calibration error is {percent(calibration.error_after)}"
        )
    parts.append(Text(plain(f"temperature: {fitted}")))
    for one in report.coverage:
        if one.score in (0.5, 0.9):
            said = f"{percent(one.coverage.value)} of photos, {value(one.accuracy, True)} of them right"
            parts.append(Text(f"scores from {one.score:g} on: {said} ({interval(one.accuracy, True)})"))
    if report.unknown is not None:
        parts += unknown_text(report.unknown, "evaluated")
    if compared := report.comparison:
        counts = compared.counts
        parts.append(
            Text(
                plain(
                    f"against {compared.baseline}, {several(counts.n, 'photo')}: {value(compared.accuracy, True)}, it "
                    f"has {value(compared.baseline_accuracy, True)}; difference {value(compared.difference, True)} "
                    f"({interval(compared.difference, True)}), {count(counts.gained)} better, {count(counts.lost)} "
                    f"worse, McNemar's p {probability(compared.p_value)}"
                )
            )
        )
    if report.unknown_labels:
        names = ", ".join(f"{name} ({count(number)})" for name, number in list(report.unknown_labels.items())[:5])
        parts.append(Text(plain(f"labels that the bundle does not know, left out: {names}")))
    parts += [Text(f"warning: {plain(text)}", style="bold") for text in report.warnings]
    return Group(*parts)
