"""The words and numbers of a report, the same on its page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]

LARGE = 12
"""Above this many classes the tables scroll inside the page and the terminal lists the worst only."""


def number(x: Any, digits: int) -> str:
    """A number with so many digits, a dash where there is none."""
    return f"{x:.{digits}f}" if isinstance(x, (int, float)) and math.isfinite(x) else "–"


def percent(x: Any) -> str:
    """A fraction as per cent."""
    return number(100 * x, 1) + " %" if isinstance(x, (int, float)) else "–"


def count(x: Any) -> str:
    """A whole number with thousands separated."""
    return f"{x:,}" if isinstance(x, int) else "–"


def short(x: Any) -> str:
    """At most four digits, whole counts in full: for rates and histories of any magnitude."""
    if isinstance(x, int) or not isinstance(x, float):
        return count(x)
    return f"{x:,.0f}" if 1000 <= abs(x) < math.inf else f"{x:.4g}" if math.isfinite(x) else "–"


def value(metric: Any, as_percent: bool) -> str:
    """The value of a metric."""
    x = (metric or {}).get("value")
    return percent(x) if as_percent else number(x, 3)


def interval(metric: Any, as_percent: bool) -> str:
    """The 95 % interval of a metric."""
    low, high = (metric or {}).get("low"), (metric or {}).get("high")
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f}–{100 * high:.1f} %" if as_percent else f"{low:.3f}–{high:.3f}"


def held_out(report: Report) -> tuple[str, Mapping[str, Any]]:
    """The set to report on: the test photos, or the validation photos when there are none."""
    test, validation = report.get("test") or {}, report.get("validation") or {}
    return ("test", test) if test.get("n") or not validation.get("n") else ("validation", validation)


def metric_rows(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of metrics: name, key and the metric of each set."""
    _, held = held_out(report)
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


def timing_parts(report: Report) -> dict[str, Any] | None:
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
