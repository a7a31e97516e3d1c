"""The report as a short text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowers.report.formatting import (
    LARGE,
    Report,
    count,
    held_out,
    interval,
    metric_rows,
    number,
    timing_parts,
    value,
)


def summary(report: Report) -> Group:
    """The report in about twenty terminal lines of at most 80 columns; print it with a rich console."""
    name, held = held_out(report)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("test", "95 %", "validation", "95 %"):
        table.add_column(title, justify="right" if title != "95 %" else "left")
    for row in metric_rows(report):
        if row["key"] in ("accuracy", "macro_accuracy", "macro_f1", "log_loss"):
            pairs = [f(row[s], row["percent"]) for s in ("test", "validation") for f in (value, interval)]
            table.add_row(row["name"].lower(), *pairs)
    photos = [count((report.get(s) or {}).get("n")) for s in ("test", "validation")]
    table.add_row("photos", photos[0], "", photos[1], "")
    parts: list[Table | Text] = [table]

    classes = sorted((held.get("per_class") or {}).items(), key=lambda item: _worst_first(item[1]))
    if classes:
        few = len(classes) > LARGE
        title = f"recall by class, {name} photos" + (f", lowest {LARGE} of {len(classes)}" if few else "")
        recall = Table.grid(padding=(0, 2, 0, 2))
        for label, m in classes[:LARGE]:
            numbers = value(m["recall"], True), interval(m["recall"], True), f"n = {count(m['n'])}"
            recall.add_row(Text(_cut(_plain(label), 36)), *numbers)
        parts += [Text(f"\n{title}", style="bold"), recall]

    if predictions := report.get("predictions"):
        parts.append(Text("\npredictions", style="bold"))
    for p in predictions or ():
        right = p["label"] == p["predicted"]
        label, predicted = (_cut(_plain(p[key]), 20) for key in ("label", "predicted"))
        rest = f" | original: {label} | predicted: {predicted} ({number(p['score'], 2)})"
        path = _cut(_plain(p["path"]), 80 - cell_len(rest), keep_end=True)
        parts.append(Text(path + rest, style="" if right else "bold"))

    if timing := timing_parts(report):
        steps = [
            f"{part['name']} {part['seconds']:.1f} s" + (f" ({part['rate']:.0f} images/s)" if part["rate"] else "")
            for part in timing["parts"]
        ]
        parts += [Text("\nwhere the time went", style="bold"), Text(f"{timing['total']:.1f} s: {', '.join(steps)}")]
    parts += [Text(f"warning: {_plain(w)}", style="bold") for w in report.get("warnings") or ()]
    if report.get("sample"):
        parts.append(Text("sample run: drawn pictures, random weights; accuracy says nothing about flowers"))
    return Group(*parts)


def _worst_first(metrics: Mapping[str, Any]) -> float:
    value = metrics["recall"]["value"]
    return 2.0 if value is None else float(value)


def _plain(text: Any) -> str:
    """Text without control characters: a file name must not steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def _cut(text: str, width: int, keep_end: bool = False) -> str:
    """Text of at most `width` terminal cells, an ellipsis in place of what was cut off."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[1:] if keep_end else text[:-1]
    return "…" + text if keep_end else text + "…"
