"""Random crops as a pure function, and the stream of cropped photos through Ray."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers.data import images, reading
from flowers.data.crops import RandomCrops, crops_of, random_resized_crop
from flowers.data.listing import LISTING

SIZE = 16

unit = st.floats(0, 1, exclude_max=True)
side = st.integers(1, 20_000)
scales = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(side, side, st.tuples(unit, unit, unit, unit), scales)
def test_a_crop_lies_inside_the_photo(
    width: int, height: int, draws: tuple[float, float, float, float], scale: tuple[float, float]
) -> None:
    left, top, right, bottom = random_resized_crop(width, height, draws=draws, scale=scale)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    assert 3 / 4 * (1 - 1e-6) <= wide / high <= 4 / 3 * (1 + 1e-6)
    area = wide * high / (width * height)
    wanted = scale[0] + draws[0] * (scale[1] - scale[0])
    touches = math.isclose(wide, width, rel_tol=1e-6) or math.isclose(high, height, rel_tol=1e-6)
    assert math.isclose(area, wanted, rel_tol=1e-5) or (touches and area < wanted)
    assert (left, top, right, bottom) == random_resized_crop(width, height, draws=list(draws), scale=scale)


def test_crops_are_spread_as_they_should() -> None:
    draws = np.random.default_rng(0).random((4000, 4)).tolist()
    boxes = np.array([random_resized_crop(500, 400, draws=one, scale=(0.1, 0.5)) for one in draws])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(np.quantile(wide * high / 200_000, [0.25, 0.5, 0.75]), [0.2, 0.3, 0.4], atol=0.01)
    logarithms = np.log(wide / high) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(logarithms, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.05)
    np.testing.assert_allclose(np.quantile(boxes[:, 0] / (500 - wide), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    np.testing.assert_allclose(np.quantile(boxes[:, 1] / (400 - high), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


def test_a_panorama_keeps_its_shape() -> None:
    """The whole area of a photo 4:1 cannot be had within 4:3; the largest such box is, not a squashed one."""
    np.testing.assert_allclose(
        random_resized_crop(400, 100, draws=(0.5, 0.5, 0.5, 0), scale=(1, 1)), (150, 0, 250, 100), atol=1e-9
    )


def photo(seed: int, height: int, width: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=95)
    return out.getvalue()


def listing(paths: list[Path]) -> pa.Table:
    return pa.Table.from_pylist([{"path": str(path), "label": "a"} for path in paths], schema=LISTING)


def always(box: images.Box) -> images.Crop:
    return lambda width, height: box


def test_a_view_is_the_decoders_crop(tmp_path: Path) -> None:
    path, data = tmp_path / "a.jpg", photo(0, 90, 120)
    path.write_bytes(data)
    draws = np.array([[0.3, 0.8, 0.1, 0.9], [0.9, 0.1, 0.5, 0.2]])
    table = listing([path, path])
    crops = crops_of(RandomCrops(draws, (0.2, 0.8)).beside(table), (0.2, 0.8))
    out = reading.decode_block(reading.read_block(table), size=SIZE, max_pixels=20_000, crops=crops)
    assert out.schema == reading.PIXELS
    for row, one in zip(out.to_pylist(), draws.tolist(), strict=True):
        box = random_resized_crop(120, 90, draws=one, scale=(0.2, 0.8))
        want = images.decode(data, SIZE, crop=always(box))
        assert row["pixels"] == want.tobytes()
        assert (row["sha256"], row["code"]) == (hashlib.sha256(data).digest(), None)


@pytest.mark.usefixtures("ray")
def test_ray_streams_views_in_the_order_of_the_listing(tmp_path: Path) -> None:
    """Photos of different sizes, most of them twice, one broken, one gone."""
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(photo(number, 300 if number < 8 else 20, 30))
    paths[5].write_bytes(b"text")
    paths.append(tmp_path / "gone.jpg")
    order = np.random.default_rng(1).integers(0, len(paths), 75)
    order[[3, 60]], order[[7, 70]] = 5, 40
    table = listing([paths[index] for index in order])
    draws = np.random.default_rng(2).random((len(order), 4))
    crops = RandomCrops(draws, (0.1, 0.9))
    options: dict[str, Any] = {"size": SIZE, "max_pixels": 10_000}
    streamed = list(reading.tables(reading.stream_pixels(table, readers=2, crops=crops, num_cpus=0.25, **options)))
    assert len(streamed) > 3
    rows = pa.concat_tables(streamed)
    assert rows.schema == reading.PIXELS
    assert rows["path"].to_pylist() == [str(paths[index]) for index in order]
    codes = {5: "not_a_photo", 40: "unreadable"}
    assert rows["code"].to_pylist() == [codes.get(index) for index in order]
    read, views = reading.read_block(table), crops_of(crops.beside(table), crops.scale)
    assert rows.combine_chunks() == reading.decode_block(read, crops=views, **options).combine_chunks()
    for index in set(order) - set(codes):  # a photo listed twice is seen differently
        views = [rows["pixels"][int(row)].as_py() for row in np.flatnonzero(order == index)]
        assert len(set(views)) == len(views)
    middle = pa.concat_tables(list(reading.tables(reading.stream_pixels(table, readers=1, **options))))
    assert middle.combine_chunks() == reading.decode_block(read, **options).combine_chunks()


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (12,)])
def test_draws_have_a_row_for_each_photo(shape: tuple[int, ...]) -> None:
    table = listing([Path("a.jpg")] * 3)
    with pytest.raises(ValueError, match="required is"):
        RandomCrops(np.zeros(shape), (0.1, 1)).beside(table)
