"""Typicality: what it promises of photos of the classes, what it says of others, and its file, whatever is in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.typicality import Typicality, none_of_these, rejected
from tests.toys import typical

D, K = 40, 3
Drawn = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def drawn(rng: np.random.Generator, n: int) -> Drawn:
    """Features, classes and probabilities of photos of the classes: each has features of its own, one is shared."""
    labels = rng.integers(0, K, n).astype(np.int32)
    features = np.abs(rng.normal(0.2, 0.1, (n, D)))
    features[np.arange(n), labels] += 1
    features[:, -1] += rng.exponential(0.5, n)
    sure = rng.uniform(0.6, 1, n)
    probabilities = np.repeat(((1 - sure) / (K - 1))[:, None], K, axis=1)
    probabilities[np.arange(n), labels] = sure
    return features.astype(np.float32), labels, probabilities.astype(np.float32)


def fitted(seed: int = 0, n: int = 200, m: int = 99) -> Typicality:
    rng = np.random.default_rng(seed)
    features, labels, _ = drawn(rng, n)
    held, _, probabilities = drawn(rng, m)
    return Typicality.fit(features, labels, held, probabilities)


@pytest.mark.parametrize("allowed", [0.02, 0.05, 0.2])
def test_no_more_photos_of_the_classes_are_rejected_than_allowed(allowed: float) -> None:
    """The mean over many splits: of one alone, chance makes it a little more or less."""
    rng, shares = np.random.default_rng(1), []
    for seed in range(20):
        features, _, probabilities = drawn(rng, 200)
        shares.append(rejected(fitted(seed).of(features, probabilities), allowed).mean())
    assert 0.6 * allowed < np.mean(shares) < 1.3 * allowed


def test_other_things_are_found_however_sure_the_network_is() -> None:
    known, rng = fitted(), np.random.default_rng(2)
    others = np.abs(rng.normal(0.2, 0.1, (100, D)))
    others[np.arange(100), rng.integers(K, D - 1, 100)] += 1  # a feature that no class has
    certain = np.tile(np.array([1, 0, 0], np.float32), (100, 1))
    assert rejected(known.of(others.astype(np.float32), certain), 0.05).mean() > 0.95


def test_doubt_makes_a_photo_stranger() -> None:
    known = fitted()
    features, labels, _ = drawn(np.random.default_rng(3), 50)
    sure, unsure = np.eye(K, dtype=np.float32)[labels], np.full((50, K), 1 / K, np.float32)
    assert (known.strangeness(features, unsure) > known.strangeness(features, sure)).all()


def test_brightness_is_no_strangeness() -> None:
    features, _, probabilities = drawn(np.random.default_rng(4), 20)
    known = fitted()
    np.testing.assert_allclose(known.of(3 * features, probabilities), known.of(features, probabilities), atol=0.011)


def test_it_is_a_share_of_validation_photos() -> None:
    known = fitted(m=99)
    assert (known.validated, known.least) == (99, 0.01)
    rng = np.random.default_rng(0)
    drawn(rng, 200)  # as `fitted` does
    held, _, doubted = drawn(rng, 99)
    np.testing.assert_allclose(np.sort(known.of(held, doubted)), np.arange(1, 100) / 100, rtol=1e-6)
    features, _, probabilities = drawn(np.random.default_rng(5), 500)
    found = known.of(features, probabilities)
    assert found.dtype == np.float32
    assert np.float32(0.01) == found.min()
    assert 0.9 < found.max() <= np.float32(0.99)
    one_by_one = np.concatenate([known.of(features[[at]], probabilities[[at]]) for at in range(20)])
    np.testing.assert_array_equal(one_by_one, found[:20])


def test_the_distance_is_that_of_mahalanobis() -> None:
    known, (features, _, _) = fitted(), drawn(np.random.default_rng(6), 9)
    rest = known.variances[-1]
    covariance = rest * np.eye(D) + (known.directions * (known.variances[:-1] - rest)) @ known.directions.T
    x = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    apart = x[:, None] - known.means
    expected = np.einsum("nkd,de,nke->nk", apart, np.linalg.inv(covariance), apart).min(axis=1)
    np.testing.assert_allclose(known._distance(features), expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (3, 3), (3, 5), (8, 2)])
def test_few_photos_and_classes_without_any(n: int, classes: int) -> None:
    rng = np.random.default_rng(7)
    features = rng.random((n + 2, 5)).astype(np.float32)
    features[0] = 0
    probabilities = np.full((2, classes), 1 / classes, np.float32)
    known = Typicality.fit(features[:n], np.arange(n, dtype=np.int32) % min(n, classes), features[:2], probabilities)
    found = Typicality.from_bytes(known.to_bytes(), classes).of(features[:2], probabilities)
    assert np.isfinite(found).all()
    assert found.min() >= np.float32(1 / 3)


def test_its_file_says_the_same() -> None:
    known = fitted()
    again = Typicality.from_bytes(known.to_bytes(), K)
    assert again.to_bytes() == known.to_bytes()
    features, _, probabilities = drawn(np.random.default_rng(8), 50)
    np.testing.assert_array_equal(again.of(features, probabilities), known.of(features, probabilities))
    with pytest.raises(ValueError, match="not those of 4 classes"):
        Typicality.from_bytes(known.to_bytes(), K + 1)


WHOLE = typical(3).to_bytes()


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=16), st.integers(0, len(WHOLE)))
def test_a_file_of_anything_is_refused_or_read(at: int, put: bytes, end: int) -> None:
    """Whatever its header claims, no more memory is taken than it has bytes."""
    for data in (put, WHOLE[:end], WHOLE[:at] + put + WHOLE[at + len(put) :], b"\xff" * 12 + WHOLE[12:]):
        try:
            found = Typicality.from_bytes(data, 3)
        except ValueError:
            continue
        assert found.to_bytes() == data
        assert found.validated >= 1


def test_the_limit_is_compared_as_it_was_given() -> None:
    """20 of 400 is 5 %: not above it, in whatever precision either came."""
    for typicality in (0.05, np.float32(0.05), float(np.float32(0.05))):
        assert rejected(typicality, 0.05)
        assert none_of_these(float(typicality), 0.05) == (
            "none of these: 5 % of photos of these classes are as unusual, the limit is 5 %"
        )
    assert none_of_these(0.0501, 0.05) is None
