"""What the steps are fed with: rows of the caches, or photos decoded again; the same photos either way."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers.config import TrainConfig
from flowers.data import images
from flowers.data.crops import random_resized_crop
from flowers.errors import DamagedFile, FlowersError
from flowers.features.cache import FeatureCache
from flowers.features.parts import BFLOAT16
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import inputs
from flowers.training.batches import EpochBatches, epoch_batches, needed, share
from flowers.training.inputs import CROP_SCALE, Cached, Streamed, Subset, cached_both, read_subsets, steps_at_once
from tests.e2e.conftest import draw
from tests.parity.runs import tiny_network
from tests.toys import extractor

SIZE, BATCH = 32, 4


def plan_of(folder: Path, **options: Any) -> Plan:
    config = TrainConfig(**{"storage": str(folder), "trainable": "all", "batch_size": BATCH, **options})
    return Plan(
        config=config,
        run=Run(str(folder / "run")),
        image_size=SIZE,
        weights="random",
        start_weights="random",
        precision="float32",
        cut="pixels",
    )


def joined(chunks: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(list(chunks))


# ---- cached


def subset(count: int) -> Subset:
    digests = sorted(hashlib.sha256(str(number).encode()).digest() for number in range(count))
    table = pa.table({"path": [f"/{number}.jpg" for number in range(count)], "sha256": pa.array(digests)})
    return Subset.of(table, np.zeros(count, np.int32))


def cached(
    folder: Path, photos: Subset, views: tuple[str, ...] = ("plain",), dtype: Any = np.float32
) -> tuple[Cached, list[npt.NDArray[Any]]]:
    """Inputs [2, 3] of each photo and view, and their rows in the caches, which lie there in another order."""
    plan = plan_of(folder, augment="flip")
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(len(photos.labels), 6)).astype(dtype) for _ in views]
    for view, values in zip(views, rows, strict=True):
        cache = FeatureCache(plan.cache(plan.feature("somewhere", view)))
        cache.add(photos.photos["sha256"].to_pylist()[::-1], values[::-1])
        cache.flush()
    return Cached(plan, "somewhere", views, photos, (2, 3)), [values.reshape(-1, 2, 3) for values in rows]


def order_of(total: int, rank: int = 0, workers: int = 1, epoch: int = 0) -> EpochBatches:
    return epoch_batches(TrainConfig(batch_size=BATCH), epoch, total, rank, workers)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, BFLOAT16])
def test_cached_steps_are_the_rows_of_their_photos(tmp_path: Path, dtype: Any) -> None:
    found, (rows,) = cached(tmp_path, subset(23), dtype=dtype)
    for rank in range(2):
        order = order_of(23, rank, 2)
        steps = joined(found.steps(order))
        assert steps.dtype == dtype
        assert steps.shape == (6, BATCH // 2, 2, 3)
        np.testing.assert_array_equal(steps, rows[order.indices])


@pytest.mark.parametrize("names", [("plain", "flip"), ("plain", "flip", "crop-0", "crop-1", "crop-2")])
def test_each_photo_comes_from_the_view_that_is_drawn_for_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    found, views = cached(tmp_path, subset(23), names)
    order = order_of(23)
    steps, chosen = joined(found.steps(order)), order.views(len(names))
    assert set(chosen.ravel()) == set(range(len(names)))
    for step, index in np.ndindex(order.indices.shape):
        rows = views[chosen[step, index]]
        np.testing.assert_array_equal(steps[step, index], rows[order.indices[step, index]])
    np.testing.assert_array_equal(joined(found.rows()), views[0])  # validation sees them as they are


@pytest.mark.parametrize("step_bytes", [1, 2 * BATCH * 24, 4 * BATCH * 24])
def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_bytes: int) -> None:
    found, _ = cached(tmp_path, subset(23), ("plain", "flip"))
    order = order_of(23)
    whole = list(found.steps(order))
    assert len(whole) == 1
    monkeypatch.setattr(inputs, "CHUNK_BYTES", step_bytes)
    parts = list(found.steps(order))
    assert len(parts) == {1: 6, 2 * BATCH * 24: 3, 4 * BATCH * 24: 2}[step_bytes]
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])
    rows = list(found.rows())
    assert max(map(len, rows)) == max(1, step_bytes // 24)
    np.testing.assert_array_equal(np.concatenate(rows), found.views[0])


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_share_the_rows(tmp_path: Path, workers: int) -> None:
    photos = subset(4)
    _, (rows,) = cached(tmp_path, photos)
    parts = [photos.only(share(4, rank, workers)) for rank in range(workers)]
    found = [Cached(plan_of(tmp_path, augment="flip"), "somewhere", ("plain",), part, (2, 3)) for part in parts]
    assert [len(one.views[0]) for one in found] == [part.photos.num_rows for part in parts]
    np.testing.assert_array_equal(np.concatenate([chunk for one in found for chunk in one.rows()]), rows)
    assert [chunk for one in found if not len(one.views[0]) for chunk in one.rows()] == []


@pytest.mark.parametrize(("total", "workers"), [(23, 1), (23, 2), (23, 4), (3, 2), (1, 4)])
def test_a_worker_needs_its_part_of_the_photos_alone(tmp_path: Path, total: int, workers: int) -> None:
    photos = subset(total)
    whole, (plain, flipped) = cached(tmp_path, photos, ("plain", "flip"))
    expected = joined(whole.steps(order_of(total)))
    steps = []
    for rank in range(workers):
        part = photos.only(needed(total, BATCH, rank, workers))
        mine = Cached(plan_of(tmp_path, augment="flip"), "somewhere", ("plain", "flip"), part, (2, 3))
        for view, rows in zip(mine.views, (plain, flipped), strict=True):
            np.testing.assert_array_equal(view, rows[part.part])
        steps.append(joined(mine.steps(order_of(total, rank, workers))))
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), expected)


def test_a_photo_that_is_not_in_the_cache_is_reported(tmp_path: Path) -> None:
    cached(tmp_path, subset(5))
    with pytest.raises(DamagedFile, match="lacks 2 photos; run the same command again"):
        Cached(plan_of(tmp_path, augment="flip"), "somewhere", ("plain",), subset(7), (2, 3))


def test_caches_are_read_once_for_both_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening one reads all of its digests, and the photos of both subsets lie in the same pages."""
    whole, (plain, _) = cached(tmp_path, subset(23), ("plain", "flip"))
    held, rows = FeatureCache._held, FeatureCache.rows
    opening: list[str] = []
    reading: list[tuple[str, int]] = []

    def noted(self: FeatureCache, name: str) -> Any:
        opening.append(self.uri)
        return held(self, name)

    def read(self: FeatureCache, digests: Sequence[bytes]) -> Any:
        reading.append((self.uri, len(digests)))
        return rows(self, digests)

    monkeypatch.setattr(FeatureCache, "_held", noted)
    monkeypatch.setattr(FeatureCache, "rows", read)
    plan, photos = plan_of(tmp_path, augment="flip"), subset(23)
    first = Subset.of(photos.photos.slice(0, 20), photos.labels[:20])
    last = Subset.of(photos.photos.slice(20), photos.labels[20:])
    train, validation = cached_both(plan, "somewhere", ("plain", "flip"), [first, last], (2, 3))
    assert len(opening) == len(set(opening)) == 2
    plain_uri, flip_uri = (plan.cache(plan.feature("somewhere", view)) for view in ("plain", "flip"))
    assert reading == [(plain_uri, 23), (flip_uri, 20)]
    np.testing.assert_array_equal(train.views, [view[:20] for view in whole.views])
    np.testing.assert_array_equal(validation.views[0], plain[20:])


def test_steps_at_once_fit_into_a_chunk() -> None:
    assert steps_at_once(inputs.CHUNK_BYTES) == 1
    assert steps_at_once(inputs.CHUNK_BYTES // 3) == 3
    assert steps_at_once(10 * inputs.CHUNK_BYTES) == 1
    assert steps_at_once(0) == steps_at_once(1) == inputs.MOST_STEPS


def test_the_subsets_are_those_of_the_split(tmp_path: Path) -> None:
    split = pa.table(
        {
            "path": list("abcdef"),
            "label": ["rose", "daisy", "rose", "daisy", "tulip", "rose"],
            "sha256": [bytes([number]) * 32 for number in range(6)],
            "split": ["train", "validation", "test", "train", "train", "validation"],
        }
    )
    pq.write_table(split, tmp_path / "split.parquet")
    train, validation = read_subsets(Run(str(tmp_path)), ["daisy", "rose", "tulip"])
    assert train.photos["path"].to_pylist() == ["a", "d", "e"]
    assert train.labels.tolist() == [1, 0, 2]
    assert validation.photos["path"].to_pylist() == ["b", "f"]
    assert validation.labels.tolist() == [0, 1]
    assert validation.labels.dtype == np.int32


# ---- streamed


def pictures(folder: Path) -> Subset:
    """23 pictures of two classes."""
    files = sorted(draw(folder / "photos", 2, 12).rglob("*.jpg"))[1:]
    rows = {
        "path": [str(file) for file in files],
        "label": [file.parent.name for file in files],
        "sha256": pa.array([hashlib.sha256(file.read_bytes()).digest() for file in files], pa.binary(32)),
    }
    return Subset.of(pa.table(rows), np.zeros(len(files), np.int32))


def cache_pixels(plan: Plan, photos: Subset) -> None:
    """What ingestion does, with a network that nothing is asked of."""
    decoded = np.stack([images.decode(Path(path.as_py()).read_bytes(), SIZE) for path in photos.photos["path"]])
    network = tiny_network(plan.config.backbone, "", SIZE, "float32")
    specs = [plan.feature("pixels", view) for view in plan.views]
    for spec, rows in zip(specs, extractor(network, specs, plan.networks).features(decoded), strict=True):
        cache = FeatureCache(plan.cache(spec))
        cache.add(photos.photos["sha256"].to_pylist(), rows)
        cache.flush()


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("augment", ["none", "flip", "crops"])
def test_streamed_pixels_equal_cached_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str) -> None:
    """Of both workers, some steps at a time, and in another epoch."""
    photos, plan = pictures(tmp_path), plan_of(tmp_path, augment=augment)
    cache_pixels(plan, photos)
    kept = Cached(plan, "pixels", plan.views, photos, (SIZE, SIZE, 3))
    streamed = Streamed(plan, photos, 0.5)
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 4 * 2 * SIZE * SIZE * 3)
    for rank, epoch in ((0, 0), (1, 3)):
        order = order_of(23, rank, 2, epoch)
        ours, theirs = list(kept.steps(order)), list(streamed.steps(order))
        assert [chunk.shape for chunk in theirs] == [(4, 2, SIZE, SIZE, 3), (2, 2, SIZE, SIZE, 3)]
        for one, other in zip(ours, theirs, strict=True):
            assert other.dtype == np.uint8
            np.testing.assert_array_equal(other, one)
        assert len(np.unique(order.views(len(plan.views)))) >= min(len(plan.views), 5)
    half = photos.only(share(23, 1, 2))
    np.testing.assert_array_equal(joined(Streamed(plan, half, 0.5).rows()), kept.views[0][half.part])
    mine = Streamed(plan, photos.only(needed(23, BATCH, 1, 2)), 0.5)
    np.testing.assert_array_equal(joined(mine.steps(order_of(23, 1, 2))), joined(kept.steps(order_of(23, 1, 2))))
    assert not list(Streamed(plan, photos.only(slice(3, 3)), 0.5).rows())


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("augment", CROP_SCALE)
def test_augmented_photos_are_cropped_by_the_draws_of_their_place(tmp_path: Path, augment: str) -> None:
    photos, plan = pictures(tmp_path), plan_of(tmp_path, augment=augment)
    streamed = Streamed(plan, photos, 1.0)
    order = order_of(23, 1, 2, 5)
    found = joined(streamed.steps(order))
    contents = [Path(path.as_py()).read_bytes() for path in photos.photos["path"]]
    for step, index in np.ndindex(order.indices.shape):
        crop = functools.partial(
            random_resized_crop, draws=order.draws[step, index].tolist(), scale=CROP_SCALE[augment]
        )
        wanted = images.decode(contents[order.indices[step, index]], SIZE, crop=crop)
        np.testing.assert_array_equal(found[step, index], wanted)
    middle = np.stack([images.decode(data, SIZE) for data in contents])
    np.testing.assert_array_equal(joined(streamed.rows()), middle)  # validation photos are not augmented


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("how", ["other photo", "no photo", "gone"])
def test_a_photo_that_changed_is_named(tmp_path: Path, how: str) -> None:
    photos = pictures(tmp_path)
    changed, other = (Path(photos.photos["path"][number].as_py()) for number in (7, 8))
    if how == "other photo":
        changed.write_bytes(other.read_bytes())
    elif how == "no photo":
        changed.write_bytes(b"text")
    else:
        changed.unlink()
    streamed = Streamed(plan_of(tmp_path), photos, 1.0)

    def text(values: Iterator[Any]) -> str:
        with pytest.raises(FlowersError) as caught:
            list(values)
        return str(caught.value)

    for said in (text(streamed.steps(order_of(23))), text(streamed.rows())):
        assert said.startswith(f"{changed} changed or vanished since this run began")
        assert "--fresh" in said
        assert len(said.splitlines()) == 1
    without = photos.only(slice(8, 23))
    assert joined(Streamed(plan_of(tmp_path), without, 1.0).rows()).shape == (15, SIZE, SIZE, 3)
