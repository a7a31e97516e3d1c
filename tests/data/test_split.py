"""The split: exact fractions, no leak, and a subset that a photo keeps whatever happens around it."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.data.split import SUBSETS, apportion, assign

DEFAULT = (0.7, 0.27, 0.03)


@st.composite
def splits(draw: st.DrawFn) -> tuple[float, float, float]:
    """Fractions in percent, as a user gives them: train and validation above 0."""
    train = draw(st.integers(1, 99))
    validation = draw(st.integers(1, 100 - train))
    return train / 100, validation / 100, (100 - train - validation) / 100


def digests(count: int, salt: str = "") -> list[bytes]:
    return [hashlib.sha256(f"{salt}{index}".encode()).digest() for index in range(count)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), splits())
def test_each_cell_is_its_share_rounded(sizes: list[int], fractions: tuple[float, float, float]) -> None:
    cells = apportion(sizes, fractions)
    assert cells.shape == (len(sizes), 3)
    assert (cells >= 0).all()
    assert cells.sum(axis=1).tolist() == sizes
    exact = np.outer(sizes, fractions)
    for size, row, wanted in zip(sizes, cells, exact, strict=True):
        if size >= 2:
            assert row[0] >= 1
            assert row[1] >= 1
        if size < 2 or min(wanted[:2]) >= 1:  # else a photo is moved to where there is none
            assert np.abs(row - wanted).max() < 1 - 1e-7


@settings(deadline=None)
@given(st.lists(st.integers(100, 400), min_size=1, max_size=60), splits())
def test_totals_are_right_however_many_classes(sizes: list[int], fractions: tuple[float, float, float]) -> None:
    error = apportion(sizes, fractions).sum(axis=0) - sum(sizes) * np.array(fractions)
    assert np.abs(error).max() < 1


@settings(deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=60))
def test_small_classes_keep_the_totals_close_at_the_default_fractions(sizes: list[int]) -> None:
    cells = apportion(sizes, DEFAULT)
    forced = sum(size < 4 for size in sizes)
    assert np.abs(cells.sum(axis=0) - sum(sizes) * np.array(DEFAULT)).max() < 1 + forced


@pytest.mark.parametrize(
    ("sizes", "totals"),
    [([240] * 5, [840, 324, 36]), ([40] * 5, [140, 54, 6]), ([100], [70, 27, 3]), ([1000] * 3, [2100, 810, 90])],
)
def test_known_totals(sizes: list[int], totals: list[int]) -> None:
    assert apportion(sizes, DEFAULT).sum(axis=0).tolist() == totals


def test_a_whole_share_is_not_lost_to_floating_point() -> None:
    assert 0.57 * 100 < 57
    assert apportion([6, 100], (0.57, 0.215, 0.215))[1].tolist() == [57, 22, 21]


@pytest.mark.parametrize("fractions", [DEFAULT, (0.1, 0.1, 0.8), (0.98, 0.01, 0.01), (0.01, 0.98, 0.01)])
def test_two_photos_are_one_to_train_and_one_to_validate(fractions: tuple[float, float, float]) -> None:
    assert apportion([2] * 9, fractions).tolist() == [[1, 1, 0]] * 9


def test_no_test_side_is_left_empty() -> None:
    assert apportion([7, 11, 13], (0.8, 0.2, 0.0))[:, 2].tolist() == [0, 0, 0]


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """Digests and labels."""
    sizes = draw(st.lists(st.integers(2, 25), min_size=1, max_size=5))
    labels = [f"class {number}" for number, size in enumerate(sizes) for _ in range(size)]
    return digests(len(labels), draw(st.sampled_from(["a", "b", "c"]))), labels


@settings(deadline=None)
@given(data_sets(), splits(), st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_order_of_the_listing_is_irrelevant(
    photos: tuple[list[bytes], list[str]],
    fractions: tuple[float, float, float],
    seed: int,
    shuffle: random.Random,
) -> None:
    found, labels = photos
    straight = dict(zip(found, assign(found, labels, fractions, seed), strict=True))
    order = list(range(len(found)))
    shuffle.shuffle(order)
    mixed = [found[index] for index in order]
    other = assign(mixed, [labels[index] for index in order], fractions, seed)
    assert dict(zip(mixed, other, strict=True)) == straight


@settings(deadline=None)
@given(data_sets(), splits())
def test_quotas_are_filled_exactly(
    photos: tuple[list[bytes], list[str]], fractions: tuple[float, float, float]
) -> None:
    found, labels = photos
    subsets = assign(found, labels, fractions, 0)
    classes = sorted(set(labels))
    dealt = [[sum(subsets[i] == subset for i in range(len(subsets)) if labels[i] == name) for subset in range(3)]
             for name in classes]  # fmt: skip
    assert dealt == apportion([labels.count(name) for name in classes], fractions).tolist()


def test_the_seed_decides_who_not_how_many() -> None:
    found, labels = digests(200), ["a"] * 100 + ["b"] * 100
    one, same, other = (assign(found, labels, DEFAULT, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).sum() > 20
    assert np.bincount(one).tolist() == np.bincount(other).tolist()


def test_the_deal_does_not_follow_the_digest() -> None:
    """A subset is a random sample: mean of the digests' first byte about the same in each."""
    found = digests(3000)
    subsets = assign(found, ["a"] * 3000, (0.5, 0.3, 0.2), 0)
    first = np.array([digest[0] for digest in found])
    assert np.allclose([first[subsets == subset].mean() for subset in range(3)], first.mean(), atol=8)


@settings(deadline=None)
@given(data_sets(), st.data())
def test_known_photos_keep_their_side(photos: tuple[list[bytes], list[str]], data: st.DataObject) -> None:
    """However lopsided the known subsets are, and with photos known that are gone."""
    found, labels = photos
    subset = data.draw(st.lists(st.sampled_from(found), unique=True))
    known = {digest: data.draw(st.integers(0, 2)) for digest in subset}
    subsets = assign(found, labels, DEFAULT, 0, {**known, **dict.fromkeys(digests(3, "gone"), 0)})
    assert set(subsets.tolist()) <= set(range(len(SUBSETS)))
    assert {digest: subset for digest, subset in zip(found, subsets.tolist(), strict=True) if digest in known} == known


@settings(deadline=None)
@given(data_sets(), st.integers(1, 20), st.integers(0, 5))
def test_adding_photos_moves_no_known_one(photos: tuple[list[bytes], list[str]], count: int, later_seed: int) -> None:
    found, labels = photos
    before = dict(zip(found, assign(found, labels, DEFAULT, 0).tolist(), strict=True))
    more = [*digests(count, "new"), *found]
    after = assign(more, ["class 0"] * count + labels, DEFAULT, later_seed, before)
    assert dict(zip(more, after.tolist(), strict=True)) | before == dict(zip(more, after.tolist(), strict=True))


def test_new_photos_fill_what_is_missing() -> None:
    found = digests(100)
    known = dict.fromkeys(found[:50], 0)
    subsets = assign(found, ["a"] * 100, DEFAULT, 0, known)
    assert np.bincount(subsets).tolist() == [70, 27, 3]


def test_an_overfull_known_side_leaves_the_rest_to_the_others() -> None:
    found = digests(100)
    subsets = assign(found, ["a"] * 100, DEFAULT, 0, dict.fromkeys(found[:80], 0))
    counts = np.bincount(subsets, minlength=3)
    assert counts[0] == 80
    assert counts[1] == 17
    assert counts[2] == 3


def test_one_new_photo_beside_an_overfull_side_goes_where_a_class_needs_it() -> None:
    """Validation is empty and required, test is optional: the only new photo validates."""
    found = digests(10)
    subsets = assign(found, ["a"] * 10, (0.4, 0.3, 0.3), 0, dict.fromkeys(found[:9], 0))
    assert SUBSETS[subsets[9]] == "validation"
