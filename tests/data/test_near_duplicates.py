"""Near-duplicates: copies of real photos are found, and other photos are not taken for copies."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flowers.data.images import decode
from flowers.data.near_duplicates import BYTES, group, perceptual_hash

SIZE = 224


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def copies(photo: bytes) -> Iterator[tuple[str, bytes]]:
    """What people and programs make of a photo."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    width, height = image.size
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    yield "low quality", encoded(image, quality=30)
    yield "PNG", encoded(image, "PNG", compress_level=1)
    yield "WebP", encoded(image, "WEBP", quality=40, method=0)
    yield "half", encoded(image.resize((width // 2, height // 2)), quality=85)
    yield "twice", encoded(image.resize((2 * width, 2 * height)), quality=85)
    yield "thumbnail", encoded(image.resize((120, 120 * height // width)), quality=75)
    yield "mirrored", encoded(mirrored, quality=85)
    yield "mirrored and half", encoded(mirrored.resize((width // 2, height // 2)), quality=70)
    yield "grey", encoded(image.convert("L"), quality=85)
    yield "cropped", encoded(image.crop((width // 50, height // 50, width - width // 50, height - height // 50)))


@cache
def hashes(folder: Path) -> tuple[list[Path], list[bytes | None]]:
    paths = sorted(folder.glob("*/*.jpg"))
    return paths, [perceptual_hash(decode(path.read_bytes(), SIZE)) for path in paths]


def test_copies_of_real_photos_are_found_and_no_others(shared: Path) -> None:
    paths, known = hashes(shared / "flower_photos")
    assert len(paths) == 1200
    chosen = range(7, 1200, 24)
    assert len(chosen) == 50
    made = [(index, kind, data) for index in chosen for kind, data in copies(paths[index].read_bytes())]
    every = [*known, *(perceptual_hash(decode(data, SIZE)) for _, _, data in made)]
    groups = group(every)
    found: dict[str, list[bool]] = {}
    for place, (index, kind, _) in enumerate(made, start=len(paths)):
        found.setdefault(kind, []).append(groups[place] == groups[index])
    for kind, results in found.items():
        assert np.mean(results) >= 0.95, kind
    # Five photos of 1,200 really are copies of others: two files are the same picture, three are one burst.
    assert (np.bincount(group(known))[group(known)] > 1).sum() <= 12


def test_groups_do_not_depend_on_the_order(shared: Path) -> None:
    _, known = hashes(shared / "flower_photos")
    order = np.random.default_rng(0).permutation(len(known))
    shuffled = group([known[index] for index in order])
    members: list[set[frozenset[int]]] = []
    for groups, names in ((group(known), np.arange(len(known))), (shuffled, order)):
        together = {number: frozenset(names[groups == number].tolist()) for number in set(groups.tolist())}
        members.append({found for found in together.values() if len(found) > 1})
    assert members[0] == members[1]
    assert members[0]


def noise(seed: int) -> npt.NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC))


def test_a_mirrored_picture_has_the_mirrored_hash() -> None:
    for seed in range(20):
        pixels = noise(seed)
        one, other = perceptual_hash(pixels), perceptual_hash(np.ascontiguousarray(pixels[:, ::-1]))
        assert one != other
        assert group([one, other]).tolist() == [0, 0]


def test_flat_pictures_have_no_hash_and_no_copies() -> None:
    for level in (0, 128, 255):
        assert perceptual_hash(np.full((50, 50, 3), level, np.uint8)) is None
    assert group([None, None]).tolist() == [0, 1]
    assert group([]).tolist() == []
    assert group([None, perceptual_hash(noise(1)), None, perceptual_hash(noise(1))]).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("count", [2, 50, 3000])
def test_many_copies_of_one_picture_are_one_group(count: int) -> None:
    same, other = perceptual_hash(noise(1)), perceptual_hash(noise(2))
    assert group([other, *[same] * count, other]).tolist() == [0, *[1] * count, 0]


def test_unrelated_hashes_are_no_pairs() -> None:
    random = np.random.default_rng(0)
    assert group([random.bytes(BYTES) for _ in range(20_000)]).tolist() == list(range(20_000))
