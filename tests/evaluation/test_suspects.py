"""Suspects: flipped labels are found among features of known classes, and a head never judges what it learned from."""

from __future__ import annotations

import numpy as np
import pytest

from flowers.evaluation.suspects import find_suspects, nearest, out_of_sample, standardized


def drawn(sizes: tuple[int, ...], spread: float = 0.4, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each class, and the classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 4 * rng.normal(size=(len(sizes), width))
    features = centres[labels] + 4 * spread * rng.normal(size=(len(labels), width))
    return standardized(features.astype(np.float32)), labels


def test_flipped_labels_are_found() -> None:
    features, right = drawn((60, 40, 20))
    flipped = np.random.default_rng(1).choice(len(right), 8, replace=False)
    labels = right.copy()
    labels[flipped] = (labels[flipped] + 1) % 3
    probabilities = out_of_sample(features, labels, np.arange(len(labels)), 3)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    found = find_suspects(labels, probabilities, 8)
    assert set(found.indices.tolist()) == set(flipped.tolist())
    assert (found.suggested == right[found.indices]).all()
    assert 5 <= found.estimated <= 9
    listed = find_suspects(labels, probabilities, None).indices.tolist()
    assert listed[:8] == found.indices.tolist()
    assert len(listed) <= 2 * found.estimated
    assert (np.diff(found.score) >= 0).all()
    assert (found.score < found.suggested_score).all()
    confirmed = np.isin(np.arange(len(labels)), flipped[:3])
    assert set(find_suspects(labels, probabilities, 5, confirmed).indices.tolist()) == set(flipped[3:].tolist())
    left = [index for index in listed if not confirmed[index]]  # it comes to an end
    assert find_suspects(labels, probabilities, None, confirmed).indices.tolist() == left
    assert find_suspects(labels, probabilities, 4).indices.tolist() == found.indices[:4].tolist()


def test_copies_do_not_vouch_for_each_other() -> None:
    """Some wrong labels are there twice, on pictures with a mark of their own: a head that saw one knows both."""
    features, labels = drawn((40, 40))
    marks = np.zeros((80, 4), np.float32)
    marks[:4] = 12 * np.eye(4)
    features = np.concatenate([features, marks], axis=1)
    labels[:4] = 1
    twice = np.concatenate([np.arange(80), np.arange(4)])
    features, labels = features[twice], labels[twice]
    alone, together = (
        find_suspects(labels, out_of_sample(features, labels, groups, 2), 8) for groups in (np.arange(84), twice)
    )
    assert set(together.indices.tolist()) == {*range(4), *range(80, 84)}
    assert together.score.max() < 0.2
    assert len(alone.indices) < 8


def test_of_a_class_that_nobody_else_shows_nothing_is_said() -> None:
    features, labels = drawn((30, 30, 1))
    found = out_of_sample(features, labels, np.arange(61), 3)
    assert np.isnan(found[60]).all()
    assert not np.isnan(found[:60]).any()
    suspects = find_suspects(labels, found, None)
    assert (suspects.judged, 60 in suspects.indices) == (60, False)
    one = np.zeros(4, np.int64)
    for nothing in (out_of_sample(features[:4], labels[:4], one, 3), out_of_sample(features[:4], one, one, 1)):
        assert np.isnan(nothing).all()
        assert find_suspects(labels[:4], nothing, None).judged == 0


def test_the_nearest_of_a_class() -> None:
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]], np.float32)
    labels = np.array([0, 0, 0, 1, 1])
    others = np.array([True, True, True, True, False])
    found = nearest(features, labels, np.array([1, 1, 3]), np.array([0, 1, 1]), others, 2)
    assert [sorted(one) for one in found] == [[0, 2], [3], []]
    assert nearest(features, labels, np.array([4]), np.array([0]), others, 2) == [[2, 1]]
