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

from flowers.report.charts import curves
from flowers.report.formatting import (
    LARGE,
    Report,
    count,
    held_out,
    interval,
    metric_rows,
    number,
    percent,
    short,
    timing_parts,
    value,
)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "count": count,
        "short": short,
        "fixed": number,
        "value": value,
        "interval": interval,
        "seconds": lambda x: f"{x:.1f} s" if x < 120 else f"{round(x) // 60} min {round(x) % 60} s",
        "css": lambda x: f"{100 * x:.1f}%" if isinstance(x, (int, float)) else "0%",
    }
    return environment.get_template("report.html")


def render_html(report: Report) -> str:
    """The report as one page; keys missing from `report` leave their part out.

    Args:
        report: what the job writes to report.json, plus a `thumbnail` data URI in each prediction.
    """
    held_name, held = held_out(report)
    monitor = report.get("monitor") or "accuracy"
    metrics = metric_rows(report)
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
        curves=curves(history, monitor, report.get("best_epoch")),
        history_keys=list(dict.fromkeys(key for row in history for key in row)),
        monitor=monitor.replace("_", " "),
        timing=timing_parts(report),
        unaccounted=known[0] - sum(known[1:]) if len(known) == 5 else 0,
        details=[
            ("Run", [(key, value) for key, value in run.items() if value is not None]),
            ("Configuration", list(_flat(report.get("config") or {}))),
            ("Versions", list(_flat(report.get("versions") or {}))),
        ],
    )
    # A file name that is not UTF-8 arrives as lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode()


def _facts(report: Report) -> list[str]:
    size = report.get("image_size")
    size = "×".join(map(str, size)) if isinstance(size, (list, tuple)) else size
    created = str(report.get("created") or "").replace("T", " ").replace("+00:00", " UTC")
    facts = [created, report.get("backbone"), report.get("weights")]
    facts += [f"{size} px" if size else None, report.get("precision")]
    facts += [f"trained from {report['trainable']}" if report.get("trainable", "head") != "head" else None]
    facts += [f"augmented: {report['augment']}" if report.get("augment", "none") != "none" else None]
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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in tree.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry
