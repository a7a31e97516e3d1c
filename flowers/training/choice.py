"""Which epoch is the best one: chosen by validation photos, and a deeper phase has to beat the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def monitored(monitor: str | None, deeper: bool) -> str:
    """The metric that chooses and stops in a phase: what was asked for, or log-loss of a head, accuracy when deeper."""
    return monitor or ("accuracy" if deeper else "log_loss")


def gain(monitor: str, value: float, before: float) -> float:
    """By how much a value of the monitored metric is better than another one."""
    return before - value if monitor == "log_loss" else value - before


def takes_over(
    line: Mapping[str, Any], best: Mapping[str, Any] | None, rival: Mapping[str, Any] | None, monitor: str | None
) -> bool:
    """Whether an epoch becomes the best one: all are lines of metrics.

    A deeper training must not be less accurate than the head, and unless a metric was asked for not worse in log-loss
    either: of the epochs that are neither, the most accurate is kept. Of equals in what is monitored log-loss decides.

    Args:
        line: of the epoch.
        best: of the best epoch so far; None before the first.
        rival: of the best epoch before this phase; None in the first.
        monitor: the validation metric that was asked for, or None.
    """
    if rival is not None:
        if line["val_accuracy"] < rival["val_accuracy"]:
            return False
        if monitor is None and line["val_log_loss"] > rival["val_log_loss"]:
            return False
    if best is None:
        return True
    name = monitored(monitor, rival is not None)
    better = gain(name, line[f"val_{name}"], best[f"val_{name}"])
    return better > 0 or (better == 0 and line["val_log_loss"] < best["val_log_loss"])
