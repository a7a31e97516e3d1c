"""Augmentation: what it does to pictures and targets, and that only seed, step and index decide about it."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowers.model.augmentation import KINDS, Augmenter

SIZE, BATCH, CLASSES = 24, 16, 5
STEPS = range(12)

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]


def photos(count: int = BATCH) -> npt.NDArray[np.uint8]:
    """Random pictures, uint8 [count, SIZE, SIZE, 3], of colours that neither 0 nor 255 is among."""
    return np.random.default_rng(0).integers(20, 230, (count, SIZE, SIZE, 3), dtype=np.uint8)


def one_hot() -> npt.NDArray[np.float32]:
    return np.eye(CLASSES, dtype=np.float32)[np.arange(BATCH) % CLASSES]


@cache
def compiled(kind: str, workers: int = 1, rank: int = 0, seed: int = 3) -> Any:
    import tensorflow as tf

    return tf.function(Augmenter(kind, size=SIZE, batch_size=BATCH, workers=workers, rank=rank, seed=seed))


def augment(kind: str, number: int, workers: int = 1, seed: int = 3, pixels: Any = None) -> Arrays:
    """What all workers make of a global batch, one after the other."""
    import tensorflow as tf

    pixels, targets, local_batch = photos() if pixels is None else pixels, one_hot(), BATCH // workers
    parts = []
    for rank in range(workers):
        part = slice(rank * local_batch, (rank + 1) * local_batch)
        out = compiled(kind, workers, rank, seed)(pixels[part], targets[part], tf.constant(number))
        parts.append([tensor.numpy() for tensor in out])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def assert_same(one: Arrays, other: Arrays) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_sums(kind: str) -> None:
    for number in STEPS:
        pixels, targets = augment(kind, number)
        assert (pixels.shape, pixels.dtype) == ((BATCH, SIZE, SIZE, 3), np.dtype(np.uint8))
        assert (targets.shape, targets.dtype) == ((BATCH, CLASSES), np.dtype(np.float32))
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        assert targets.min() >= 0
        assert (pixels != photos()).mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_workers_gives_the_same_pictures(kind: str) -> None:
    for number in STEPS:
        alone = augment(kind, number)
        assert_same(augment(kind, number, workers=2), alone)
        assert_same(augment(kind, number, workers=4), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_only_seed_step_and_place_decide(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    first = augment(kind, 7)
    for number in (0, 9, 2):
        augment(kind, number)
    keras.utils.set_random_seed(99)
    state = random.getstate()
    assert_same(augment(kind, 7), first)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "compiled", compiled.__wrapped__)  # traced anew
            assert_same(augment(kind, 7), first)
    finally:
        keras.config.set_dtype_policy("float32")
    assert random.getstate() == state
    for other in (augment(kind, 8), augment(kind, 7, seed=4), augment(kind, 1 << 30), augment(kind, 7, seed=2**31 - 1)):
        assert (other[0] != first[0]).mean() > 0.3
    same = np.repeat(photos(1), BATCH, axis=0)
    assert len(np.unique(augment(kind, 7, pixels=same)[0], axis=0)) == BATCH


@pytest.mark.parametrize("kind", KINDS)
def test_one_trace_serves_all_steps(kind: str) -> None:
    for number in STEPS:
        augment(kind, number)
    assert compiled(kind, 1, 0, 3).experimental_get_tracing_count() == 1


def test_half_of_the_photos_are_flipped() -> None:
    """A picture bright on the left, whatever its colours become."""
    import tensorflow as tf

    count = 1000
    pixels = np.full((count, 8, 8, 3), 60, np.uint8)
    pixels[:, :, :4] = 180
    augmenter = Augmenter("standard", size=8, batch_size=count, workers=1, rank=0, seed=0)
    out, targets = augmenter(pixels, tf.zeros((count, 2)), tf.constant(0))
    flipped = out.numpy()[:, :, :4].mean(axis=(1, 2, 3)) < out.numpy()[:, :, 4:].mean(axis=(1, 2, 3))
    assert 440 < flipped.sum() < 560
    assert not targets.numpy().any()


def test_kinds_differ() -> None:
    for number in STEPS:
        assert (augment("standard", number)[0] != augment("strong", number)[0]).mean() > 0.1
        np.testing.assert_array_equal(augment("standard", number)[1], one_hot())
    mixed = [augment("strong", number)[1] for number in range(40)]
    assert np.mean([(targets.max(axis=1) < 0.999).mean() for targets in mixed]) > 0.5


def test_targets_follow_the_pixels() -> None:
    """Photos of one colour each, changed only by mixing: the share of the neighbour is read from the picture."""
    import tensorflow as tf

    augmenter = Augmenter("strong", size=SIZE, batch_size=BATCH, workers=1, rank=0, seed=5)
    pixels = np.zeros((BATCH, SIZE, SIZE, 3), np.dtype(np.uint8))
    pixels[1::2] = 200
    targets = np.tile(np.eye(2, dtype=np.float32), (BATCH // 2, 1))
    blended = []
    for number in range(20):
        out, mixed = (tensor.numpy() for tensor in augmenter._mix(tf.constant(pixels), targets, tf.constant(number)))
        np.testing.assert_allclose(out.mean(axis=(1, 2, 3)) / 200, mixed[:, 1], atol=0.003)
        blended.append(len(np.unique(out)) > 2)
        for picture in out:  # a rectangle is pasted in, or all pixels are equal
            changed = picture[..., 0] != picture[..., 0].flat[0]
            assert set(np.unique(picture)) <= {0, 200} or not changed.any()
    assert 4 < sum(blended) < 16


def test_erasing_greys_a_rectangle_in_a_quarter_of_the_photos() -> None:
    import tensorflow as tf

    count = 1000
    augmenter = Augmenter("strong", size=SIZE, batch_size=count, workers=1, rank=0, seed=5)
    out = augmenter._erase(tf.zeros((count, SIZE, SIZE, 3), tf.uint8), tf.constant(0)).numpy()
    erased = out.any(axis=(1, 2, 3))
    assert 200 < erased.sum() < 300
    assert set(np.unique(out)) == {0, 128}
    area = (out[erased, :, :, 0] == 128).mean(axis=(1, 2))
    assert 0.01 < area.min() < 0.06
    assert 0.2 < area.max() < 0.36
    for picture in out[erased, :, :, 0] == 128:
        assert picture.sum() == picture.any(axis=0).sum() * picture.any(axis=1).sum()


@pytest.mark.parametrize("size", [23, 24])
def test_operations(size: int) -> None:
    """Order: brightness, contrast, colour, contrast to the full, sharpness, bits, solarization, shear, shift, turn."""
    import tensorflow as tf

    operations = Augmenter("strong", size=size, batch_size=2, workers=1, rank=0, seed=0).operations
    rows, columns = np.mgrid[:size, :size]
    disc = np.hypot(rows - (size - 1) / 2, columns - (size - 1) / 2) / size
    image = np.stack([90 + 70 * disc, 170 - 60 * disc, 120 + disc], axis=-1).astype(np.float32)
    images = tf.constant(np.stack([image, image]))

    def apply(index: int, one: float, other: float = 0.0) -> npt.NDArray[np.float32]:
        return operations[index](images, tf.constant([[one, other], [0.0, 0.0]])).numpy()

    results = [apply(index, 0.9, -0.5) for index in range(len(operations))]
    assert len(results) == 10
    for index, result in enumerate(results):
        if index not in (3, 5, 6):  # which always do something
            np.testing.assert_allclose(result[1], image, atol=0.02, err_msg=str(index))
        if index not in (6, 9):
            assert np.abs(result[0] - image).mean() > 0.05, index
    assert results[0][0].mean() > image.mean() + 50
    assert np.ptp(results[1][0][..., 0]) > 1.5 * np.ptp(image[..., 0])
    assert np.ptp(results[2][0], axis=-1).mean() < 0.3 * np.ptp(image, axis=-1).mean()
    assert np.ptp(apply(2, -0.9)[0], axis=-1).mean() > 1.3 * np.ptp(image, axis=-1).mean()
    assert (results[3][0].min(), results[3][0].max()) == pytest.approx((0, 255), abs=0.01)
    assert not (results[5][0] % 16).any()
    assert not (apply(5, -1.0)[0] % 2).any()
    np.testing.assert_allclose(apply(6, -1.0)[0], np.where(image < 128, image, 255 - image), atol=0.01)
    np.testing.assert_allclose(apply(8, 0.0, -10 / size)[0][:-2], image[2:], atol=0.02)
    inner = disc < 0.4
    for strength in (0.9, -0.9):  # about the middle, so a disc does not change
        np.testing.assert_allclose(apply(9, strength)[0][inner], image[inner], atol=0.6)
        assert (apply(9, strength)[0][0, 0] == 128).all()


@pytest.mark.parametrize(
    ("kind", "batch", "workers"),
    [("weak", 16, 1), ("strong", 6, 2), ("strong", 3, 1), ("strong", 16, 3), ("standard", 16, 3)],
)
def test_refusals(kind: str, batch: int, workers: int) -> None:
    with pytest.raises(ValueError, match="required is"):
        Augmenter(kind, size=8, batch_size=batch, workers=workers, rank=0, seed=0)


def test_an_odd_share_is_enough_where_nothing_is_mixed() -> None:
    Augmenter("standard", size=8, batch_size=6, workers=2, rank=0, seed=0)
