"""Which photo is in which step: the same for any number of workers, another one in every epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.config import TrainConfig
from flowers.training.batches import EpochBatches, class_weights, epoch_batches, needed, share


def options(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 16, **changes})


def whole(epoch: int, total: int, workers: int, **changes: Any) -> EpochBatches:
    """The global batches, from the parts of all workers put together again."""
    parts = [epoch_batches(options(**changes), epoch, total, rank, workers) for rank in range(workers)]
    for part in parts:
        assert part.indices.shape == part.real.shape == part.choices.shape == part.draws.shape[:2]
        assert part.indices.shape[1] * workers == options(**changes).batch_size
        np.testing.assert_array_equal(part.rows, parts[0].rows)  # known to each worker without asking the others
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("indices", "real", "choices", "draws")
    }
    return EpochBatches(rows=parts[0].rows, **joined)


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(0, 5), st.integers(1, 6), st.integers(1, 8))
def test_an_epoch_takes_every_photo_once(total: int, epoch: int, workers: int, local_batch: int) -> None:
    order = whole(epoch, total, workers, batch_size=workers * local_batch)
    one = whole(epoch, total, 1, batch_size=workers * local_batch)
    for name in vars(one):
        np.testing.assert_array_equal(getattr(order, name), getattr(one, name), err_msg=name)
    assert len(order.indices) == -(-total // (workers * local_batch))
    assert sorted(order.indices[order.real]) == list(range(total))
    assert order.indices.min() >= 0
    assert order.indices.max() < total  # what fills up the last batch is a photo too
    np.testing.assert_array_equal(order.real.sum(axis=1), order.rows)
    assert order.real[:-1].all()
    assert order.rows.dtype == np.float32


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(0, 5), st.integers(1, 6), st.integers(1, 8))
def test_a_worker_takes_photos_of_one_range(total: int, epoch: int, workers: int, local_batch: int) -> None:
    size = workers * local_batch
    ranges = [share(total, rank, workers) for rank in range(workers)]
    assert [index for part in ranges for index in range(total)[part]] == list(range(total))
    assert {part.stop - part.start for part in ranges} <= {total // workers, -(-total // workers)}
    for rank, mine in enumerate(ranges):
        order = epoch_batches(options(batch_size=size), epoch, total, rank, workers)
        held = needed(total, size, rank, workers)
        assert sorted(order.indices[order.real]) == list(range(total)[mine])
        assert held.start <= order.indices.min()
        assert order.indices.max() < held.stop <= total
        assert held == mine or (total < size and held.stop - held.start <= mine.stop - mine.start + 1)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 5))
def test_a_step_takes_one_photo_of_each_slot(total: int, epoch: int) -> None:
    order = whole(epoch, total, 1)
    slots = [sorted(order.indices[order.real[:, slot], slot]) for slot in range(16)]
    assert [index for slot in slots for index in slot] == list(range(total))


@pytest.mark.parametrize("total", [101, 96, 97, 3])
def test_any_number_of_workers_sees_the_same_batches(total: int) -> None:
    one = whole(2, total, 1)
    for workers in (2, 4, 8):
        other = whole(2, total, workers)
        for name in vars(one):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name), err_msg=name)


def test_order_and_views_change_with_epoch_and_seed_alone() -> None:
    orders = [whole(epoch, 101, 1, seed=seed) for seed in (0, 1, (1 << 31) - 1) for epoch in (0, 1, 2)]
    for name in ("indices", "choices", "draws"):
        assert len({getattr(order, name).tobytes() for order in orders}) == len(orders), name
    again = whole(0, 101, 1, trainable="all", augment="strong", epochs=3, learning_rate=0.5)
    for name in vars(again):
        np.testing.assert_array_equal(getattr(again, name), getattr(orders[0], name), err_msg=name)


def test_views_are_drawn_evenly() -> None:
    order = whole(0, 16 * 400, 1)
    for count in (1, 2, 3, 10):
        shares = np.bincount(order.views(count).ravel(), minlength=count) / order.choices.size
        np.testing.assert_allclose(shares, 1 / count, atol=0.02)
    assert 0 <= order.draws.min() < 0.001
    assert 0.999 < order.draws.max() < 1
    np.testing.assert_allclose(order.draws.reshape(-1, 4).mean(axis=0), 0.5, atol=0.02)


def test_balanced_weights() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1, np.int32)
    weights = class_weights(options(class_weights="balanced"), labels, 4)
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3])
    assert weights[labels].mean() == pytest.approx(1)
    sums = np.bincount(labels, weights[labels], 4)
    np.testing.assert_allclose(sums[[0, 1, 3]], 10 / 3)
    np.testing.assert_array_equal(class_weights(options(), labels, 4), np.ones(4))
