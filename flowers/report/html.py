"""The report of one run as a self-contained page.

The page needs no script, no font and no address outside itself; a content security policy in it says so.
Its texts (class names, paths) come from the user's data, so the template escapes everything.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from flowers.evaluation.metrics import Summary
from flowers.report.charts import curves
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
    probability,
    search_rows,
    short,
    spread_rows,
    time_parts,
    value,
)
from flowers.report.record import Report


@dataclass(frozen=True)
class Cell:
    """A number of the confusion matrix; `shade` is an opacity that keeps it readable."""

    n: int
    right: bool
    shade: float


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of a page: it reads attributes only, and a wrong name in it is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "sentence": lambda text, end=".": f"{text[:1].upper()}{text[1:]}{end}",
        "percent": percent,
        "count": count,
        "short": short,
        "fixed": number,
        "value": value,
        "interval": interval,
        "probability": probability,
        "seconds": lambda x: f"{x:.1f} s" if x < 120 else f"{round(x) // 60} min {round(x) % 60} s",
        "css": lambda x: f"{100 * x:.1f}%",
    }
    return environment.get_template(name)


def render_html(report: Report) -> str:
    """The report as one page."""
    held_name, held = held_out(report)
    page = template("report.html").render(
        r=report,
        facts=_facts(report),
        held=held,
        held_name=held_name,
        metrics=metric_rows(report),
        matrix=matrix_rows(held),
        large=len(held.classes) > LARGE,
        curves=curves(report),
        limit_said=limit_said(report),
        spreads=spread_rows(report.cross_validation) if report.cross_validation else [],
        folds_said=folds_said(report),
        search=search_rows(report),
        monitor=report.monitor.replace("_", " "),
        time_parts=time_parts(report),
        unaccounted=report.data.found - report.split.total - report.data.quarantined,
        details=[
            ("Run", _run(report)),
            ("Configuration", list(_flat(report.config))),
            ("Versions", list(report.versions.items())),
        ],
    )
    # A file name that is not UTF-8 arrives as lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode()


def _facts(report: Report) -> list[str]:
    facts = [report.created.replace("T", " ").replace("+00:00", " UTC"), report.backbone, report.weights]
    facts += [f"{report.image_size} px", report.precision]
    facts += [f"trained from {report.trainable}"] if report.trainable != "head" else []
    facts += [f"augmented: {report.augment}"] if report.augment != "none" else []
    return [*facts, f"seed {report.seed}"]


def _run(report: Report) -> list[tuple[str, object]]:
    return [
        ("bundle", report.bundle),
        ("weights sha256", report.weights_sha256),
        ("split sha256", report.split.sha256),
        ("feature cache", report.features.cache),
        ("precision", f"{report.precision}: {report.precision_reason}"),
        ("trained after layer", report.cut),
        ("training photos", "decoded again each epoch" if report.streamed else "from the feature cache"),
        ("workers", report.workers),
        ("seed", report.seed),
    ]


def matrix_rows(held: Summary) -> list[tuple[str, list[Cell]]]:
    """Names and cells of the rows of the confusion matrix."""
    rows = []
    for i, counts in enumerate(held.confusion_matrix):
        shade = 0.55 / max(1, sum(counts))
        cells = [Cell(n, i == j, round(0.04 + n * shade, 2)) for j, n in enumerate(counts)]
        rows.append((held.classes[i], cells))
    return rows


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in tree.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry
