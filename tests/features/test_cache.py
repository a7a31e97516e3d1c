"""The frozen part and the feature cache: one photo, one vector, wherever and whenever it is computed."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from flowers.errors import DamagedFile
from flowers.features import cache as cache_module
from flowers.features import spec as spec_module
from flowers.features.cache import FeatureCache
from flowers.features.extractor import FeatureExtractor
from flowers.features.parts import BFLOAT16, GROUP_ROWS, Part, from_arrow, to_arrow
from flowers.features.spec import BATCH, FeatureSpec
from flowers.inference.engine import ENGINES
from flowers.model import cuts
from flowers.model.backbones import build_backbone
from flowers.model.registry import POOL
from flowers.training.batches import share
from tests.features.counted import Counted, counting
from tests.toys import extractor

SIZE = 8
# Of the network below: its output, what lies in the middle, and its input; as they are and mirrored.
SPEC = FeatureSpec(
    cut="pool",
    backbone="tiny",
    weights="random:0",
    image_size=SIZE,
    precision="float32",
    engine="tensorflow",
    max_pixels=10,
)
SPECS = [replace(SPEC, cut=cut, view=view) for cut in ("pool", "half", "pixels") for view in ("flip", "plain")]


def tiny() -> Any:
    """A network that halves the picture and takes its mean."""
    import keras

    start = keras.Input((SIZE, SIZE, 3))
    body = keras.Model(start, keras.layers.Activation("relu")(keras.layers.AveragePooling2D(2, name="half")(start)))
    body.name = "tiny"
    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, name=cuts.SCALE)(pixels)
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL)(body(scaled))
    return keras.Model(pixels, pooled)


def photos(count: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def by_hand(pixels: npt.NDArray[np.uint8], spec: FeatureSpec) -> npt.NDArray[Any]:
    seen = pixels[:, :, ::-1] if spec.view == "flip" else pixels
    if spec.cut == "pixels":
        return seen.reshape(len(seen), -1)
    scaled = (seen / 127.5).astype(np.float32)
    if spec.cut == "pool":
        return scaled.mean(axis=(1, 2))
    return scaled.reshape(-1, SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(2, 4)).reshape(len(seen), -1)


def check_independence(part: FeatureExtractor, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
    """Returns the features."""
    whole = part.features(pixels)
    assert len(whole) == len(part.specs)
    slices = (0, 1), (5, 6), (3, 10), (0, BATCH), (1, BATCH + 1), (BATCH - 1, len(pixels))
    for start, stop in slices:
        for rows, some in zip(whole, part.features(pixels[start:stop]), strict=True):
            np.testing.assert_array_equal(some, rows[start:stop])
    for rows, backwards in zip(whole, part.features(pixels[::-1]), strict=True):
        np.testing.assert_array_equal(backwards, rows[::-1])
        assert len(np.unique(rows.astype(np.float64), axis=0)) == len(rows) == len(pixels)
    return whole


@pytest.mark.parametrize("engine", ENGINES)
def test_every_cut_of_every_view(tmp_path: Path, engine: str) -> None:
    pixels, made = photos(BATCH + 5), [replace(spec, engine=engine) for spec in SPECS]
    for specs in (made, made[::-1], made[2:3], made[3:4]):
        found = extractor(tiny(), specs, tmp_path).features(pixels)
        for spec, rows in zip(specs, found, strict=True):
            np.testing.assert_allclose(rows, by_hand(pixels, spec), atol=1e-5, err_msg=spec.column)
            assert rows.dtype == (np.uint8 if spec.cut == "pixels" else np.float32)


@pytest.mark.parametrize("engine", ENGINES)
def test_features_do_not_depend_on_company(tmp_path: Path, engine: str) -> None:
    specs = [replace(spec, engine=engine) for spec in SPECS]
    check_independence(extractor(tiny(), specs, tmp_path), photos(2 * BATCH + 5))


@pytest.mark.networks
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_real_features_do_not_depend_on_company(shared: Path, tmp_path: Path, engine: str, precision: str) -> None:
    weights = shared / "weights" / "mobilenet_v2_224_no_top.weights.h5"
    base = replace(SPEC, backbone="mobilenetv2", image_size=96, precision=precision, engine=engine)
    specs = [replace(base, cut=cut, view=view) for cut in ("pool", "block_15_add") for view in ("plain", "flip")]
    part = extractor(build_backbone("mobilenetv2", str(weights), 96, precision), specs, tmp_path)
    pixels = photos(BATCH + 4, 96)
    plain, flipped = check_independence(part, pixels), part.features(pixels[:, :, ::-1])
    kinds = [rows.dtype for rows in plain]
    assert kinds == [np.float32] * 2 + [np.float32 if precision == "float32" else BFLOAT16] * 2
    for number in (0, 2):
        np.testing.assert_array_equal(plain[number], flipped[number + 1])
        np.testing.assert_array_equal(plain[number + 1], flipped[number])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, BFLOAT16])
def test_arrays_travel_in_arrow_without_a_copy(dtype: Any) -> None:
    rows = np.random.default_rng(0).normal(100, 9, (7, 12)).astype(dtype)
    back = from_arrow(to_arrow(rows), dtype)
    assert back.dtype == rows.dtype
    np.testing.assert_array_equal(back, rows)
    assert np.shares_memory(back, rows)
    np.testing.assert_array_equal(from_arrow(to_arrow(rows)[2:5], dtype), rows[2:5])


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
    monkeypatch.setattr(cache_module, "PART_ROWS", 2)
    add(cache, 7, 8)
    check_rows(FeatureCache(cache.uri).open(), 8, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, BFLOAT16])
def test_rows_come_back_in_the_type_in_which_they_were_added(tmp_path: Path, dtype: Any) -> None:
    rows = np.random.default_rng(0).normal(100, 30, (7, 50)).astype(dtype)
    made = FeatureCache(str(tmp_path / "cache")).open()
    for part in (slice(0, 3), slice(3, 7)):
        made.add([digest(number) for number in range(7)][part], rows[part])
        made.flush()
    found = FeatureCache(made.uri).open().rows([digest(number) for number in (6, 0, 3)])
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, rows[[6, 0, 3]])


def test_large_outputs_are_written_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PART_BYTES", 10 * 4 * 3)
    made = FeatureCache(str(tmp_path / "cache")).open()
    add(made, *range(9))
    assert not Path(made.uri).exists()
    add(made, 9)
    check_rows(FeatureCache(made.uri).open(), 9, 0)
    assert len(list(Path(made.uri).iterdir())) == 1
    huge = FeatureCache(str(tmp_path / "huge")).open()
    for number in range(3):  # each larger than a part
        huge.add([digest(number)], np.full((1, 99), number, np.float32))
    assert len(list(Path(huge.uri).iterdir())) == 3


def test_an_unknown_photo_is_reported(cache: FeatureCache) -> None:
    for numbers in ((0, 77), (77, 78)):
        with pytest.raises(DamagedFile, match=f"lacks {sum(number > 5 for number in numbers)} photos?"):
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
        file.rename(file.with_name("rows-" + "0" * 64 + ".parquet"))


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "renamed"])
def test_a_damaged_part_is_put_aside_and_its_photos_are_missing(cache: FeatureCache, how: str) -> None:
    file = part_of(cache, 3)
    damage(file, how)
    again = FeatureCache(cache.uri).open()
    assert len(again.damaged) == 1
    assert set(again.digests()) == {digest(number) for number in (0, 1, 5)}
    add(again, 2, 3, 4)
    again.flush()
    again.touch()
    assert file.exists()  # the same photos, the same bytes, the same name
    assert sorted(path.name for path in Path(cache.uri).iterdir()) == sorted([".used", *again._parts])
    last = FeatureCache(cache.uri).open()
    check_rows(last, 0, 1, 2, 3, 4, 5)
    assert not last.damaged


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "renamed"])
def test_damage_after_opening_is_noticed_and_known_to_the_next_command(cache: FeatureCache, how: str) -> None:
    file = part_of(cache, 3)
    damage(file, how)
    check_rows(cache, 0, 5)
    with pytest.raises(DamagedFile, match=f"{file.name} cannot be read|does not have|No such file") as caught:
        cache.rows([digest(0), digest(3)])
    assert str(caught.value).endswith("run the same command again: what is lost is computed again")
    again = FeatureCache(cache.uri).open()
    assert len(again.damaged) == 1
    assert set(again.digests()) == {digest(number) for number in (0, 1, 5)}
    with pytest.raises(DamagedFile, match=f"lacks 1 photo, as '{again.damaged[0]}' turned out to be damaged; run"):
        again.rows([digest(0), digest(3)])  # another worker, that came later


def test_no_byte_of_a_part_changes_unnoticed(cache: FeatureCache) -> None:
    """Either opening or reading fails, or all is as it was: of the headers of pages not every bit is needed."""
    file = part_of(cache, 3)
    whole = file.read_bytes()
    photos = sorted((2, 3, 4), key=digest)
    wanted = np.stack([vector(number) for number in photos])
    digests = whole.index(b"".join(map(digest, photos)))
    features = whole.index(wanted.tobytes())
    headers = {*range(digests), *range(digests + 96, features)}
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        try:
            part = Part(pa.BufferReader(bytes(damaged)), file.name)
            rows = part.rows(np.arange(3))
        except DamagedFile:
            continue
        np.testing.assert_array_equal(rows, wanted)
        assert place in headers
    assert len(headers) < len(whole) // 5


def test_two_processes_may_notice_the_same_damaged_part(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = part_of(cache, 3)
    damage(file, "truncated")
    init = Part.__init__

    def other_is_first(self: Part, *arguments: Any) -> None:
        try:
            init(self, *arguments)
        except DamagedFile:
            file.unlink()
            raise

    monkeypatch.setattr(Part, "__init__", other_is_first)
    assert FeatureCache(cache.uri).open().damaged == [file.name]


def test_two_writers_may_add_the_same_photos(tmp_path: Path) -> None:
    uri = str(tmp_path / "cache")
    first, second = FeatureCache(uri).open(), FeatureCache(uri).open()
    add(first, 0, 1, 2)
    add(second, 1, 2, 3)
    first.flush()
    second.flush()
    both = FeatureCache(uri).open()
    check_rows(both, 3, 2, 1, 0)
    assert len(both.digests()) == 6
    check_rows(first, 0, 1, 2)


def test_files_that_are_no_parts_are_left_alone(cache: FeatureCache) -> None:
    for name in ("rows-1.parquet.abc.tmp", f"part-{'0' * 64}.parquet"):  # half a part, and an earlier format
        other = Path(cache.uri) / name
        other.write_bytes(b"something else")
        again = FeatureCache(cache.uri).open()
        assert (len(again.digests()), again.damaged) == (6, [])
        assert other.exists()


def test_no_photos_are_rows_of_the_same_width(cache: FeatureCache) -> None:
    """A worker may have no validation photo."""
    assert cache.rows([]).shape == (0, 3)
    assert cache.rows([]).dtype == np.float32


def test_a_worker_reads_its_part_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening takes the digests alone, reading a range of hashes that range, and at most a row group more a part."""
    made, width, count = FeatureCache(str(tmp_path / "cache")).open(), 1000, 1024
    for number in range(2):  # two parts, each over all hashes
        made.add(
            [digest(index) for index in range(count * number, count * (number + 1))],
            np.arange(count, dtype=np.float32)[:, None] + np.zeros(width, np.float32),
        )
    files: list[Counted] = []

    def taken() -> int:
        total = sum(file.count for file in files)
        files.clear()
        return total

    monkeypatch.setattr(FeatureCache, "_file", counting(files))
    cache, whole = FeatureCache(made.uri).open(), 2 * count * width * 4
    opening = taken()
    assert len(cache._parts) == 2
    assert 2 * count * 32 < opening < 2 * count * 32 + 2 * (70 << 10)
    digests, rows = sorted(cache.digests()), []
    for rank in range(4):
        part = share(2 * count, rank, 4)
        rows.append(cache.rows(digests[part]))
        group = GROUP_ROWS * width * 4
        assert whole / 4 <= taken() - opening < whole / 4 + 2 * 2 * group
    np.testing.assert_array_equal(np.concatenate(rows), made.rows(digests))


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert FeatureCache(str(tmp_path / "none")).open().digests() == []


def test_a_large_matrix_lies_in_a_file(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(cache_module._matrix((4, 3), np.float32), np.memmap)
    monkeypatch.setattr(cache_module, "IN_MEMORY_BYTES", 8)
    for dtype in (np.float32, np.uint8, BFLOAT16):
        made = cache_module._matrix((4, 3), dtype)
        assert isinstance(made, np.memmap)
        assert (made.shape, made.dtype) == ((4, 3), np.dtype(dtype))
    check_rows(cache, 5, 0, 3, 1, 4, 2)


def test_the_key_holds_everything_a_feature_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"backbone": "resnet101", "weights": "random:1", "image_size": 225, "precision": "bfloat16"}
    changes |= {"engine": "openvino", "max_pixels": 11, "cut": "x", "view": "flip"}
    assert {field.name for field in fields(FeatureSpec)} == changes.keys()
    keys = [SPEC.key, *(replace(SPEC, **{name: value}).key for name, value in changes.items())]  # type: ignore[arg-type]
    assert replace(SPEC).key == keys[0]
    for name in ("DECODER_VERSION", "FORMAT"):
        monkeypatch.setattr(spec_module, name, "another")
        keys.append(SPEC.key)
    assert all(one != two for one, two in itertools.combinations(keys, 2))
