"""The report of one run: a self-contained page and a short terminal summary, both from one dict.

The page needs no script, no font and no address outside itself; a content security policy in it says so.
Its texts (class names, paths) come from the user's data, so the template escapes everything.
"""

from __future__ import annotations

import functools
import io
import math
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]

LARGE = 12
"""Above this many classes the tables scroll inside the page and the terminal lists the worst only."""

_SVG_LOCK = threading.Lock()
# Stand-in colours: the page's own (light or dark) replace them in the finished SVG.
_INK, _FIRST, _SECOND, _GRID = "#010203", "#010204", "#010205", "#010206"
_COLOURS = {_INK: "currentColor", _FIRST: "var(--c1)", _SECOND: "var(--c2)", _GRID: "var(--line)"}


def _number(x: Any, digits: int) -> str:
    return f"{x:.{digits}f}" if isinstance(x, (int, float)) and math.isfinite(x) else "–"


def _percent(x: Any) -> str:
    return _number(100 * x, 1) + " %" if isinstance(x, (int, float)) else "–"


def _count(x: Any) -> str:
    return f"{x:,}" if isinstance(x, int) else "–"


def _short(x: Any) -> str:
    """At most four digits, whole counts in full: for rates and histories of any magnitude."""
    if isinstance(x, int) or not isinstance(x, float):
        return _count(x)
    return f"{x:,.0f}" if 1000 <= abs(x) < math.inf else f"{x:.4g}" if math.isfinite(x) else "–"


def _value(metric: Any, percent: bool) -> str:
    x = (metric or {}).get("value")
    return _percent(x) if percent else _number(x, 3)


def _interval(metric: Any, percent: bool) -> str:
    low, high = (metric or {}).get("low"), (metric or {}).get("high")
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f}–{100 * high:.1f} %" if percent else f"{low:.3f}–{high:.3f}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "count": _count,
        "short": _short,
        "fixed": _number,
        "value": _value,
        "interval": _interval,
        "seconds": lambda x: f"{x:.1f} s" if x < 120 else f"{round(x) // 60} min {round(x) % 60} s",
        "css": lambda x: f"{100 * x:.1f}%" if isinstance(x, (int, float)) else "0%",
    }
    return environment.get_template("report.html")


def render_html(report: Report) -> str:
    """The report as one page; keys missing from `report` leave their part out.

    Args:
        report: what the job writes to report.json, plus a `thumbnail` data URI in each prediction.
    """
    held_name, held = _held(report)
    monitor = report.get("monitor") or "accuracy"
    metrics = _metrics(report)
    data, split = report.get("data") or {}, report.get("split") or {}
    ends = [*(split.get(part) for part in ("train", "validation", "test")), data.get("quarantined")]
    known = [n for n in (data.get("found"), *ends) if n is not None]
    history = report.get("history") or []
    run = {key: report.get(key) for key in ("bundle", "weights_sha256", "precision_reason", "seed")}
    run |= {"split sha256": split.get("sha256"), "feature key": (report.get("features") or {}).get("key")}
    page = _template().render(
        r=report,
        facts=_facts(report),
        held=held,
        held_name=held_name,
        headline=[m for m in metrics if m["key"] in ("accuracy", "macro_accuracy", "macro_f1", "log_loss")],
        metrics=metrics,
        matrix=_matrix(held),
        large=len(held.get("classes") or ()) > LARGE,
        curves=_curves(history, monitor, report.get("best_epoch")),
        history_keys=list(dict.fromkeys(key for row in history for key in row)),
        monitor=monitor.replace("_", " "),
        timing=_timing(report),
        unaccounted=known[0] - sum(known[1:]) if len(known) == 5 else 0,
        details=[
            ("Run", [(key, value) for key, value in run.items() if value is not None]),
            ("Configuration", list(_flat(report.get("config") or {}))),
            ("Versions", list(_flat(report.get("versions") or {}))),
        ],
    )
    # A file name that is not UTF-8 arrives as lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode()


def _held(report: Report) -> tuple[str, Mapping[str, Any]]:
    """The set to report on: the test photos, or the validation photos when there are none."""
    test, validation = report.get("test") or {}, report.get("validation") or {}
    return ("test", test) if test.get("n") or not validation.get("n") else ("validation", validation)


def _metrics(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of metrics: name, key and the metric of each set."""
    _, held = _held(report)
    sets = {"test": report.get("test") or {}, "validation": report.get("validation") or {}, "held": held}
    names = {"accuracy": "Accuracy", "macro_accuracy": "Macro accuracy", "macro_f1": "Macro F1"}
    rows = [{"name": name, "key": key, "percent": True} for key, name in names.items()]
    rows += [{"name": f"Top-{k} accuracy", "key": k, "percent": True} for k in (held.get("top_k") or {})]
    rows += [{"name": "Log-loss", "key": "log_loss", "percent": False}]
    rows += [{"name": "Log-loss reduction", "key": "log_loss_reduction", "percent": False}]
    for row in rows:
        key = row["key"]
        row |= {name: {**(s.get("top_k") or {}), **s}.get(key) or {} for name, s in sets.items()}
    return rows


def _facts(report: Report) -> list[str]:
    size = report.get("image_size")
    size = "×".join(map(str, size)) if isinstance(size, (list, tuple)) else size
    created = str(report.get("created") or "").replace("T", " ").replace("+00:00", " UTC")
    facts = [created, report.get("backbone"), report.get("weights")]
    facts += [f"{size} px" if size else None, report.get("precision")]
    facts += [f"seed {report['seed']}" if "seed" in report else None]
    return [str(fact) for fact in facts if fact]


def _matrix(held: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the confusion matrix; `shade` is an opacity that keeps the text readable on it."""
    rows = []
    for i, counts in enumerate(held.get("confusion_matrix") or ()):
        shade = 0.55 / max(1, sum(counts))
        cells = [{"n": n, "right": i == j, "shade": round(0.04 + n * shade, 2)} for j, n in enumerate(counts)]
        rows.append({"name": held["classes"][i], "cells": cells})
    return rows


def _timing(report: Report) -> dict[str, Any] | None:
    """Seconds by step with shares of the total; what no step accounts for is "other"."""
    steps = dict(report.get("timing_s") or {})
    total = max(steps.pop("total", 0.0), sum(steps.values()))
    if total <= 0:
        return None
    if (other := total - sum(steps.values())) > 0.005 * total:
        steps["other"] = other
    rates = report.get("images_per_s") or {}
    parts = [
        {"name": name, "seconds": s, "share": s / total, "weight": round(s / total, 4), "rate": rates.get(name)}
        for name, s in steps.items()
    ]
    return {"total": total, "parts": parts}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _curves(history: list[Mapping[str, Any]], monitor: str, best: int | None) -> list[dict[str, Any]]:
    """Plots of the losses and of the monitored metric over epochs, each an inline SVG with a caption."""
    losses = [("training loss", "loss"), ("validation log-loss", "val_log_loss")]
    curves = []
    for caption, series in (
        ("Loss by epoch", losses),
        (f"Validation {monitor.replace('_', ' ')} by epoch", [("", f"val_{monitor}")]),
    ):
        lines = [
            (name, [(row["epoch"], row[key]) for row in history if isinstance(row.get(key), (int, float))])
            for name, key in series
        ]
        if lines := [(name, points) for name, points in lines if points]:
            said = [f"{name} from {_short(p[0][1])} to {_short(p[-1][1])}".strip() for name, p in lines]
            svg = _svg(lines, best, alt=f"{caption}: {', '.join(said)}.", salt=caption)
            curves.append({"svg": svg, "caption": caption})
    return curves


def _svg(lines: list[tuple[str, list[tuple[int, float]]]], best: int | None, alt: str, salt: str) -> Markup:
    """Draw lines over epochs, with the mark of the best epoch on the last line (the validation metric).

    Uses Figure directly: pyplot keeps global state and is not safe in threads.
    """
    import matplotlib  # slow to import, and only this needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.0, 2.8))
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.16, top=0.97)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, labelsize=10)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("epoch", color=_INK, fontsize=10)
    for (name, points), colour, dash in zip(lines, (_FIRST, _SECOND), ("-", "--"), strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, dash, color=colour, linewidth=1.8, label=name, marker="o", markersize=3)
    at_best = dict(lines[-1][1])
    if best is not None and best in at_best:
        axes.axvline(best, color=_INK, linewidth=0.8, linestyle=":")
        axes.plot([best], [at_best[best]], "o", color=_INK, markersize=8, fillstyle="none", label=f"best, epoch {best}")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=10, labelcolor=_INK)
    out = io.StringIO()
    with _SVG_LOCK, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), alt)


def _inline(svg: str, alt: str) -> Markup:
    """A matplotlib SVG as part of a page: page colours and fonts, no ids of groups, no outside addresses."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = Markup('<svg role="img" aria-label="{}" {}>').format(alt, Markup(box.group() if box else ""))
    body = svg[svg.index(">") + 1 :]
    for stand_in, colour in _COLOURS.items():
        body = body.replace(stand_in, colour)
    # Drawn by matplotlib from numbers and fixed words only: nothing of the user's is in it.
    return head + Markup(body)


def summary(report: Report) -> Group:
    """The report in about twenty terminal lines of at most 80 columns; print it with a rich console."""
    name, held = _held(report)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("test", "95 %", "validation", "95 %"):
        table.add_column(title, justify="right" if title != "95 %" else "left")
    for row in _metrics(report):
        if row["key"] in ("accuracy", "macro_accuracy", "macro_f1", "log_loss"):
            pairs = [f(row[s], row["percent"]) for s in ("test", "validation") for f in (_value, _interval)]
            table.add_row(row["name"].lower(), *pairs)
    photos = [_count((report.get(s) or {}).get("n")) for s in ("test", "validation")]
    table.add_row("photos", photos[0], "", photos[1], "")
    parts: list[Table | Text] = [table]

    classes = sorted((held.get("per_class") or {}).items(), key=lambda item: _worst_first(item[1]))
    if classes:
        few = len(classes) > LARGE
        title = f"recall by class, {name} photos" + (f", lowest {LARGE} of {len(classes)}" if few else "")
        recall = Table.grid(padding=(0, 2, 0, 2))
        for label, m in classes[:LARGE]:
            numbers = _value(m["recall"], True), _interval(m["recall"], True), f"n = {_count(m['n'])}"
            recall.add_row(Text(_cut(_plain(label), 36)), *numbers)
        parts += [Text(f"\n{title}", style="bold"), recall]

    if predictions := report.get("predictions"):
        parts.append(Text("\npredictions", style="bold"))
    for p in predictions or ():
        right = p["label"] == p["predicted"]
        label, predicted = (_cut(_plain(p[key]), 20) for key in ("label", "predicted"))
        rest = f" | original: {label} | predicted: {predicted} ({_number(p['score'], 2)})"
        path = _cut(_plain(p["path"]), 80 - cell_len(rest), keep_end=True)
        parts.append(Text(path + rest, style="" if right else "bold"))

    if timing := _timing(report):
        steps = sorted(timing["parts"], key=lambda part: -part["seconds"])[:3]
        rates = {part["name"]: f" ({part['rate']:.0f} images/s)" if part["rate"] else "" for part in steps}
        line = ", ".join(f"{part['name']} {part['seconds']:.1f}{rates[part['name']]}" for part in steps)
        parts.append(Text("\n" + _cut(f"{timing['total']:.1f} s: {line}", 80)))
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
