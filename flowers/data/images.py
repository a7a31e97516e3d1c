"""The one decoder of the project: photo bytes to uint8 RGB pixels, the same in training and in serving.

The order of operations is fixed; `DECODER_VERSION` changes with anything that may change a pixel:

1. Decode the first frame. A JPEG that is to be resized is decoded at 1/2, 1/4 or 1/8 scale if both sides of
   the wanted part then still are at least twice the wanted size.
2. Lay it over white and bring it to RGB. Of 16 bits a channel the high 8 are kept.
3. Squash the wanted part, by default the middle square, to a square with Pillow's antialiased bilinear filter.
4. Turn it upright by its EXIF orientation: last, where the fewest pixels have to be moved.

Nothing here sets or obeys Pillow's switches for the whole process: `PIL.Image.open` warns or fails by the
global Image.MAX_IMAGE_PIXELS, and `warnings.catch_warnings` is not safe in threads. So the plugin that fits
the magic bytes is called directly, and what would make it warn or fail for no fault of the pixels is cut out.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, _webp
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Transpose as Turn
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from flowers.errors import BadImage

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Crop = Callable[[int, int], Box]

_Loaded = tuple[Image.Image, bytes, Box]
DECODER_VERSION: str = "1"
MAX_PIXELS: int = 100_000_000
EXTENSIONS: frozenset[str] = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"})

_BLOCK: Final = 1 << 16  # bytes that a plugin reads at a time while it decodes pixels
_TRUNCATED: Final = ("truncated", "the data ends before the photo is complete")
_TURNS: Final = (None, None, Turn.FLIP_LEFT_RIGHT, Turn.ROTATE_180, Turn.FLIP_TOP_BOTTOM, Turn.TRANSPOSE,
                 Turn.ROTATE_270, Turn.TRANSVERSE, Turn.ROTATE_90)  # fmt: skip
_FORMATS: Final = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "bmp": rb"BM.{13}\0\0\0",  # its header's size is below 256; "BM" alone starts many a text
    "gif": rb"GIF8[79]a",
    "webp": rb"RIFF....WEBPVP8",
}
_UNSUPPORTED: Final = {  # what photo folders hold besides
    "TIFF or camera raw": rb"II[*+]\0|MM\0[*+]|....ftypcrx ",
    "HEIC or AVIF": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1|avi[fs])",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\1\2]\0[^\0]\0",
    "JPEG 2000 or XL": rb"\0\0\0\x0c(jP  |JXL )|\xff\x4f\xff\x51|\xff\x0a",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg)?[^\0]{0,1000}?<svg[\s>]",
}


class _CropError(ValueError):
    """The caller's box does not fit the photo, which is not the photo's fault."""


class _Source(io.BytesIO):
    """The bytes of a photo. Whoever needs more than there are, the photo is truncated."""

    def read(self, size: int | None = -1, /) -> bytes:
        out = super().read(size)
        if size and size > len(out) and (not out or size < _BLOCK):
            raise BadImage(*_TRUNCATED)
        return out


class _Jpeg(JpegImageFile):
    """A JPEG, or the one that a multi-picture file (MPO) starts with."""

    def _read_dpi_from_exif(self) -> None:
        """Does nothing: Pillow's EXIF reader warns when it is broken, and nobody needs the resolution."""


def sniff(data: bytes) -> str | None:
    """Names the format by the first 32 bytes: "jpeg", "png", "bmp", "gif", "webp", or None for any other."""
    return next((form for form, magic in _FORMATS.items() if re.match(magic, data, re.DOTALL)), None)


def decode(
    data: bytes, size: int | None = None, *, max_pixels: int = MAX_PIXELS, crop: Crop | None = None
) -> npt.NDArray[np.uint8]:
    """Decodes one photo, whatever its file is called.

    Args:
        data: the bytes of a JPEG, PNG, BMP, GIF or WebP file.
        size: the side of the square to return, in pixels; None keeps the photo's own size and shape.
        max_pixels: photos whose header declares more pixels are refused before any pixel is decoded.
        crop: from width and height in pixels, as stored (before EXIF turns the photo), to the box (left, top, right,
            bottom) of it that is resized; None takes the largest square in the middle. Needs a size.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous, read-only; H = W = size if that is given.

    Raises:
        BadImage: for all bytes that are no usable photo. Codes: empty, not_a_photo, unsupported_format,
            truncated, corrupt, too_many_pixels.
        ValueError: a size below 1, a crop without a size, or a box that is empty or not inside the photo.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if crop is not None and size is None:
        raise ValueError("crop needs a size")
    form = sniff(data)
    if form is None:
        raise _no_photo(data)
    try:
        image, exif, box = (_load_webp if form == "webp" else _load)(form, data, size, max_pixels, crop or _middle)
        image = _to_rgb(image)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR, box)
        turn = _TURNS[_orientation(exif)]
        return np.asarray(image if turn is None else image.transpose(turn))
    except (BadImage, MemoryError, _CropError):
        raise
    except Exception as error:  # plugins fail in many ways: OSError, SyntaxError, ValueError, KeyError, ...
        reason = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split())) or type(error).__name__
        raise BadImage("corrupt", f"the {form} decoder failed: {reason[:200]}") from error


def _middle(width: int, height: int) -> Box:
    """The largest square in the middle."""
    across, down = max(width - height, 0) / 2, max(height - width, 0) / 2
    return across, down, width - across, height - down


def _checked(crop: Crop, width: int, height: int) -> Box:
    left, top, right, bottom = crop(width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise _CropError(f"the box {left, top, right, bottom} is not inside {width} x {height} pixels")
    return left, top, right, bottom


def _no_photo(data: bytes) -> BadImage:
    if not data:
        return BadImage("empty", "the file has no bytes")
    for name, magic in _UNSUPPORTED.items():
        if re.match(magic, data[:1100], re.DOTALL | re.IGNORECASE):
            return BadImage("unsupported_format", f"{name} file: convert it to JPEG, PNG, BMP, GIF or WebP")
    return BadImage("not_a_photo", f"starts with {data[:16]!r}, as no known image format does")


def _check_pixels(size: tuple[int, int], cap: int) -> None:
    if size[0] * size[1] > cap:
        raise BadImage("too_many_pixels", f"{size[0]} x {size[1]} pixels; the cap is {cap} pixels")


def _load(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Decodes the first frame; returns it, its EXIF and the part of it to resize."""
    data, exif = _plain_png(data) if form == "png" else (_still_gif(data) if form == "gif" else data, b"")
    plugins: dict[str, Any] = {"jpeg": _Jpeg, "png": PngImageFile, "bmp": BmpImageFile, "gif": GifImageFile}
    image = plugins[form](_Source(data))
    _check_pixels(image.size, cap)
    image.decodermaxblock = _BLOCK
    width, height = image.size
    left, top, right, bottom = _checked(crop, width, height)
    drafted = None
    if size:  # a draft of the whole photo so large that the box is twice the size; JPEG only, else None
        drafted = image.draft(None, (2 * size * width / (right - left), 2 * size * height / (bottom - top)))
    image.load()
    # The sides of a draft are rounded up; what comes with it knows the fraction.
    scale = drafted[1][2] / width if drafted else 1
    return image, image.info.get("exif", exif), (left * scale, top * scale, right * scale, bottom * scale)


def _load_webp(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Does the same with the C decoder of Pillow's plugin, as the plugin obeys Image.MAX_IMAGE_PIXELS."""
    bits = int.from_bytes(data[16:30].ljust(14, b"\0"), "little")  # past the name of the first chunk
    extent = bits >> 80 & 0x3FFF, bits >> 96 & 0x3FFF
    if data[15:16] == b"X":
        extent = (bits >> 64 & 0xFFFFFF) + 1, (bits >> 88 & 0xFFFFFF) + 1
    elif data[15:16] == b"L":
        extent = (bits >> 40 & 0x3FFF) + 1, (bits >> 54 & 0x3FFF) + 1
    _check_pixels(extent, cap)  # the decoder allocates the canvas as soon as it is made
    try:
        decoder = _webp.WebPAnimDecoder(data)
        extent, _, _, _, mode = decoder.get_info()
        image = Image.frombuffer(mode, extent, decoder.get_next()[0], "raw", mode, 0, 1)
    except OSError:
        if int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise BadImage(*_TRUNCATED) from None
        raise
    return image, decoder.get_chunk("EXIF") or b"", _checked(crop, *extent)


def _plain_png(data: bytes) -> tuple[bytes, bytes]:
    """Returns the chunks that make up the still picture, and the EXIF: no text, profiles or animation."""
    parts, exif, at = [data[:8]], b"", 8
    while at < len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif kind == b"tRNS" or not (kind.isalpha() and kind[:1].islower()):  # lower case: ancillary
            parts.append(data[at:end])
        at = end
    return b"".join(parts), exif


def _still_gif(data: bytes) -> bytes:
    """Makes the canvas hold the first frame, and clears its disposal, for which Pillow allocates on opening."""
    source, out = _Source(data), bytearray(data)
    if source.read(13)[10] & 0x80:
        source.read(3 << (data[10] & 7) + 1)  # the global colour table
    while (mark := source.read(1)) != b",":  # which starts a frame
        if mark == b"!":  # an extension: its label and a chain of blocks
            if source.read(1) == b"\xf9":
                out[source.tell() + 1] &= 0b11100011
            while length := source.read(1)[0]:
                source.read(length)
    left, top, width, height = struct.unpack("<4H", source.read(8))
    right, bottom = struct.unpack_from("<2H", data, 6)
    struct.pack_into("<2H", out, 6, max(right, left + width), max(bottom, top + height))
    return bytes(out)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Lays a picture of any mode over white: mode "RGB"."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        grey = np.asarray(image)
        high = (np.clip(grey, 0, 0xFFFF) >> 8).astype(np.uint8)
        high[grey == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(high)
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        image.paste(layer, mask=layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(exif: bytes) -> int:
    """Returns the orientation, 1 to 8, in the first directory of EXIF bytes; 1 if they are broken."""
    order = ">" if (tiff := exif.removeprefix(b"Exif\0\0")).startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
