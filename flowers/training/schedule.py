"""The phases of a training, how the learning rate moves in each, and the optimizer that applies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from flowers.config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: "head" (on the pooled features) or "tail" (the head and all above the cut).
        epochs: at most.
        learning_rate: peak of the head's rate.
        label_smoothing: part of each label spread over all classes.
    """

    name: str
    epochs: int
    learning_rate: float
    label_smoothing: float = 0.0


def phases(config: TrainConfig) -> list[Phase]:
    """First the head alone, so that its first, wild gradients do not reach the network; then the tail with it.

    Label smoothing that was not asked for is the tail's alone: a head cannot learn its photos by heart as a network
    can, so it would only make its probabilities worse.
    """
    known = {
        "head": (config.learning_rate, config.label_smoothing or 0.0),
        "tail": (config.tail_learning_rate, config.smoothing),
    }
    return [Phase(name, epochs, *known[name]) for name, epochs in config.phase_epochs.items()]


def learning_rate(config: TrainConfig, phase: Phase, step: int, steps_per_epoch: int) -> float:
    """The rate applied in a step, counted from 0 over the phase.

    cosine: Loshchilov & Hutter 2017, one cycle down to 0, after linear warm-up. exponential: ML.NET's
    `ExponentialLRDecay` with its defaults, x 0.94 every 2 epochs in a staircase, without warm-up.
    """
    peak = phase.learning_rate
    if config.schedule == "exponential":
        return peak * float(0.94 ** (step // (2 * steps_per_epoch)))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return peak
    total = max(phase.epochs * steps_per_epoch - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / total, 1)))


def build_optimizer(config: TrainConfig, variables: Sequence[Any]) -> Any:
    """A Keras optimizer for `variables`; its `learning_rate` is set before every step from `learning_rate`.

    Decay spares vectors: biases, and the factors of layers that normalize or scale, which it would turn off.
    """
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(config.learning_rate, momentum=config.momentum)
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    return optimizer
