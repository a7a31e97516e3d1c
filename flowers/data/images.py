"""The one decoder of the project: photo bytes to uint8 RGB pixels, the same in training and in serving.

The order of operations is fixed; `DECODER_VERSION` changes with anything that may change a pixel (`CHANGES`):

1. Decode the first frame. A JPEG that is to be resized is decoded at 1/2, 1/4 or 1/8 scale if both sides of
   the wanted part then still are at least twice the wanted size.
2. Lay it over white and bring it to RGB; an alpha channel that is 0 everywhere means nothing. Of 16 bits a channel the
   high 8 are kept, of as many as the file says that it uses.
3. Squash the wanted part, by default the middle square, to a square with Pillow's antialiased bilinear filter.
4. Turn it upright by its EXIF or XMP orientation: last, where the fewest pixels have to be moved.

Nothing here sets or obeys Pillow's switches for the whole process: `PIL.Image.open` warns or fails by the
global Image.MAX_IMAGE_PIXELS, and `warnings.catch_warnings` is not safe in threads. So the plugin that fits
the magic bytes is called directly, and what would make it warn or fail for no fault of the pixels is cut out.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffTags, _webp
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.Image import Transpose as Turn
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from flowers.data.complexity import (
    MOST_CHUNKS,
    JpegStructure,
    check_jpeg,
    check_pixels,
    jpeg_structure,
    too_complex,
    webp_extent,
)
from flowers.errors import BadImage

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Crop = Callable[[int, int], Box]

DECODER_VERSION: str = "2"
# What a version gives other pixels than the one before for. A bundle of an earlier one sees all other photos as it was
# trained on them, so it stays usable.
CHANGES: dict[str, str] = {
    "2": "photos whose alpha channel is 0 everywhere, 16-bit files that use fewer bits, orientations that are given in "
    "a rare way; TIFF, AVIF, HEIC, JPEG 2000, PPM and ICO were refused before",
}
MAX_PIXELS: int = 100_000_000
EXTENSIONS: frozenset[str] = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".ico", ".cur"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
# Pictures that are not read: whoever has them among photos wants to know.
OTHER_EXTENSIONS: frozenset[str] = frozenset(
    {
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf"),
        *(".pef", ".srw", ".x3f", ".3fr", ".iiq", ".erf", ".mrw", ".rwl", ".kdc", ".dcr", ".jxl", ".jxr", ".wdp"),
        *(".hdp", ".psd", ".psb", ".xcf", ".tga", ".pcx", ".exr", ".hdr", ".dds", ".svg", ".svgz", ".eps", ".ai"),
        *(".wmf", ".emf", ".icns", ".pict", ".pct", ".sgi", ".ras", ".xbm", ".xpm", ".bpg", ".flif", ".qoi", ".pfm"),
        *(".pam", ".dcm", ".dicom", ".fits", ".fit", ".fts", ".nii"),
    }
)

_KIND, _BITS, _LARGEST_VALUE, _MAKER, _SUB_IMAGES, _DNG_VERSION = 254, 258, 281, 271, 330, 50706  # tags of TIFF
_TIFF_TAGS: Final = frozenset(
    {*range(254, 260), 262, 266, *range(273, 283), 284, 292, 293, 317, *range(320, 326), 330, 332, *range(336, 342)}
    | {347, 512, 513, 514, 529, 530, 531, 532, _MAKER, _DNG_VERSION}
)
_TIFF_SIZES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of a value
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
    "tiff": rb"(II[*+]\0|MM\0[*+])(?!.{4}CR)",
    "avif": rb"....ftyp(.{4}){0,5}avi[fs]",
    "heic": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "jpeg2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "ico": rb"\0\0[\1\2]\0[^\0]\0",
    "ppm": rb"P[1-6](\s|#[^\n]{,20}\n)+\d",
}
_READ: Final = "JPEG, PNG, WebP, TIFF, AVIF, BMP, GIF, JPEG 2000, PPM or ICO"
_UNSUPPORTED: Final = {  # what photo folders hold besides
    "camera raw": rb"II[*+]\0.{4}CR|....ftypcrx |IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb",
    "Photoshop": rb"8BPS",
    "GIMP": rb"gimp xcf",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "JPEG XR": rb"II\xbc[\0\1]",
    "OpenEXR": rb"v/1\x01",
    "DirectDraw": rb"DDS ",
    "DICOM": rb".{128}DICM",
    "FITS": rb"SIMPLE  =",
    "Apple icon": rb"icns",
    "PostScript": rb"%!PS-Adobe-.{4}EPSF",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg)?[^\0]{0,1000}?<svg[\s>]",
}


@dataclass(frozen=True)
class _Loaded:
    """A decoded picture.

    Attributes:
        image: as stored.
        box: the part of it to resize.
        exif: with the orientation in which it is to be shown, if the decoder has not turned it.
        xmp: the same, where EXIF does not say.
        white: the largest value of a picture of 16 bits.
        extent: width and height of the photo; another one than the image's if it is a draft.
    """

    image: Image.Image
    box: Box
    extent: tuple[int, int]
    exif: bytes = b""
    xmp: bytes | str = b""
    white: int = 0xFFFF


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


class _Tiff(TiffImageFile):
    """A TIFF of any size: what is too large was refused before."""

    def load_prepare(self) -> None:
        """Makes the picture to decode into."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.load_prepare(self)


def sniff(data: bytes) -> str | None:
    """Names the format by the first 32 bytes, as "jpeg" (a key of `_FORMATS`), or None for any that is not read."""
    return next((form for form, magic in _FORMATS.items() if re.match(magic, data, re.DOTALL)), None)


def decode(
    data: bytes, size: int | None = None, *, max_pixels: int = MAX_PIXELS, crop: Crop | None = None
) -> npt.NDArray[np.uint8]:
    """Decodes one photo, whatever its file is called.

    Args:
        data: the bytes of a JPEG (or MPO), PNG, WebP, TIFF, AVIF, BMP, GIF, JPEG 2000, PPM (PGM, PBM) or ICO file;
            HEIC where pillow-heif is installed. Of several pictures in a file the first, of an icon the largest.
        size: the side of the square to return, in pixels; None keeps the photo's own size and shape.
        max_pixels: photos whose header declares more pixels are refused before any pixel is decoded.
        crop: from width and height in pixels, as stored (before EXIF turns the photo), to the box (left, top, right,
            bottom) of it that is resized; None takes the largest square in the middle. Needs a size.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous, read-only; H = W = size if that is given.

    Raises:
        BadImage: for all bytes that are no usable photo. Codes: empty, not_a_photo, unsupported_format,
            truncated, corrupt, too_many_pixels, too_complex.
        ValueError: a size below 1, a crop without a size, or a box that is empty or not inside the photo.
    """
    return decode_with_extent(data, size, max_pixels=max_pixels, crop=crop)[0]


def decode_with_extent(
    data: bytes, size: int | None = None, *, max_pixels: int = MAX_PIXELS, crop: Crop | None = None
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """As `decode`; also width and height of the photo as stored, in pixels."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if crop is not None and size is None:
        raise ValueError("crop needs a size")
    form = sniff(data)
    if form is None:
        raise _no_photo(data)
    try:
        loaded = _LOADERS.get(form, _load)(form, data, size, max_pixels, crop or _middle)
        image = _to_rgb(loaded.image, loaded.white)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR, loaded.box)
        turn = _TURNS[_orientation(loaded.exif, loaded.xmp)]
        return np.asarray(image if turn is None else image.transpose(turn)), loaded.extent
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
            return BadImage("unsupported_format", f"{name} file: convert it to {_READ}")
    return BadImage("not_a_photo", f"starts with {data[:16]!r}, as no known image format does")


def _load(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Decodes the first frame."""
    exif, xmp, structure = b"", b"", None
    if form == "jpeg":
        structure = jpeg_structure(data)
    elif form == "png":
        data, exif, xmp = _plain_png(data)
    elif form == "gif":
        data = _still_gif(data)
    elif form in ("avif", "jpeg2000"):
        _check_boxes(data)
    # The decoder of JPEG 2000 reads ahead of what it needs.
    image = _PLUGINS[form](io.BytesIO(data) if form == "jpeg2000" else _Source(data))
    check_pixels(form, image.size, cap)
    if structure:
        check_jpeg(structure)
    image.decodermaxblock = _BLOCK
    width, height = image.size
    left, top, right, bottom = _checked(crop, width, height)
    drafted = None
    if size:  # a draft of the whole photo so large that the box is twice the size; JPEG only, else None
        drafted = image.draft(None, (2 * size * width / (right - left), 2 * size * height / (bottom - top)))
    image.load()
    if structure:
        _check_complete(data, image, drafted, structure)
    # The sides of a draft are rounded up; what comes with it knows the fraction.
    scale = drafted[1][2] / width if drafted else 1
    box = left * scale, top * scale, right * scale, bottom * scale
    return _Loaded(image, box, (width, height), image.info.get("exif", exif), image.info.get("xmp", xmp))


def _check_boxes(data: bytes) -> None:
    """Refuses a file of boxes of which one reaches beyond its end, and a stream of JPEG 2000 without its end mark."""
    if data.startswith(b"\xff\x4f"):
        if b"\xff\xd9" not in data[-16:]:
            raise BadImage(*_TRUNCATED)
        return
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:  # to the end
            return
        at += max(length, 8)
    if at > len(data):
        raise BadImage(*_TRUNCATED)


def _check_complete(data: bytes, image: Image.Image, drafted: Any, structure: JpegStructure) -> None:
    """Refuses a JPEG whose data end before its picture, although an end mark follows: the decoder fills in the rest.

    A progressive one is doubtful always, any other if it ends in the grey that is filled in. It is decoded once more
    with bits before the end mark that mean something else: a decoder that has all it needs does not look at them.
    """
    if not image.info.get("progressive"):
        corner = image.getpixel((image.width - 1, image.height - 1))
        if corner not in (128, (128, 128, 128)) and image.mode in ("L", "RGB"):
            return
    elif structure.clear and not structure.has_every_bit():
        raise BadImage(*_TRUNCATED)
    end = data.rfind(b"\xff\xd9")
    again = _Jpeg(_Source(data[:end] + b"\x55" * _BLOCK + b"\xff\xd9"))
    again.decodermaxblock = _BLOCK
    if drafted:
        again.draft(None, image.size)
    again.load()
    if again.size == image.size and again.tobytes() != image.tobytes():
        raise BadImage(*_TRUNCATED)


def _load_webp(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Does the same with the C decoder of Pillow's plugin, as the plugin obeys Image.MAX_IMAGE_PIXELS."""
    check_pixels(form, webp_extent(data), cap)  # the decoder allocates the canvas as soon as it is made
    try:
        decoder = _webp.WebPAnimDecoder(data)
        extent, _, _, _, mode = decoder.get_info()
        image = Image.frombuffer(mode, extent, decoder.get_next()[0], "raw", mode, 0, 1)
    except OSError:
        if int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise BadImage(*_TRUNCATED) from None
        raise
    chunks = decoder.get_chunk("EXIF") or b"", decoder.get_chunk("XMP ") or b""
    return _Loaded(image, _checked(crop, *extent), extent, *chunks)


def _load_tiff(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Does the same for TIFF: the plugin turns it upright by itself."""
    image = _Tiff(_Source(_plain_tiff(data)))
    image.decodermaxblock = _BLOCK
    tags = image.tag_v2
    for offsets, lengths in ((273, 279), (324, 325)):  # of strips and of tiles
        if any(map(len(data).__lt__, map(sum, zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)))):
            raise BadImage(*_TRUNCATED)
    if tags.get(_DNG_VERSION) or tags.get(_KIND, 0) & 1 or (_SUB_IMAGES in tags and _MAKER in tags):
        raise BadImage("unsupported_format", f"camera raw file: convert it to {_READ}")
    check_pixels(form, image.size, cap)
    image.load()
    white = tags.get(_LARGEST_VALUE, 0)
    white = max(white) if isinstance(white, tuple) else white
    if 0 < white < 0xFF00 and len(image.getbands()) > 1 and 16 in tags.get(_BITS, ()):
        raise BadImage("unsupported_format", f"colours of up to {white} in 16 bits: convert it to 8 bits a channel")
    return _Loaded(image, _checked(crop, *image.size), image.size, white=int(white) if 0 < white < 0xFFFF else 0xFFFF)


def _plain_tiff(data: bytes) -> bytes:
    """Puts a directory of the first picture at the end, with nothing but what its pixels need.

    Raises:
        BadImage: the directory, or what it points to, lies beyond the end.
    """
    order, big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    offset, number, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    inline, place = (8, 8) if big else (4, 4)
    size = struct.calcsize(order + entry) + inline
    try:
        (start,) = struct.unpack_from(order + offset, data, place)
        (count,) = struct.unpack_from(order + number, data, start)
        entries = []
        start += struct.calcsize(order + number)
        for at in range(start, start + size * count, size):
            tag, kind, values = struct.unpack_from(order + entry, data, at)
            if tag not in _TIFF_TAGS:
                continue
            if kind in _TIFF_SIZES and values != 1 and TiffTags.lookup(tag).length == 1:
                raise BadImage("corrupt", f"the tiff decoder failed: {values} values for tag {tag}, which has one")
            length = values * _TIFF_SIZES.get(kind, 1)
            if length > inline:
                (there,) = struct.unpack_from(order + offset, data, at + size - inline)
                if there + length > len(data):
                    raise BadImage(*_TRUNCATED)
            entries.append(data[at : at + size].ljust(size, b"\0"))
    except struct.error:
        raise BadImage(*_TRUNCATED) from None
    head = data[:place] + struct.pack(order + offset, len(data)) + data[place + inline :]
    return head + struct.pack(order + number, len(entries)) + b"".join(entries) + bytes(inline)


def _load_ico(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Does the same for the largest picture of an icon, which is a PNG or a bitmap."""
    icon = IcoFile(_Source(data.replace(b"\0\0\2\0", b"\0\0\1\0", 1) if data[2] == 2 else data))
    entry = max(icon.entry, key=lambda entry: (entry.width * entry.height, entry.bpp))
    start, length = entry.offset, entry.size
    inside = data[start : start + length]
    if len(inside) < length:
        raise BadImage(*_TRUNCATED)
    if inside.startswith(b"\x89PNG"):
        return _load("png", inside, size, cap, crop)
    image = _icon_bitmap(inside, cap)
    return _Loaded(image, _checked(crop, *image.size), image.size)


def _icon_bitmap(data: bytes, cap: int) -> Image.Image:
    """A bitmap of an icon: its height counts a mask of one bit a pixel below it, for those of less than 32 bits."""
    header, width, height, _, bits = struct.unpack_from("<IiiHH", data)
    height = abs(height) // 2
    check_pixels("ico", (width, height), cap)
    image = DibImageFile(_Source(data[:8] + struct.pack("<i", height) + data[12:]))
    image.load()
    picture = image.convert("RGB")
    if bits == 32:
        alpha = np.frombuffer(data, np.uint8, 4 * width * height, header)[3::4].reshape(height, width)
    else:
        stride = (width + 31) // 32 * 4
        mask = np.frombuffer(data, np.uint8, stride * height, len(data) - stride * height).reshape(height, stride)
        alpha = (1 - np.unpackbits(mask, axis=1)[:, :width]) * np.uint8(255)
    picture.putalpha(Image.fromarray(np.ascontiguousarray(alpha[::-1])))
    return picture


def _load_heic(form: str, data: bytes, size: int | None, cap: int, crop: Crop) -> _Loaded:
    """Does the same by pillow-heif, an extra; its decoder turns the picture upright by itself."""
    if importlib.util.find_spec("pillow_heif") is None:
        raise BadImage(
            "unsupported_format", f"HEIC file: install pillow-heif (pip install '.[heic]') or convert it to {_READ}"
        )
    _check_boxes(data)
    image = importlib.import_module("pillow_heif").HeifImageFile(_Source(data))
    check_pixels(form, image.size, cap)
    image.load()
    return _Loaded(image, _checked(crop, *image.size), image.size)


_LOADERS: Final = {"webp": _load_webp, "tiff": _load_tiff, "ico": _load_ico, "heic": _load_heic}
_PLUGINS: Final[dict[str, Any]] = {
    "jpeg": _Jpeg,
    "png": PngImageFile,
    "bmp": BmpImageFile,
    "gif": GifImageFile,
    "avif": AvifImageFile,
    "jpeg2000": Jpeg2KImageFile,
    "ppm": PpmImageFile,
}


def _plain_png(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns the chunks that make up the still picture, the EXIF and the XMP: no other text, profiles or animation."""
    parts, exif, profile, xmp, at = [data[:8]], b"", None, b"", 8
    for _ in range(MOST_CHUNKS + 1):
        if at >= len(data):
            break
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        body = data[at + 8 : end - 4]
        if kind == b"eXIf":
            exif = body
        elif kind in (b"tEXt", b"zTXt") and body.startswith(b"Raw profile type exif\0"):
            if profile is None:  # once: inflating takes time
                profile = _raw_profile(body[22:] if kind == b"tEXt" else _inflated(body[23:]))
        elif kind == b"iTXt" and not xmp and body.startswith(b"XML:com.adobe.xmp\0"):
            text = body[20:].split(b"\0", 2)[-1]  # past two flags, a language and a translated keyword
            xmp = (_inflated(text) if body[18:19] == b"\1" else text) or b" "
        elif kind == b"tRNS" or not (kind.isalpha() and kind[:1].islower()):  # lower case: ancillary
            parts.append(data[at:end])
        at = end
    else:
        raise too_complex(f"a PNG of more than {MOST_CHUNKS} chunks")
    return b"".join(parts), exif or profile or b"", xmp


def _inflated(data: bytes) -> bytes:
    """The first mebibyte of compressed text; nothing if it is broken."""
    try:
        return zlib.decompressobj().decompress(data, 1 << 20)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a PNG: a name, a length and hexadecimal digits on lines."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


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


def _to_rgb(image: Image.Image, white: int) -> Image.Image:
    """Lays a picture of any mode over white: mode "RGB". `white` is the largest value of a 16-bit one."""
    if image.mode in ("F", "LAB"):
        raise BadImage(
            "unsupported_format", f"pixels of the kind {image.mode}: convert it to 8 or 16 bits of grey or RGB"
        )
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        grey = np.asarray(image)
        if grey.dtype != np.uint16:
            grey = np.clip(grey, 0, 0xFFFF).astype(np.uint16)
        if white != 0xFFFF:
            high = (np.minimum(grey, white) * np.uint32(0xFFFF) // np.uint32(white) >> 8).astype(np.uint8)
        else:
            high = (grey >> 8).astype(np.uint8)
        high[grey == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(high)
    elif image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (0, 0):
            return layer.convert("RGB")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        image.paste(layer, mask=layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(exif: bytes, xmp: bytes | str) -> int:
    """Returns the orientation, 1 to 8: that of the first directory of EXIF bytes, else that of XMP, else 1."""
    found = _exif_orientation(exif)
    if found is None:
        text = xmp.encode() if isinstance(xmp, str) else xmp
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


# Formats of the types of TIFF that Pillow takes for numbers; what is longer than 4 bytes lies elsewhere.
_TYPES: Final = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 5: "II", 10: "ii", 16: "Q", 17: "q"}


def _exif_orientation(exif: bytes) -> int | None:
    """The tag's value in any type of number, None if there is no such tag or it is broken."""
    tiff = exif
    while tiff.startswith(b"Exif\0\0"):
        tiff = tiff[6:]
    order = ">" if tiff.startswith(b"MM") else "<"
    found = None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", tiff, at)
            if tag != 0x0112 or kind not in _TYPES or not number:
                continue
            form = order + _TYPES[kind]
            place = at + 8
            if number * struct.calcsize(form) > 4:
                (place,) = struct.unpack_from(order + "I", tiff, at + 8)
            value, *divisor = struct.unpack_from(form, tiff, place)
            value = value / divisor[0] if divisor and divisor[0] else value
            if value == int(value):
                found = int(value)
    except (struct.error, OverflowError, ValueError):
        pass
    return found
