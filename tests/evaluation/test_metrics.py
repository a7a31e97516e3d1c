"""The metrics against hand computation, plain loops and their own invariants."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.evaluation.metrics import EPSILON, ConfusedPair, Counts, Metric, Summary, summarize, wilson

NOTHING = Metric(value=None, n=0, low=None, high=None)


def random_batch(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and coarse probabilities, so that ties and exact zeros are common."""
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 4, size=(n, k)).astype(np.float64)
    p[p.sum(axis=1) == 0] = 1
    return rng.integers(0, k, size=n), p / p.sum(axis=1, keepdims=True)


def from_confusion(matrix: list[list[int]]) -> Counts:
    """Counts of predictions made with probability 0.9, the rest shared by the other classes."""
    k = len(matrix)
    pairs = [(i, j) for i in range(k) for j in range(k) for _ in range(matrix[i][j])]
    p = np.full((len(pairs), k), 0.1 / (k - 1))
    p[np.arange(len(pairs)), [j for _, j in pairs]] = 0.9
    return Counts.of(np.array([i for i, _ in pairs], np.int64), p)


def metrics_in(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "low" in node:
            yield node
        else:
            for child in node.values():
                yield from metrics_in(child)


def known(value: float | None) -> float:
    assert value is not None
    return value


def names(k: int) -> list[str]:
    return [f"c{i}" for i in range(k)]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (23, 27, 0.6752, 0.9408),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 5, 0.5655, 1.0),
    ],
)
def test_wilson_matches_published_values(hits: int, n: int, low: float, high: float) -> None:
    got = wilson(hits, n)
    assert float(got[0]) == pytest.approx(low, abs=5e-5)
    assert float(got[1]) == pytest.approx(high, abs=5e-5)


def test_values_computed_by_hand() -> None:
    s = summarize(from_confusion([[4, 1, 0], [2, 3, 0], [0, 1, 1]]), ["a", "b", "c"])
    assert s.n == 12
    assert s.accuracy.value == pytest.approx(8 / 12)
    assert s.macro_accuracy.value == pytest.approx((4 / 5 + 3 / 5 + 1 / 2) / 3)
    assert s.per_class["a"].precision.n == 6
    assert s.per_class["a"].precision.value == pytest.approx(4 / 6)
    assert s.per_class["a"].precision.low == pytest.approx(0.3000, abs=1e-4)
    assert s.per_class["a"].precision.high == pytest.approx(0.9032, abs=1e-4)
    assert s.per_class["b"].recall.value == pytest.approx(3 / 5)
    f1 = [8 / 11, 6 / 10, 2 / 3]
    assert [s.per_class[c].f1.value for c in "abc"] == pytest.approx(f1)
    assert s.macro_f1.value == pytest.approx(np.mean(f1))
    loss = [-math.log(0.9)] * 8 + [-math.log(0.05)] * 4
    half = 1.959964 * np.std(loss, ddof=1) / math.sqrt(12)
    assert s.log_loss.value == pytest.approx(np.mean(loss))
    assert s.log_loss.high == pytest.approx(np.mean(loss) + half)
    assert s.most_confused == [
        ConfusedPair(true="b", predicted="a", count=2),
        ConfusedPair(true="a", predicted="b", count=1),
        ConfusedPair(true="c", predicted="b", count=1),
    ]
    assert s.confusion_matrix == [[4, 1, 0], [2, 3, 0], [0, 1, 1]]
    assert list(s.top_k) == [2]


def test_the_json_of_a_summary() -> None:
    written = summarize(from_confusion([[4, 1, 0], [2, 3, 0], [0, 1, 1]]), ["a", "b", "c"]).to_json()
    assert list(written) == [
        "n", "accuracy", "macro_accuracy", "macro_f1", "log_loss", "log_loss_reduction", "top_k", "per_class",
        "classes", "confusion_matrix", "most_confused",
    ]  # fmt: skip
    assert list(written["accuracy"]) == ["value", "n", "low", "high"]
    assert list(written["top_k"]) == ["2"]
    assert list(written["per_class"]["a"]) == ["n", "precision", "recall", "f1", "log_loss"]
    assert written["most_confused"][0] == {"true": "b", "predicted": "a", "count": 2}


def test_macro_accuracy_interval_is_mover() -> None:
    s = summarize(from_confusion([[9, 1], [4, 6]]), ["a", "b"])
    (l1, u1), (l2, u2) = ([float(x) for x in wilson(h, 10)] for h in (9, 6))
    assert s.macro_accuracy.low == pytest.approx(0.75 - math.hypot(0.9 - l1, 0.6 - l2) / 2)
    assert s.macro_accuracy.high == pytest.approx(0.75 + math.hypot(u1 - 0.9, u2 - 0.6) / 2)


def test_log_loss_reduction_is_relative_to_the_prior() -> None:
    prior = Counts.of([0, 0, 0, 1], [[0.75, 0.25]] * 4)
    assert summarize(prior, ["a", "b"]).log_loss_reduction.value == pytest.approx(0)
    better = summarize(Counts.of([0, 0, 0, 1], [[0.9, 0.1]] * 3 + [[0.2, 0.8]]), ["a", "b"])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    loss = -(3 * math.log(0.9) + math.log(0.8)) / 4
    reduction = better.log_loss_reduction
    assert reduction.value == pytest.approx((entropy - loss) / entropy)
    assert reduction.low == pytest.approx((entropy - known(better.log_loss.high)) / entropy)
    one_class = summarize(Counts.of([1, 1], [[0.5, 0.5]] * 2), ["a", "b"])
    assert one_class.log_loss_reduction == Metric(value=None, n=2, low=None, high=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 7))
def test_counts_equal_a_plain_loop_and_every_value_is_in_its_interval(seed: int, n: int, k: int) -> None:
    labels, p = random_batch(seed, n, k)
    got = Counts.of(labels, p)
    confusion, ranks, loss = np.zeros((k, k), int), np.zeros(k, int), np.zeros(k)
    for label, row in zip(labels, p, strict=True):
        ranking = sorted(range(k), key=lambda c: -row[c])  # stable: first wins among equals
        confusion[label, ranking[0]] += 1
        ranks[ranking.index(label)] += 1
        loss[label] -= math.log(max(row[label], EPSILON))
    np.testing.assert_array_equal(got.confusion, confusion)
    np.testing.assert_array_equal(got.rank_counts, ranks)
    np.testing.assert_allclose(got.log_loss, loss, rtol=1e-12)
    assert got.rank_counts[0] == np.trace(got.confusion)

    s = summarize(got, names(k))
    written = json.dumps(s.to_json(), allow_nan=False)
    assert Summary.model_validate(json.loads(written)) == s
    for m in metrics_in(s.to_json()):
        assert set(m) == {"value", "n", "low", "high"}
        assert (m["value"] is not None) or m["low"] is None
        if m["low"] is not None:
            assert m["low"] <= m["value"] <= m["high"]
    tops = [s.accuracy, *s.top_k.values()]
    if n:
        assert [m.value for m in tops] == sorted(known(m.value) for m in tops)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), min_size=1, max_size=6), st.booleans())
def test_counts_add_over_any_partition(seed: int, sizes: list[int], backwards: bool) -> None:
    k = 4
    labels, p = random_batch(seed, sum(sizes), k)
    edges = np.cumsum(sizes)[:-1]
    parts = [Counts.of(a, b) for a, b in zip(np.split(labels, edges), np.split(p, edges), strict=True)]
    total = sum(parts[::-1] if backwards else parts, Counts.zero(k))
    reduced = Counts.from_vector(np.sum([part.to_vector() for part in parts], axis=0), k)
    whole = Counts.of(labels, p)
    for got in (total, reduced):
        np.testing.assert_array_equal(got.confusion, whole.confusion)
        np.testing.assert_array_equal(got.rank_counts, whole.rank_counts)
        np.testing.assert_allclose(got.log_loss, whole.log_loss, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.log_loss_sq, whole.log_loss_sq, rtol=1e-12, atol=1e-12)
        assert got.n == len(labels)


def test_vector_round_trip_is_exact() -> None:
    counts = Counts.of(*random_batch(3, 50, 5))
    vector = counts.to_vector()
    assert vector.shape == (5 * 5 + 3 * 5,)
    again = Counts.from_vector(vector, 5)
    assert again.confusion.dtype == again.rank_counts.dtype == np.int64
    np.testing.assert_array_equal(again.to_vector(), vector)
    with pytest.raises(ValueError, match="40 numbers for 5 classes"):
        Counts.from_vector(vector[:-1], 5)


def test_ties_go_to_the_first_class() -> None:
    p = [[0.4, 0.4, 0.2]] * 2
    counts = Counts.of([0, 1], p)
    assert counts.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert counts.rank_counts.tolist() == [1, 1, 0]


def test_perfect_and_all_wrong() -> None:
    perfect = summarize(Counts.of([0, 1, 2], np.eye(3)), names(3))
    assert perfect.accuracy.value == perfect.accuracy.high == 1
    assert perfect.macro_f1.value == perfect.log_loss_reduction.value == 1
    assert perfect.log_loss.value == 0
    assert perfect.most_confused == []
    wrong = summarize(Counts.of([0, 1, 2], np.eye(3)[[1, 2, 0]]), names(3))
    assert wrong.accuracy.value == wrong.accuracy.low == wrong.macro_f1.value == 0
    assert wrong.log_loss.value == pytest.approx(-math.log(1e-15))
    assert known(wrong.log_loss_reduction.value) < -1


def test_empty_set_has_no_values() -> None:
    s = summarize(Counts.zero(3), names(3))
    everything = list(metrics_in(s.to_json()))
    assert len(everything) == 5 + 1 + 3 * 4
    assert all(m == NOTHING.model_dump() for m in everything)
    json.dumps(s.to_json(), allow_nan=False)


def test_absent_and_never_predicted_classes() -> None:
    # "c" neither occurs nor is predicted; "b" occurs and is never predicted.
    s = summarize(from_confusion([[3, 0, 0], [2, 0, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert s.macro_accuracy.value == pytest.approx(0.5)
    assert s.per_class["b"].precision == NOTHING
    assert s.per_class["b"].recall.value == s.per_class["b"].f1.value == 0
    assert s.per_class["c"].f1.value is None
    assert s.macro_f1.value == pytest.approx(6 / 8 / 2)


def test_one_row_has_a_log_loss_without_interval() -> None:
    s = summarize(Counts.of([0], [[0.5, 0.5]]), names(2))
    assert (s.log_loss.n, s.log_loss.low, s.log_loss.high) == (1, None, None)
    assert s.log_loss.value == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("labels", "p", "text"),
    [
        ([0, 1], [[1.0, 0.0], [float("nan"), 0.0]], "row 1: a probability is NaN"),
        ([0, 2], [[1.0, 0.0]] * 2, "row 1: label 2 is not one of 2 classes"),
        ([0, -1], [[1.0, 0.0]] * 2, "row 1: label -1"),
        ([0], [[5.0, -3.0]], "row 0: not probabilities"),
        ([0], [[1.0, 0.0]] * 2, "need labels"),
        ([0, 1], [0.5, 0.5], "need labels"),
        ([0.0, 1.0], [[1.0, 0.0]] * 2, "labels must be integers"),
    ],
)
def test_bad_batches_are_refused(labels: list[Any], p: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Counts.of(labels, p)


def test_mismatched_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        Counts.zero(3) + Counts.zero(2)
    for classes in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="2 distinct class names"):
            summarize(Counts.zero(2), classes)
