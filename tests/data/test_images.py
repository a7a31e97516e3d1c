"""The decoder: golden pixels per format, and only BadImage for whatever is no photo."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from flowers.data import images
from flowers.data.images import CHANGES, DECODER_VERSION, EXTENSIONS, MAX_PIXELS, OTHER_EXTENSIONS, sniff
from flowers.errors import BadImage

CODES = {"empty", "not_a_photo", "unsupported_format", "truncated", "corrupt", "too_many_pixels"}
WHITE = (255, 255, 255)


def middle(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle of a picture, as the decoder is documented to take it."""
    (width, height), side = image.size, min(image.size)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def decode(data: bytes, size: int | None = None, **options: Any) -> np.ndarray:
    """The decoder under test; whatever comes out of it, no warning may."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            return images.decode(data, size, **options)
        finally:
            assert not [str(one.message) for one in seen]


def outcome(data: bytes, size: int | None, **options: Any) -> np.ndarray | BadImage:
    try:
        return decode(data, size, **options)
    except BadImage as error:
        return error


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3], that equals none of its mirror images."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    return (np.stack([x, y, 0.5 + 0.5 * np.sin(3 * x + 5 * y)], axis=-1) * 255).astype(np.uint8)


def save(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def assert_close(one: np.ndarray, other: np.ndarray, mean: float) -> None:
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other.astype(int)).mean() <= mean


def refused(data: bytes, **options: Any) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert caught.value.code in CODES
    assert "\n" not in caught.value.detail
    assert " at 0x" not in caught.value.detail
    return caught.value


def samples() -> dict[str, bytes]:
    """One small valid file of every kind."""
    image = Image.fromarray(picture())
    frames = [image.rotate(angle) for angle in (90, 180)]
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    return {
        "jpeg": save(image, "JPEG", quality=95),
        "progressive": save(image, "JPEG", quality=95, progressive=True),
        "grey": save(image.convert("L"), "JPEG"),
        "cmyk": save(image.convert("CMYK"), "JPEG", quality=95),
        "exif": save(image, "JPEG", exif=exif(6)),
        "mpo": save(image, "MPO", save_all=True, append_images=frames, quality=95),
        "png": save(image, "PNG"),
        "png-alpha": save(alpha, "PNG", exif=exif(3)),
        "png-palette": save(image.quantize(32), "PNG", transparency=bytes(range(32))),
        "png-16": save((picture()[..., 0].astype(np.uint16) << 8), "PNG"),
        "apng": save(image, "PNG", save_all=True, append_images=frames),
        "bmp": save(image, "BMP"),
        "bmp-8": save(image.quantize(200), "BMP"),
        "gif": save(image.quantize(64), "GIF", transparency=3),
        "gif-animated": save(image, "GIF", save_all=True, append_images=frames, disposal=2),
        "webp": save(image, "WEBP", quality=90),
        "webp-lossless": save(alpha, "WEBP", lossless=True, exif=exif(8)),
        "webp-animated": save(image, "WEBP", save_all=True, append_images=frames, lossless=True),
        "tiff": save(image, "TIFF"),
        "tiff-lzw": save(alpha, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": save(image, "TIFF", compression="jpeg"),
        "tiff-pages": save(image.copy(), "TIFF", save_all=True, append_images=[one.copy() for one in frames]),
        "tiff-16": save(picture()[..., 0].astype(np.uint16) << 8, "TIFF"),
        "avif": save(image, "AVIF", quality=95),
        "jpeg2000": save(image, "JPEG2000"),
        "jpeg2000-codestream": save(image, "JPEG2000", no_jp2=True),
        "ico": save(image, "ICO", sizes=[(32, 32), (64, 48)]),
        "ico-bmp": save(image, "ICO", sizes=[(64, 48)], bitmap_format="bmp"),
        "ppm": save(image, "PPM"),
        "pgm": save(image.convert("L"), "PPM"),
        "pbm": save(image.convert("1"), "PPM"),
        "heic": heic(image),
    }


def heic(image: Image.Image, **options: Any) -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=95, **options)
    return out.getvalue()


SAMPLES = samples()


# ---------------------------------------------------------------- the array


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [None, 1, 32, 300])
def test_array_is_contiguous_uint8_rgb_of_the_asked_size(name: str, size: int | None) -> None:
    pixels = decode(SAMPLES[name], size)
    turned = name in {"exif", "webp-lossless"}
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == ((size, size, 3) if size else (64, 48, 3) if turned else (48, 64, 3))


def test_constants() -> None:
    assert isinstance(DECODER_VERSION, str)
    assert MAX_PIXELS == 100_000_000
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".avif", ".heic"} < EXTENSIONS
    assert not EXTENSIONS & OTHER_EXTENSIONS
    assert set(CHANGES) == {str(number) for number in range(2, int(DECODER_VERSION) + 1)}


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_the_callers_error(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decode(SAMPLES["png"], size)


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_resizing_is_pillows_bilinear_of_the_rgb_pixels(form: str) -> None:
    want = np.asarray(middle(Image.fromarray(picture()), 20))
    np.testing.assert_array_equal(decode(save(picture(), form), 20), want)


def test_the_palette_is_resolved_before_resizing() -> None:
    image = Image.fromarray(picture()).quantize(64)
    want = np.asarray(middle(image.convert("RGB"), 20))
    np.testing.assert_array_equal(decode(save(image, "PNG"), 20), want)


def test_any_thread_decodes_the_same_pixels() -> None:
    files = list(SAMPLES.values()) * 4
    want = [decode(data, 40) for data in files]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(lambda data: images.decode(data, 40), files), want, strict=True):
            np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- formats and modes


@pytest.mark.parametrize("name", SAMPLES)
def test_sniff_needs_only_32_bytes(name: str) -> None:
    form = {"progressive": "jpeg", "grey": "jpeg", "cmyk": "jpeg", "exif": "jpeg", "mpo": "jpeg", "apng": "png"}
    form |= {"pgm": "ppm", "pbm": "ppm"}
    assert sniff(SAMPLES[name][:32]) == form.get(name, name.split("-")[0])


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(form: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode(save(picture(), form, **options)), picture())


def test_lossy_formats_are_close() -> None:
    for name in ("jpeg", "progressive", "webp", "mpo"):
        assert_close(decode(SAMPLES[name]), picture(), 4)
    for name in ("bmp-8", "gif-animated"):
        assert_close(decode(SAMPLES[name]), picture(), 9)


def test_progressive_jpeg_equals_baseline() -> None:
    assert_close(decode(SAMPLES["progressive"]), decode(SAMPLES["jpeg"]), 0.5)


def test_grey_jpeg_has_three_equal_channels() -> None:
    pixels = decode(SAMPLES["grey"])
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    assert_close(decode(SAMPLES["cmyk"]), picture(), 4)
    assert_close(decode(SAMPLES["cmyk"], 16), decode(SAMPLES["jpeg"], 16), 4)


def test_mpo_is_its_first_picture() -> None:
    assert Image.open(io.BytesIO(SAMPLES["mpo"])).format == "MPO"
    np.testing.assert_array_equal(decode(SAMPLES["mpo"]), decode(SAMPLES["jpeg"]))


def test_malformed_mpo_is_a_jpeg() -> None:
    at = SAMPLES["mpo"].index(b"MPF\0") + 4
    data = SAMPLES["mpo"][:at] + b"\xff" * 12 + SAMPLES["mpo"][at + 12 :]
    np.testing.assert_array_equal(decode(data), decode(SAMPLES["jpeg"]))


@pytest.mark.parametrize("name", ["gif-animated", "webp-animated", "apng"])
def test_animations_give_their_first_frame(name: str) -> None:
    opened: Any = Image.open(io.BytesIO(SAMPLES[name]))  # Pillow declares n_frames for some formats alone
    assert opened.n_frames == 3
    assert_close(decode(SAMPLES[name]), picture(), 9 if "gif" in name else 0)


def test_broken_animation_chunks_do_not_matter() -> None:
    acting = chunk(b"acTL", struct.pack(">II", 0, 0))
    data = SAMPLES["png"][:33] + acting + acting + chunk(b"fcTL", b"x") + SAMPLES["png"][33:]
    np.testing.assert_array_equal(decode(data), picture())


def test_png_text_of_any_length_does_not_matter() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20)))
    np.testing.assert_array_equal(decode(SAMPLES["png"][:33] + text + SAMPLES["png"][33:]), picture())


def test_palette_with_a_transparent_index_is_white_there() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for form in ("PNG", "GIF"):
        pixels = decode(save(image, form, transparency=1))
        np.testing.assert_array_equal(pixels, [[(10, 20, 30), WHITE]])


def test_palette_with_transparent_bytes_is_blended() -> None:
    rows = b"\0\0\1\2"
    palette = chunk(b"PLTE", bytes([100, 0, 200, 100, 0, 200, 9, 9, 9])) + chunk(b"tRNS", bytes([255, 128, 0]))
    pixels = decode(png(3, 1, 8, 3, rows, palette))
    np.testing.assert_array_equal(pixels[0, [0, 2]], [(100, 0, 200), WHITE])
    assert_close(pixels[0, 1], np.array([177, 127, 227]), 1)


def test_one_bit_png_and_bmp() -> None:
    bits = picture()[..., 0] > 127
    for form in ("PNG", "BMP"):
        pixels = decode(save(Image.fromarray(bits), form))
        np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=-1))


def test_16_bit_grey_keeps_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    pixels = decode(save(values, "PNG"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 0x7F, 0x80, 0xFF])
    assert (pixels == pixels[..., :1]).all()


def test_16_bit_grey_with_a_transparent_value() -> None:
    rows = b"\0" + struct.pack(">3H", 0x1234, 0x1235, 0x8000)
    pixels = decode(png(3, 1, 16, 0, rows, chunk(b"tRNS", b"\x12\x34")))
    np.testing.assert_array_equal(pixels[0, :, 0], [255, 0x12, 0x80])


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    pixels = decode(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF)))
    np.testing.assert_array_equal(pixels, [[(0x12, 0x80, 0xFF)]])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*(40,) * (len(mode) - 1), alpha))
    for data in (save(image, "PNG"), save(image.convert("RGBA"), "WEBP", lossless=True, exact=True)):
        assert_close(decode(data), np.array([[[255] * 3, [147] * 3, [40] * 3]]), 0.5)


def test_alpha_is_laid_over_white_before_resizing() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert decode(save(image, "PNG"), 1)[0, 0, 0] in (127, 128)


def test_gif_frame_larger_than_the_canvas() -> None:
    data = bytearray(save(Image.fromarray(picture()), "GIF"))
    data[6:10] = struct.pack("<2H", 1, 1)
    assert decode(bytes(data)).shape == picture().shape


# ---------------------------------------------------------------- formats that few people have

GOLDEN = ["tiff", "tiff-lzw", "tiff-pages", "jpeg2000", "jpeg2000-codestream", "ico", "ico-bmp", "ppm"]


@pytest.mark.parametrize("name", GOLDEN)
def test_lossless_files_of_rare_formats_keep_every_pixel(name: str) -> None:
    want = picture()
    if name == "tiff-lzw":
        layer = Image.fromarray(want)
        layer.putalpha(Image.linear_gradient("L").resize(layer.size))
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer)
        want = np.asarray(white)
    np.testing.assert_array_equal(decode(SAMPLES[name]), want)


@pytest.mark.parametrize(("name", "mean"), [("avif", 2), ("heic", 3), ("tiff-jpeg", 4)])
def test_lossy_files_of_rare_formats_are_close(name: str, mean: float) -> None:
    assert_close(decode(SAMPLES[name]), picture(), mean)


def test_grey_files_of_rare_formats() -> None:
    grey = np.asarray(Image.fromarray(picture()).convert("L"))
    np.testing.assert_array_equal(decode(SAMPLES["pgm"]), np.stack([grey] * 3, axis=2))
    assert set(np.unique(decode(SAMPLES["pbm"]))) == {0, 255}
    np.testing.assert_array_equal(decode(SAMPLES["tiff-16"])[..., 1], picture()[..., 0])


def test_12_bits_in_a_file_of_16_are_scaled_by_what_it_says() -> None:
    values = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)
    want = np.clip(values.astype(int) * 65535 // 4095 >> 8, 0, 255)
    for order in "<>":
        tiff = save(values.astype(order + "u2"), "TIFF", tiffinfo={281: 4095})
        np.testing.assert_array_equal(decode(tiff)[..., 0], want)
    body = b"P5 32 32 4095\n" + values.astype(">u2").tobytes()
    assert np.abs(decode(body)[..., 0].astype(int) - want).max() <= 1
    np.testing.assert_array_equal(decode(save(values, "TIFF"))[..., 0], values >> 8)


def tiff_of_colours(pixels: np.ndarray, white: int) -> bytes:
    """An uncompressed TIFF of three channels of 16 bits, which Pillow reads and does not write."""
    height, width = pixels.shape[:2]
    body = pixels.astype("<u2").tobytes()
    place = 8 + 2 + 10 * 12 + 4
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, place), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, place + 12), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(body)), (281, 3, 3, place + 6),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", 10)
        + directory
        + bytes(4)
        + struct.pack("<6H", *[16] * 3, *[white] * 3)
        + body
    )


def test_16_bit_colours_of_a_tiff() -> None:
    values = picture().astype(np.uint16)
    np.testing.assert_array_equal(decode(tiff_of_colours(values << 8, 65535)), picture())
    error = refused(tiff_of_colours(values << 4, 4095))
    assert (error.code, "colours of up to 4095 in 16 bits" in error.detail) == ("unsupported_format", True)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP"])
def test_an_alpha_channel_that_is_0_everywhere_means_nothing(form: str) -> None:
    layer = Image.fromarray(picture()).convert("RGBA")
    layer.putalpha(0)
    data = save(layer, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data), picture())


def test_a_bitmap_of_32_bits_without_alpha() -> None:
    """Four bytes a pixel, the last one unused, under a header that could say what it means."""
    rows = np.dstack([picture()[::-1, :, ::-1], np.zeros((48, 64), np.uint8)]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, 64, 48, 1, 32, 3, len(rows), 0, 0, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000).ljust(84, b"\0")
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows
    np.testing.assert_array_equal(decode(data), picture())


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refused(SAMPLES["heic"])
    assert (error.code, "pip install '.[heic]'" in error.detail) == ("unsupported_format", True)


def test_an_icon_declares_one_size_and_holds_another() -> None:
    inside = png(60_000, 60_000, 8, 2, bytes(10))
    data = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    assert refused(data).code == "too_many_pixels"


# ---------------------------------------------------------------- a JPEG that ends early


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("size", [None, 16])
def test_a_jpeg_that_ends_early_is_truncated_with_or_without_its_end_mark(
    options: dict[str, Any], part: float, size: int | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 240, 3), np.uint8)
    whole = save(noise, "JPEG", quality=90, **options)
    assert decode(whole, size).any()
    start = whole.index(b"\xff\xda")
    cut = whole[: start + int(part * (len(whole) - start))].rstrip(b"\xff")
    for data in (cut, cut + b"\xff\xd9"):
        assert refused(data, size=size).code == "truncated"


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_is_grey_below_is_whole(options: dict[str, Any], mode: str) -> None:
    pixels = picture().copy()
    pixels[16:] = 128
    data = save(Image.fromarray(pixels).convert(mode), "JPEG", quality=95, **options)
    assert decode(data)[-1, -1].tolist() == [128, 128, 128]
    assert decode(data, 16).shape == (16, 16, 3)


# ---------------------------------------------------------------- orientation

TRANSPOSE = Image.Transpose
STORED = {  # how the upright picture is stored for each orientation
    1: None,
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_90,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_decodes_upright(orientation: int, size: int | None, form: str) -> None:
    upright = Image.fromarray(picture())
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}
    pixels = decode(save(stored, form, exif=exif(orientation), **options.get(form, {})), size)
    want = upright if size is None else middle(upright, size)
    assert_close(pixels, np.asarray(want), 3 if form == "JPEG" else 0.5)


TYPES = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 5: "II", 10: "ii", 11: "f", 12: "d"}


def exif_of_type(order: str, kind: int, orientation: int) -> bytes:
    """EXIF whose orientation is a number of another type, beside another tag."""
    form = order + TYPES[kind]
    value = struct.pack(form, orientation, *([1] if len(TYPES[kind]) == 2 else []))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    place = 8 + 2 + 2 * 12 + 4
    field, rest = (value.ljust(4, b"\0"), b"") if len(value) <= 4 else (struct.pack(order + "I", place), value)
    maker = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    tag = struct.pack(order + "HHI", 0x0112, kind, 1) + field
    return b"Exif\0\0" + head + struct.pack(order + "H", 2) + maker + tag + bytes(4) + rest


def upright(data: bytes) -> np.ndarray:
    """What Pillow's own `exif_transpose` makes of a file."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_encoding_of_the_orientation_is_read_as_pillow_does(kind: int, order: str, orientation: int) -> None:
    data = save(picture(), "PNG", exif=exif_of_type(order, kind, orientation))
    np.testing.assert_array_equal(decode(data), upright(data))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
XMP_ELEMENT = b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>"


@pytest.mark.parametrize("text", [XMP, XMP_ELEMENT])
@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_in_xmp(text: bytes, orientation: int) -> None:
    xmp = text % orientation
    for data in (
        save(picture(), "JPEG", quality=95, xmp=xmp),
        save(picture(), "WEBP", lossless=True, xmp=xmp),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    ):
        np.testing.assert_array_equal(decode(data).shape, upright(data).shape)
        assert_close(decode(data), upright(data), 1)
    both = save(picture(), "JPEG", xmp=text % 6, exif=exif(1))
    assert decode(both).shape == (48, 64, 3), "EXIF comes first"


def png_with(kind: bytes, body: bytes) -> bytes:
    data = save(picture(), "PNG")
    return data[:33] + chunk(kind, body) + data[33:]


def test_an_orientation_in_a_raw_profile_of_a_png() -> None:
    profile = f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n".encode()
    for data in (
        png_with(b"tEXt", b"Raw profile type exif\0" + profile),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
    ):
        np.testing.assert_array_equal(decode(data), upright(data))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["TIFF", "AVIF", "HEIC"])
def test_rare_formats_are_upright(orientation: int, form: str) -> None:
    original = Image.fromarray(picture())
    turn = STORED[orientation]
    stored = original if turn is None else original.transpose(turn)
    if form == "HEIC":
        data = heic(stored, exif=exif(orientation))
    elif form == "TIFF":
        data = save(stored, form, tiffinfo={274: orientation})
    else:
        data = save(stored, form, exif=exif(orientation), quality=95)
    assert_close(decode(data), picture(), 3)
    assert_close(decode(data, 24), np.asarray(middle(original, 24)), 4)


def test_big_endian_exif() -> None:
    body = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert decode(save(picture(), "JPEG", exif=body)).shape == (64, 48, 3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"II*\0",
        b"XXXXXXXXXXXXXXXXXXXX",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        b"II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0",
        exif(6)[6:20],
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_broken_exif_is_ignored(body: bytes, form: str) -> None:
    plain = save(picture(), form)
    if form == "JPEG":
        payload = b"Exif\0\0" + body
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]
    else:
        data = plain[:33] + chunk(b"eXIf", body)[:-1] + b"?" + plain[33:]
    np.testing.assert_array_equal(decode(data), decode(plain))


# ---------------------------------------------------------------- drafts


@cache
def large_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(-20, 20, (1203, 1601, 3))
    return save(np.clip(picture(1203, 1601) + noise, 0, 255).astype(np.uint8), "JPEG", quality=90)


@pytest.mark.parametrize("size", [50, 99, 224, 300, 601])
def test_draft_is_close_to_the_undrafted_photo(size: int) -> None:
    data = large_jpeg()
    full = middle(Image.open(io.BytesIO(data)).convert("RGB"), size)
    difference = np.abs(decode(data, size).astype(int) - np.asarray(full).astype(int))
    assert difference.mean() < 0.6
    if size > 1203 // 4:  # too large for a draft of half the size
        assert difference.max() == 0


# ---------------------------------------------------------------- crops

COLOURS = [[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (200, 200, 30)]]  # upright: top row, bottom row


def quarters(height: int, width: int) -> np.ndarray:
    """A picture of four colours, uint8 [height, width, 3]."""
    half = np.repeat(np.repeat(np.array(COLOURS, np.uint8), height // 2, axis=0), width // 2, axis=1)
    assert half.shape == (height, width, 3)
    return half


def quarter(row: int, column: int) -> images.Crop:
    """A crop that takes a quarter of the stored photo, without its edges."""

    def crop(width: int, height: int) -> images.Box:
        left, top = column * width / 2, row * height / 2
        return left + width / 16, top + height / 16, left + width * 7 / 16, top + height * 7 / 16

    return crop


def whole(width: int, height: int) -> images.Box:
    return 0, 0, width, height


def drafts(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Collects the sizes at which JPEGs are decoded from now on."""
    seen: set[tuple[int, int]] = set()
    load = images._Jpeg.load

    def spy(self: Any) -> Any:
        seen.add(self.size)
        return load(self)

    monkeypatch.setattr(images._Jpeg, "load", spy)
    return seen


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [1, 5, 12, 32])
def test_the_middle_square_is_the_default_crop(name: str, size: int) -> None:
    def square(width: int, height: int) -> images.Box:
        side = min(width, height)
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2

    np.testing.assert_array_equal(decode(SAMPLES[name], size, crop=square), decode(SAMPLES[name], size))


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF"])
def test_a_crop_is_pillows_box(form: str) -> None:
    box = (3.25, 7.5, 40.0, 30.125)
    want = Image.fromarray(picture()) if form != "GIF" else Image.fromarray(picture()).quantize(64).convert("RGB")
    data = save(want if form != "GIF" else Image.fromarray(picture()).quantize(64), form)
    pixels = decode(data, 20, crop=lambda width, height: box)
    np.testing.assert_array_equal(pixels, np.asarray(want.resize((20, 20), Image.Resampling.BILINEAR, box)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [8, 20, 100])
def test_each_quarter_has_its_colour(form: str, size: int) -> None:
    """Small sizes take a draft of a JPEG; its sides, 1203 / 8 and the like, are rounded."""
    data = save(quarters(1202, 1606), form, quality=95)
    for row in (0, 1):
        for column in (0, 1):
            pixels = decode(data, size, crop=quarter(row, column))
            assert_close(pixels, np.broadcast_to(COLOURS[row][column], (size, size, 3)), 4)


@pytest.mark.parametrize("orientation", STORED)
def test_a_crop_is_taken_before_the_photo_is_turned(orientation: int) -> None:
    """Asked is for the top left quarter of the stored photo; where it is seen is read from the turned colours."""
    turn = STORED[orientation]
    upright = Image.fromarray(quarters(600, 800))
    stored = upright if turn is None else upright.transpose(turn)
    extents = []

    def crop(width: int, height: int) -> images.Box:
        extents.append((width, height))
        return quarter(0, 0)(width, height)

    pixels = decode(save(stored, "JPEG", exif=exif(orientation), quality=95), 24, crop=crop)
    assert extents == [stored.size]
    assert_close(pixels, np.broadcast_to(np.asarray(stored)[0, 0], (24, 24, 3)), 4)
    wanted = np.asarray(upright.resize((24, 24), Image.Resampling.BILINEAR))
    everything = decode(save(stored, "JPEG", exif=exif(orientation), quality=95), 24, crop=whole)
    assert_close(everything, wanted, 4)


@pytest.mark.parametrize(
    ("size", "part", "scale"),
    [(50, 1.0, 8), (50, 0.51, 4), (50, 0.26, 2), (50, 0.13, 1), (50, 0.1, 1), (100, 1.0, 4), (25, 0.4, 8)],
)
def test_the_draft_leaves_a_crop_twice_its_size(
    monkeypatch: pytest.MonkeyPatch, size: int, part: float, scale: int
) -> None:
    seen = drafts(monkeypatch)
    # Once the height is what is scarce, once the width.
    decode(large_jpeg(), size, crop=lambda width, height: (3, 2, width - 3, 2 + part * (height - 2)))
    decode(large_jpeg(), size, crop=lambda width, height: (3, 2, 3 + part * (height - 2), height - 2))
    assert seen == {(-(-1601 // scale), -(-1203 // scale))}


@pytest.mark.parametrize("part", [0.9, 0.5, 0.3, 0.15, 0.05])
def test_crops_keep_their_detail(part: float) -> None:
    """A crop from a draft is close to the same crop of all pixels; nothing is blown up from a coarse draft."""
    full = Image.open(io.BytesIO(large_jpeg())).convert("RGB")
    box = (401.3, 207.9, 401.3 + 1100 * part, 207.9 + 900 * part)
    pixels = decode(large_jpeg(), 50, crop=lambda width, height: box)
    want = np.asarray(full.resize((50, 50), Image.Resampling.BILINEAR, box))
    assert_close(pixels, want, 0.6 if part > 0.2 else 0)


def test_a_crop_needs_a_size() -> None:
    with pytest.raises(ValueError, match="needs a size"):
        decode(SAMPLES["png"], crop=whole)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("box", [(-0.1, 0, 9, 9), (0, 0, 64.1, 9), (0, 0, 9, 48.1), (5, 0, 5, 9), (0, 5, 9, 4)])
def test_a_box_outside_the_photo_is_the_callers_error(name: str, box: images.Box) -> None:
    with pytest.raises(ValueError, match="not inside 64 x 48"):
        decode(SAMPLES[name], 8, crop=lambda width, height: box)


# ---------------------------------------------------------------- refusals


def test_empty() -> None:
    assert refused(b"").code == "empty"


@pytest.mark.parametrize("data", [b"\0", b"hello", b"<html><body>404</body></html>", b"BMW is a car maker"])
def test_not_a_photo(data: bytes) -> None:
    error = refused(data)
    assert error.code == "not_a_photo"
    assert repr(data[:16]) in error.detail


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("camera raw", b"II*\0\x10\0\0\0CR\2\0" + bytes(20)),
        ("camera raw", b"FUJIFILMCCD-RAW 0201"),
        ("camera raw", save(picture(), "TIFF", tiffinfo={254: 1})),
        ("camera raw", save(picture(), "TIFF", tiffinfo={50706: b"\1\4\0\0"})),
        ("the kind F", save(np.zeros((9, 9), np.float32), "TIFF")),
        ("Photoshop", b"8BPS\0\x01" + bytes(20)),
        ("JPEG XL", b"\xff\x0a" + bytes(20)),
        ("OpenEXR", b"v/1\x01\2\0\0\0"),
        ("DICOM", bytes(128) + b"DICM"),
        ("SVG", b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="http://www.w3.org/2000/svg">'),
        ("SVG", b'  <svg width="1">'),
    ],
)
def test_unsupported_format_names_the_format(name: str, data: bytes) -> None:
    error = refused(data)
    assert error.code == "unsupported_format"
    assert name in error.detail


def declared(form: str, width: int, height: int) -> bytes:
    """A tiny file whose header declares a huge picture."""
    if form == "png":
        return png(width, height, 8, 2, bytes(10))
    if form == "bmp":
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
    if form == "gif":  # disposal 2, for which Pillow allocates when it opens the file
        control = b"!\xf9\x04\x08\0\0\0\0"
        frame = b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02L\x01\0;"
        return b"GIF89a" + struct.pack("<2HBBB", 1, 1, 0x80, 0, 0) + bytes(range(6)) + control + frame
    if form == "jpeg":
        data = bytearray(SAMPLES["jpeg"])
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
        return bytes(data)
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in (width, height))
    chunks = {
        "webp": b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides,
        "webp-lossless": b"VP8L\x14\0\0\0\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(15),
        "webp-lossy": b"VP8 \x14\0\0\0\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(10),
    }
    return b"RIFF" + struct.pack("<I", 100) + b"WEBP" + chunks[form]


@pytest.mark.parametrize("form", ["png", "bmp", "gif", "jpeg", "webp", "webp-lossless", "webp-lossy"])
@pytest.mark.parametrize("limit", [1, None])
def test_pixel_cap_comes_before_any_pixel(form: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    width, height = (16000, 15000) if form.startswith("webp-") else (60000, 50000)
    data = declared(form, width, height)
    tracemalloc.start()
    start = time.perf_counter()
    error = refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "too_many_pixels"
    assert f"{width} x {height}" in error.detail
    assert str(MAX_PIXELS) in error.detail
    assert peak < 1 << 20
    assert time.perf_counter() - start < 0.5


def test_png_of_60000_x_60000() -> None:
    assert refused(declared("png", 60000, 60000)).code == "too_many_pixels"


@pytest.mark.parametrize("name", SAMPLES)
def test_pixel_cap_is_exact_and_the_callers(name: str) -> None:
    assert decode(SAMPLES[name], max_pixels=64 * 48).size == 64 * 48 * 3
    assert refused(SAMPLES[name], max_pixels=64 * 48 - 1).code == "too_many_pixels"


@pytest.mark.parametrize("name", SAMPLES)
def test_pillows_global_switches_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = decode(SAMPLES[name])
    cut = SAMPLES[name][: len(SAMPLES[name]) // (8 if name == "tiff-pages" else 3)]
    code = refused(cut).code
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 100)
    np.testing.assert_array_equal(decode(SAMPLES[name]), want)
    assert refused(cut).code == code


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [None, 8])
def test_truncation_anywhere(name: str, size: int | None) -> None:
    data = SAMPLES[name]
    whole = decode(data, size)
    several = name in {"mpo", "gif-animated", "apng", "tiff-pages"}
    for end in {*range(1, min(len(data), 80)), *range(80, len(data), 1 + len(data) // 60), len(data) - 1}:
        result = outcome(data[:end], size)
        if isinstance(result, BadImage):
            assert result.code in {"truncated", "corrupt"} or (result.code == "not_a_photo" and end < 18), end
        else:
            assert result.shape == whole.shape
            assert several or end > len(data) * 0.9


@pytest.mark.parametrize("name", SAMPLES)
def test_a_half_file_is_called_truncated(name: str) -> None:
    first = 0.15 if name in {"mpo", "gif-animated", "apng", "tiff-pages"} else 0.5
    assert refused(SAMPLES[name][: int(len(SAMPLES[name]) * first)]).code == "truncated"


def test_damaged_pixels_are_called_corrupt() -> None:
    data = bytearray(SAMPLES["png"])
    at = data.index(b"IDAT") + 4
    data[at : at + 8] = b"\xff" * 8
    error = refused(bytes(data))
    assert error.code == "corrupt"
    assert "png" in error.detail


def test_errors_are_deterministic_and_survive_pickling() -> None:
    for data in (SAMPLES["jpeg"][:200], b"\x89PNG\r\n\x1a\n" + bytes(50), b"hello", SAMPLES["webp"][:60]):
        one, other = refused(data), refused(data)
        assert one.args == other.args
        assert pickle.loads(pickle.dumps(one)).args == one.args


# ---------------------------------------------------------------- any bytes whatsoever

fuzz = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def survives(data: bytes, size: int | None) -> None:
    result = outcome(data, size, max_pixels=1_000_000)
    if isinstance(result, BadImage):
        assert result.code in CODES
        assert result.detail.isprintable()
    else:
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert result.shape[2] == 3
        assert size is None or result.shape == (size, size, 3)


HEADS = [
    b"",
    *{data[:cut] for data in SAMPLES.values() for cut in (8, 18, 33)},
    b"GIF89a",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8X",
]


@fuzz
@given(st.sampled_from(HEADS), st.binary(max_size=300), st.sampled_from([None, 5]))
def test_random_bytes(head: bytes, tail: bytes, size: int | None) -> None:
    survives(head + tail, size)


@settings(fuzz, max_examples=300)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([None, 5]),
)
def test_flipped_bits(name: str, flips: list[tuple[float, int]], early: bool, size: int | None) -> None:
    data = bytearray(SAMPLES[name])
    for where, bit in flips:  # early: in the headers, where a bit has more to say
        data[int(where * min(len(data), 120 if early else len(data)))] ^= 1 << bit
    survives(bytes(data), size)
