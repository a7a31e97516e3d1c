"""The report of one run as a self-contained page.

The page needs no script, no font and no address outside itself; a content security policy in it says so.
Its texts (class names, paths) come from the user's data, so the template escapes everything.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from flowers import storage
from flowers.data.corrections import in_words
from flowers.report.charts import curves, reliability_curve
from flowers.report.formatting import (
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
from flowers.report.parts import HeldParts, first_rows
from flowers.report.record import Report
from flowers.text import several


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
        "in_words": in_words,
        "sentence": lambda text, end=".": f"{text[:1].upper()}{text[1:]}{end}",
        "percent": percent,
        "count": count,
        "several": several,
        "short": short,
        "fixed": number,
        "value": value,
        "interval": interval,
        "probability": probability,
        "seconds": seconds,
        "css": lambda x: f"{100 * x:.1f}%",
    }
    return environment.get_template(name)


def render_html(report: Report) -> str:
    """The report as one page."""
    held_name, held = held_out(report)
    page = template("report.html").render(
        **vars(HeldParts.of(held, report.cells if held_name == "test" else [])),
        r=report,
        facts=_facts(report),
        held_name=held_name,
        run=storage.parent(report.bundle),
        metrics=metric_rows(report),
        reliability=reliability_curve(report.calibration.bins) if report.calibration else None,
        split=first_rows(report.split.per_class),
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
    return encodable(page)


def seconds(x: float) -> str:
    """A duration as people read it."""
    return f"{x:.1f} s" if x < 120 else f"{round(x) // 60} min {round(x) % 60} s"


def encodable(page: str) -> str:
    """A page that UTF-8 can hold: a file name that is not UTF-8 arrives as lone surrogates, which it cannot."""
    return page.encode("utf-8", "replace").decode()


def moment(iso: str) -> str:
    """A time of day as people read it."""
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _facts(report: Report) -> list[tuple[str, str]]:
    """What was trained on what, in a few words each."""
    data, trained = report.data, "the head" if report.trainable == "head" else f"the head and {report.trainable}"
    weights = storage.name(report.weights) or report.weights  # of a path
    return [
        ("Photos", f"{count(data.used)} of {data.source}"),
        ("Network", f"{report.backbone}, {weights} weights, {report.image_size} px, {report.precision}"),
        ("Trained", trained + (f", photos varied: {report.augment}" if report.augment != "none" else "")),
        ("Made", f"{moment(report.created)}, seed {report.seed}"),
    ]


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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in tree.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry
