"""Search: other values of some options tried one option after the other, each by a training of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowers.config import TrainConfig
from flowers.options import flag
from flowers.training.choice import gain


@dataclass(frozen=True)
class Trial:
    """A training that was tried.

    Attributes:
        config: its options.
        epoch: the best one.
        val_accuracy: of that epoch on the validation photos.
        val_macro_accuracy: the same.
        val_log_loss: the same.
    """

    config: TrainConfig
    epoch: int
    val_accuracy: float
    val_macro_accuracy: float
    val_log_loss: float


def changed(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """The options that have another value after a search, and that value."""
    return {name: value for name, value in dict(after).items() if value != getattr(before, name)}


def changes(before: TrainConfig, after: TrainConfig) -> str:
    """The same as one would type it."""
    return " ".join(f"{flag(name)} {value:g}" for name, value in changed(before, after).items())


def searched(config: TrainConfig) -> list[str]:
    """Names of the options that are searched, in this order."""
    rate = "learning_rate" if config.trainable == "head" else "tail_learning_rate"
    return [rate, *(["weight_decay"] if config.optimizer == "adamw" else []), "dropout", "label_smoothing"]


def others(config: TrainConfig, name: str) -> list[TrainConfig]:
    """The same options with other values of one: two or three of them."""
    value = config.smoothing if name == "label_smoothing" else getattr(config, name)
    values = {
        "weight_decay": (0.0, 10 * value or 0.1),
        "dropout": (0.0, 0.2, 0.5),
        "label_smoothing": (0.0, 0.02, 0.1),
    }.get(name, (value / 3, value * 3))
    return [config.replace(**{name: float(f"{other:.3g}")}) for other in values if other != value]


def most_trials(config: TrainConfig) -> int:
    """How many trainings a search takes."""
    return 1 + sum(len(others(config, name)) for name in searched(config))


def best_of(trials: Sequence[Trial], monitor: str | None) -> Trial:
    """The trial whose best epoch is the best by the metric that was asked for, else log-loss; of equals the first."""
    best, name = trials[0], monitor or "log_loss"
    for trial in trials[1:]:
        if gain(name, getattr(trial, f"val_{name}"), getattr(best, f"val_{name}")) > 0:
            best = trial
    return best
