"""Which epoch is the best one: chosen by validation photos, and a deeper phase has to beat the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def gain(monitor: str, value: float, before: float) -> float:
    """By how much a value of the monitored metric is better than another one."""
    return before - value if monitor == "log_loss" else value - before


def takes_over(
    line: Mapping[str, Any], best: Mapping[str, Any] | None, rival: Mapping[str, Any] | None, monitor: str
) -> bool:
    """Whether an epoch becomes the best one: all are lines of metrics.

    Args:
        line: of the epoch.
        best: of the best epoch so far; None before the first.
        rival: of the best epoch before this phase; None in the first. A deeper training has to be better in what is
            monitored and no worse in accuracy: probabilities that are a little better do not pay for wrong classes.
        monitor: the validation metric that chooses.
    """
    name = f"val_{monitor}"
    if rival is not None and line["val_accuracy"] < rival["val_accuracy"]:
        return False
    return best is None or gain(monitor, line[name], best[name]) > 0
