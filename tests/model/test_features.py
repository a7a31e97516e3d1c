"""The frozen part and the feature cache: one photo, one vector, wherever and whenever it is computed."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from flowers.data import dataset
from flowers.errors import DamagedFile
from flowers.model import features
from flowers.model.backbones import build_backbone
from flowers.model.features import BATCH, FeatureCache, FrozenPart, cache_key

SIZE = 8


def tiny(size: int = SIZE) -> Any:
    import keras

    pixels = keras.Input((size, size, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(scaled))


def photos(count: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def check_independence(part: FrozenPart, pixels: npt.NDArray[np.uint8]) -> None:
    whole = part.features(pixels)
    assert whole.dtype == np.float32
    assert len(whole) == len(pixels)
    for start, stop in ((0, 1), (5, 6), (3, 10), (0, BATCH), (1, BATCH + 1), (BATCH - 1, len(pixels))):
        np.testing.assert_array_equal(part.features(pixels[start:stop]), whole[start:stop])
    np.testing.assert_array_equal(part.features(pixels[::-1]), whole[::-1])
    assert len(np.unique(whole, axis=0)) == len(pixels)


def test_features_do_not_depend_on_company() -> None:
    part = FrozenPart(tiny, SIZE)  # a function that makes the model
    pixels = photos(2 * BATCH + 5)
    check_independence(part, pixels)
    np.testing.assert_allclose(part.features(pixels), (pixels / 127.5 - 1).mean(axis=(1, 2)), atol=1e-5)
    assert part.features(pixels[:0]).shape == (0, 3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_real_features_do_not_depend_on_company(shared: Path, precision: str) -> None:
    weights = shared / "weights" / "mobilenet_v2_224_no_top.weights.h5"
    part = FrozenPart(build_backbone("mobilenetv2", str(weights), 96, precision), 96)
    check_independence(part, photos(BATCH + 4, 96))


def test_blocks_with_nothing_to_do_in_some_rows() -> None:
    part, pixels = FrozenPart(tiny(), SIZE), photos(2)
    rows = {name: [None] * 4 for name in dataset.PIXELS.names}
    rows["pixels"] = [pixels[0].tobytes(), None, pixels[1].tobytes(), None]
    block = pa.table(rows, schema=dataset.PIXELS)
    answer = part(block)
    assert answer.column_names == [*dataset.PIXELS.names[:-1], "features"]
    found = answer["features"].to_pylist()
    assert found[1] is None
    assert found[3] is None
    expected = part.features(pixels)
    for place, row in ((0, expected[0]), (2, expected[1])):
        np.testing.assert_array_equal(np.frombuffer(found[place], np.float32), row)
    for nothing in (block.slice(1, 1), block.slice(0, 0)):
        assert part(nothing)["features"].null_count == nothing.num_rows


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def vector(number: int) -> npt.NDArray[np.float32]:
    return np.array([number, -number, number / 7], np.float32)


def add(cache: FeatureCache, *numbers: int) -> None:
    cache.add([digest(number) for number in numbers], np.stack([vector(number) for number in numbers]))


def check_rows(cache: FeatureCache, *numbers: int) -> None:
    found = cache.rows([digest(number) for number in numbers])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([vector(number) for number in numbers]))


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    """Three parts of two, three and one photos."""
    made = FeatureCache(str(tmp_path / "cache")).open()
    for numbers in ((0, 1), (2, 3, 4), (5,)):
        add(made, *numbers)
        made.flush()
    return made


def test_rows_come_in_the_order_asked_for(cache: FeatureCache) -> None:
    again = FeatureCache(cache.uri).open()
    assert sorted(again.digests()) == sorted(digest(number) for number in range(6))
    for held in (cache, again):
        check_rows(held, 5, 0, 3, 1, 4, 2)
        check_rows(held, 4)
        check_rows(held, 2, 5, 2, 0, 2)  # a photo asked for twice
    assert again.open().digests() == again.digests()  # opened twice, counted once
    assert not again.damaged


def test_pending_photos_are_held_and_written_with_the_next_flush(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(cache, 6)
    assert digest(6) in cache.digests()
    assert digest(6) not in FeatureCache(cache.uri).open().digests()
    cache.flush()
    check_rows(FeatureCache(cache.uri).open(), 6, 0)
    before = len(list(Path(cache.uri).iterdir()))
    cache.flush()
    assert len(list(Path(cache.uri).iterdir())) == before
    monkeypatch.setattr(features, "PART_ROWS", 2)
    add(cache, 7, 8)
    check_rows(FeatureCache(cache.uri).open(), 8, 7)


def test_an_unknown_photo_is_reported(cache: FeatureCache) -> None:
    for numbers in ((0, 77), (77, 78)):
        with pytest.raises(DamagedFile, match=f"lacks {sum(number > 5 for number in numbers)} photos"):
            cache.rows([digest(number) for number in numbers])


def part_of(cache: FeatureCache, number: int) -> Path:
    """The file that holds a photo."""
    return next(Path(cache.uri) / name for name, held in cache._parts.items() if digest(number) in held)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "bit flip":
        data[len(data) // 3] ^= 4
        file.write_bytes(data)
    elif how == "truncated":
        file.write_bytes(data[:-1])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.rename(file.with_name("part-" + "0" * 64 + ".parquet"))


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "renamed"])
def test_a_damaged_part_is_removed_and_its_photos_are_missing(cache: FeatureCache, how: str) -> None:
    file = part_of(cache, 3)
    damage(file, how)
    again = FeatureCache(cache.uri).open()
    assert len(again.damaged) == 1
    assert set(again.digests()) == {digest(number) for number in (0, 1, 5)}
    assert len(list(Path(cache.uri).iterdir())) == 2
    add(again, 2, 3, 4)
    again.flush()
    assert file.exists()  # the same photos, the same bytes, the same name
    check_rows(FeatureCache(cache.uri).open(), 0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "renamed"])
def test_damage_after_opening_is_noticed(cache: FeatureCache, how: str) -> None:
    damage(part_of(cache, 3), how)
    check_rows(cache, 0, 5)
    with pytest.raises(DamagedFile):
        cache.rows([digest(0), digest(3)])


def test_two_processes_may_remove_the_same_damaged_part(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = part_of(cache, 3)
    damage(file, "truncated")
    read = FeatureCache._read

    def other_is_first(self: FeatureCache, name: str, columns: list[str]) -> Any:
        try:
            return read(self, name, columns)
        except DamagedFile:
            file.unlink()
            raise

    monkeypatch.setattr(FeatureCache, "_read", other_is_first)
    assert FeatureCache(cache.uri).open().damaged == [file.name]


def test_two_writers_may_add_the_same_photos(tmp_path: Path) -> None:
    uri = str(tmp_path / "cache")
    first, second = FeatureCache(uri).open(), FeatureCache(uri).open()
    add(first, 0, 1, 2)
    add(second, 1, 2, 3)
    first.flush()
    second.flush()
    check_rows(FeatureCache(uri).open(), 3, 2, 1, 0)
    check_rows(first, 0, 1, 2)


def test_files_that_are_no_parts_are_left_alone(cache: FeatureCache) -> None:
    other = Path(cache.uri) / "part-1.parquet.abc.tmp"
    other.write_bytes(b"half a part")
    assert len(FeatureCache(cache.uri).open().digests()) == 6
    assert other.exists()


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert FeatureCache(str(tmp_path / "none")).open().digests() == []


def test_a_large_matrix_lies_in_a_file(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IN_MEMORY_BYTES", 8)
    assert isinstance(features._matrix(4, 3), np.memmap)
    check_rows(cache, 5, 0, 3, 1, 4, 2)


def test_the_key_holds_everything_a_feature_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"backbone": "resnet50", "weights": "random:0", "image_size": 224, "precision": "float32"}
    base |= {"max_pixels": 10, "cut": "pool"}
    other = {"backbone": "resnet101", "weights": "random:1", "image_size": 225, "precision": "bfloat16"}
    other |= {"max_pixels": 11, "cut": "x"}
    keys = [cache_key(**base), *(cache_key(**{**base, name: other[name]}) for name in base)]  # type: ignore[arg-type]
    assert cache_key(**base) == keys[0]  # type: ignore[arg-type]
    monkeypatch.setattr(features, "DECODER_VERSION", "another")
    keys.append(cache_key(**base))  # type: ignore[arg-type]
    assert all(one != two for one, two in itertools.combinations(keys, 2))
