"""The phases of a training and the learning rate of every step."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.config import TAIL_SMOOTHING, TrainConfig
from flowers.training.schedule import Phase, build_optimizer, learning_rate, phases


def rates(steps_per_epoch: int, **options: Any) -> list[float]:
    config = TrainConfig(**{"epochs": 10, "learning_rate": 0.1, **options})
    (phase,) = phases(config)
    return [learning_rate(config, phase, step, steps_per_epoch) for step in range(phase.epochs * steps_per_epoch)]


def test_the_head_alone_is_one_phase() -> None:
    assert phases(TrainConfig()) == [Phase("head", 60, 0.001)]
    assert phases(TrainConfig(epochs=7, head_epochs=3, learning_rate=0.5)) == [Phase("head", 7, 0.5)]


@pytest.mark.parametrize("trainable", ["stage5", "all"])
def test_what_lies_deeper_comes_after_the_head(trainable: str) -> None:
    assert phases(TrainConfig(trainable=trainable, learning_rate=0.5)) == [
        Phase("head", 60, 0.5),
        Phase("tail", 12, TrainConfig().tail_learning_rate, TAIL_SMOOTHING),
    ]
    config = TrainConfig(trainable=trainable, head_epochs=3, epochs=7, learning_rate=0.5, tail_learning_rate=0.25)
    assert phases(config) == [Phase("head", 3, 0.5), Phase("tail", 7, 0.25, TAIL_SMOOTHING)]


@pytest.mark.parametrize(
    ("given", "smoothing"),
    [({}, [0, TAIL_SMOOTHING]), ({"label_smoothing": 0}, [0, 0]), ({"label_smoothing": 0.1}, [0.1, 0.1])],
)
def test_labels_are_smoothed_in_the_tail_unless_told_otherwise(given: dict[str, Any], smoothing: list[float]) -> None:
    assert [phase.label_smoothing for phase in phases(TrainConfig(trainable="all", **given))] == smoothing
    assert phases(TrainConfig(**given))[0].label_smoothing == smoothing[0]


def test_cosine_with_warm_up() -> None:
    found = rates(4, warmup_epochs=1)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert found[4] == max(found) == 0.1
    assert found[4 + 18] == pytest.approx(0.05)  # half of the way down
    assert found[4 + 9] == pytest.approx(0.1 * (1 + math.sqrt(0.5)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))
    assert 0 < found[-1] < 0.1 * 0.002
    assert learning_rate(TrainConfig(), Phase("head", 10, 0.1), 40, 4) == pytest.approx(0, abs=1e-12)


def test_cosine_without_warm_up_begins_at_the_peak() -> None:
    assert rates(4, warmup_epochs=0)[0] == 0.1


def test_exponential_is_the_staircase_of_ml_net() -> None:
    """x 0.94 every 2 epochs; --warmup-epochs is no part of it."""
    found = rates(3, schedule="exponential", learning_rate=0.01, warmup_epochs=5)
    assert found == pytest.approx([0.01 * 0.94**stair for stair in range(5) for _ in range(6)])


def test_constant() -> None:
    assert rates(4, schedule="constant", warmup_epochs=0.5) == pytest.approx([0.1 / 3, 0.2 / 3] + [0.1] * 38)


@settings(deadline=None)
@given(
    st.sampled_from(["cosine", "exponential", "constant"]),
    st.integers(1, 40),
    st.integers(1, 300),
    st.floats(0, 100),
    st.sampled_from([0, 1]),
)
def test_every_rate_is_usable(
    schedule: Literal["cosine", "exponential", "constant"], epochs: int, steps: int, warmup: float, place: int
) -> None:
    """Also where warm-up is longer than training, in either phase."""
    config = TrainConfig(schedule=schedule, epochs=epochs, head_epochs=epochs, warmup_epochs=warmup, trainable="all")
    phase = phases(config)[place]
    for step in {0, 1, steps, epochs * steps // 2, epochs * steps - 1}:
        assert 0 <= learning_rate(config, phase, step, steps) <= phase.learning_rate
        assert step >= epochs * steps or learning_rate(config, phase, step, steps) > 0


def test_the_optimizers_are_those_of_keras() -> None:
    import keras

    adamw = build_optimizer(TrainConfig(weight_decay=0.25), [])
    assert isinstance(adamw, keras.optimizers.AdamW)
    assert adamw.weight_decay == 0.25
    sgd = build_optimizer(TrainConfig(optimizer="sgd", momentum=0.75), [])
    assert isinstance(sgd, keras.optimizers.SGD)
    assert sgd.momentum == 0.75
    assert np.asarray(sgd.learning_rate) == np.float32(0.001)
