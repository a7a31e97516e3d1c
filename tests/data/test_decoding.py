"""Decoding within a budget: files that are built to take long, or to take much, are refused; all others are as ever."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowers.bounded import BoundedProcess
from flowers.data import complexity, decoding, images
from flowers.data.complexity import MOST_BYTES, MOST_CHUNKS, MOST_SCANS, is_quick, jpeg_structure
from flowers.data.decoding import DecoderProcess
from flowers.errors import BadImage
from tests.data.test_images import SAMPLES, declared, png

SIZE = 24


@pytest.fixture(scope="module")
def process() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[DecoderProcess]:
    """With a tenth of the time."""
    process = DecoderProcess()
    process._process = BoundedProcess(complexity.MOST_S / 10, MOST_BYTES)
    yield process
    process.close()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def refused(decode: Callable[..., Any], data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, SIZE, images.MAX_PIXELS)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.code


def said(decode: Callable[..., Any], *given: Any) -> tuple[Any, ...]:
    """Pixels and extent, or code and detail."""
    try:
        pixels, extent = decode(*given)
    except BadImage as error:
        return error.code, error.detail
    return pixels.shape, pixels.tobytes(), extent


def here(data: bytes, size: int, max_pixels: int) -> Any:
    return images.decode(data, size, max_pixels=max_pixels)


def test_both_ways_say_the_same_of_every_photo(process: DecoderProcess) -> None:
    for name, data in SAMPLES.items():
        for cut in (data, data[: len(data) // 2]):
            expected = said(images.decode_with_extent, cut, SIZE)
            assert said(process.decode, cut, SIZE, images.MAX_PIXELS) == expected, name


def repeated_scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = encoded(Image.new("RGB", (side, side), (9, 99, 199)), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + scan * count + b"\xff\xd9"


def run_length_bitmap(side: int, body: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


def chunks(count: int) -> bytes:
    data = encoded(Image.new("RGB", (9, 9)), "PNG")
    return data[:33] + b"\0\0\0\0tEXt\0\0\0\0" * count + data[33:]


BY_STRUCTURE: dict[str, Callable[[], bytes]] = {
    "many scans": lambda: repeated_scans(MOST_SCANS + 1, 64),
    "scans over many pixels": lambda: repeated_scans(110, 4000),
    "bitmap of runs": lambda: run_length_bitmap(10_000, b"\0\1"),
    "large PNG": lambda: declared("png", 10_000, 9_000),
    "chunks": lambda: chunks(MOST_CHUNKS + 1),
    "WebP": lambda: b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x87\x13\0" * 2,
    "JPEG 2000": lambda: encoded(Image.new("L", (2500, 2500)), "JPEG2000"),
}


@pytest.mark.parametrize("name", BY_STRUCTURE)
def test_what_is_certain_to_take_too_much_is_refused_before_it_is_decoded(name: str) -> None:
    assert refused(here, BY_STRUCTURE[name]()) == "too_complex"


BY_TIME: dict[str, Callable[[], bytes]] = {
    "GIF of comments": lambda: b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * 3_000_000 + b"\0",
    "PPM as text": lambda: b"P3 3000 3000 255\n" + b"1 " * 8_000_000,
    "JPEG of notes": lambda: b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000,
    "noise": lambda: encoded(Image.effect_noise((1500, 1500), 99), "JPEG2000"),
}


@pytest.mark.parametrize("name", BY_TIME)
def test_what_takes_long_is_ended(name: str, impatient: DecoderProcess, process: DecoderProcess) -> None:
    data = BY_TIME[name]()
    assert not is_quick(images.sniff(data), data, SIZE)
    assert refused(impatient.decode, data) == "too_complex"
    good = SAMPLES["jpeg"]
    assert impatient.decode(good, SIZE, images.MAX_PIXELS)[0].tobytes() == images.decode(good, SIZE).tobytes()


def test_what_takes_much_memory_is_ended(process: DecoderProcess) -> None:
    assert refused(process.decode, png(6200, 6300, 8, 4, bytes((1 + 2 * 6200) * 6300))) == "too_complex"


def test_plain_photos_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_shared", None)
    photo = Image.effect_noise((1200, 900), 50).convert("RGB")
    for form, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"quality": 50})):
        data = encoded(photo, form, **options)
        assert decoding.decode(data, SIZE).tobytes() == images.decode(data, SIZE).tobytes()
    assert decoding.decode(encoded(Image.new("RGB", (6000, 4000)), "JPEG"), SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM"])
def test_other_formats_are_decoded_in_one(form: str, monkeypatch: pytest.MonkeyPatch, process: DecoderProcess) -> None:
    asked: list[Any] = []

    def decode(*given: Any) -> Any:
        asked.append(given)
        return given

    monkeypatch.setattr(process, "decode", decode)
    monkeypatch.setattr(decoding, "_shared", process)
    data = encoded(Image.new("RGB", (64, 48)), form)
    decoding.decode(data, SIZE)
    assert asked == [(data, SIZE, images.MAX_PIXELS)]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}])
def test_the_structure_of_a_jpeg(options: dict[str, Any]) -> None:
    for mode in ("RGB", "L", "CMYK"):
        found = jpeg_structure(encoded(Image.new(mode, (300, 200)), "JPEG", **options))
        assert found.clear
        assert (found.width, found.height, len(found.sampling)) == (300, 200, len(mode) if mode != "L" else 1)
        assert found.progressive == found.buffered == bool(options.get("progressive"))
        assert found.has_every_bit()
        assert found.coefficient_bytes >= 2 * 300 * 200


def test_no_bytes_stop_the_look_at_a_jpeg() -> None:
    rng, whole = np.random.default_rng(0), bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True))
    for _ in range(2000):
        data = bytearray(whole[: rng.integers(2, len(whole) + 1)])
        for at in rng.integers(0, len(data), rng.integers(0, 5)):
            data[at] = rng.integers(256)
        found = jpeg_structure(bytes(data))
        assert found.scanned_pixels >= 0
        is_quick("jpeg", bytes(data), SIZE)


@pytest.mark.parametrize("fill", [b"\xff", b"\xff\xd8", b"\xff\xda", b"\xff\xe1\0\2", b"\xff\xc4\0\2", b"\0"])
def test_a_jpeg_that_goes_on_and_on_is_not_quick(fill: bytes) -> None:
    data = b"\xff\xd8\xff" + fill * (8_000_000 // len(fill))
    assert not jpeg_structure(data).clear
    assert not is_quick("jpeg", data, SIZE)
