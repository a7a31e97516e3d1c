"""The report as a short text for the terminal."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowers.evaluation.metrics import ClassSummary, Summary
from flowers.evaluation.unknown import Unknown
from flowers.report.formatting import (
    LARGE,
    count,
    folds_said,
    held_out,
    interval,
    limit_said,
    metric_rows,
    number,
    percent,
    search_rows,
    spread_rows,
    time_parts,
    unknown_lines,
    value,
)
from flowers.report.record import CrossValidation, Report
from flowers.text import plain, several


def render_text(report: Report) -> Group:
    """The report in about twenty terminal lines of at most 80 columns; print it with a rich console."""
    name, held = held_out(report)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("test", "95 %", "validation", "95 %"):
        table.add_column(title, justify="right" if title != "95 %" else "left")
    for row in metric_rows(report):
        if row.headline:
            pairs = [f(metric, row.percent) for metric in (row.test, row.validation) for f in (value, interval)]
            table.add_row(row.name.lower(), *pairs)
    table.add_row("photos", count(report.test.n), "", count(report.validation.n), "")
    parts: list[Table | Text] = [table]

    if report.cross_validation:
        parts += _folds(report, report.cross_validation)
    parts += recall_by_class(held, name)

    if len(report.phases) > 1:
        parts += [Text("\nphases, best on validation photos", style="bold"), _phases(report)]

    if report.search:
        parts += [Text(f"\nsearch, {len(report.search)} trainings on validation photos", style="bold"), _search(report)]

    if report.unknown is not None:
        parts += unknown_text(report.unknown, "test")
    if report.predictions:
        parts.append(Text("\npredictions", style="bold"))
    for example in report.predictions:
        label, predicted = (_cut(plain(name), 20) for name in (example.label, example.predicted))
        rest = f" | original: {label} | predicted: {predicted} ({number(example.score, 2)})"
        path = _cut(plain(example.path), 80 - cell_len(rest), keep_end=True)
        parts.append(Text(path + rest, style="" if example.right else "bold"))

    steps = [
        f"{part.name} {part.seconds:.1f} s" + (f" ({part.rate:.0f} images/s)" if part.rate is not None else "")
        for part in time_parts(report)
    ]
    parts.append(Text("\nwhere the time went", style="bold"))
    parts.append(Text(f"{report.timing_s.total:.1f} s: {', '.join(steps)}"))
    if report.time_limit:
        parts.append(Text(limit_said(report)))
    if report.advice:
        parts.append(Text(report.advice, style="bold"))
    parts += [Text(f"warning: {plain(text)}", style="bold") for text in report.warnings]
    if report.sample:
        parts.append(Text("sample run: drawn pictures, random weights; accuracy says nothing about flowers"))
    return Group(*parts)


def recall_by_class(summary: Summary, name: str) -> list[Table | Text]:
    """Recall of each class, the worst first; of many classes only these."""
    classes = sorted(summary.per_class.items(), key=lambda item: _worst_first(item[1]))
    few = len(classes) > LARGE
    title = f"recall by class, {name} photos" + (f", lowest {LARGE} of {len(classes)}" if few else "")
    recall = Table.grid(padding=(0, 2, 0, 2))
    for label, m in classes[:LARGE]:
        numbers = value(m.recall, True), interval(m.recall, True), f"n = {count(m.n)}"
        recall.add_row(Text(_cut(plain(label), 36)), *numbers)
    return [Text(f"\n{title}", style="bold"), recall]


def _folds(report: Report, found: CrossValidation) -> list[Table | Text]:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("mean", "± sd", "lowest–highest", "all held out", "95 %"):
        table.add_column(title, justify="right" if title in ("mean", "± sd", "all held out") else "left")
    for row in spread_rows(found):
        table.add_row(
            row.name.lower(),
            row.mean,
            row.sd,
            row.range,
            value(row.metric, row.percent),
            interval(row.metric, row.percent),
        )
    return [Text(f"\n{len(found.folds)} folds, photos held out", style="bold"), table, Text(folds_said(report))]


def _search(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 2))
    for options, epoch, accuracy, loss, chosen in search_rows(report):
        reached = f"accuracy {accuracy}", f"log-loss {loss}", f"epoch {epoch}"
        grid.add_row(*reached, f"{options} (chosen)" if chosen else options)
    return grid


def unknown_text(unknown: Unknown, name: str) -> list[Table | Text]:
    """How photos of other things are told."""
    title = Text(f"\nnone of the classes, with --unknown {unknown.allowed:.3g}", style="bold")
    return [title, *(Text(f"  {line}") for line in unknown_lines(unknown, name))]


def _phases(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 2))
    for phase in report.phases:
        reached = f"accuracy {percent(phase.val_accuracy)}", f"log-loss {number(phase.val_log_loss, 3)}"
        kept = f"kept: epoch {report.best_epoch}" if phase.kept else ""
        grid.add_row(phase.name, several(phase.epochs, "epoch"), *reached, kept)
    return grid


def _worst_first(metrics: ClassSummary) -> float:
    return 2.0 if metrics.recall.value is None else metrics.recall.value


def _cut(text: str, width: int, keep_end: bool = False) -> str:
    """Text of at most `width` terminal cells, an ellipsis in place of what was cut off."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[1:] if keep_end else text[:-1]
    return "…" + text if keep_end else text + "…"
