"""How the learning rate moves, and the optimizer that applies it."""

from __future__ import annotations

import math
from typing import Any

from flowers.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate applied in a step, counted from 0 over the whole run.

    cosine: Loshchilov & Hutter 2017, one cycle down to 0, after linear warm-up. exponential: ML.NET's
    `ExponentialLRDecay` with its defaults, x 0.94 every 2 epochs in a staircase, without warm-up.
    """
    if config.schedule == "exponential":
        return config.learning_rate * float(0.94 ** (step // (2 * steps_per_epoch)))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    total = max(config.epochs * steps_per_epoch - warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / total, 1)))


def build_optimizer(config: TrainConfig) -> Any:
    """The Keras optimizer; its `learning_rate` is set before every step from `learning_rate`."""
    import keras

    if config.optimizer == "sgd":
        return keras.optimizers.SGD(config.learning_rate, momentum=config.momentum)
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer
