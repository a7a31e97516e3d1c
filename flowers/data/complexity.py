"""The cost of decoding a photo, from its structure alone: a file of a kilobyte may ask for minutes, or for gigabytes.

What is certain to cost more than `MOST_S` of CPU or `MOST_BYTES` of memory is refused before a pixel is decoded, the
same on every machine. What is certain to be quick is decoded at once. All else is decoded in a process that can be
ended (`flowers.data.decoding`). Rates are those of one core without AVX512, rounded up; `docs/decisions.md` has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from flowers.errors import BadImage

MOST_S: float = 2.0
MOST_BYTES: int = 300_000_000
MOST_SCANS: int = 1000
MOST_CHUNKS: int = 100_000  # of a PNG; writers cut after 8 KiB or later
QUICK_S: float = 0.1

# Pixels of a format whose decoding stays below both limits; of a JPEG it depends on more.
MOST_PIXELS: Final = {
    "png": 40_000_000,
    "webp": 18_000_000,
    "gif": 32_000_000,
    "bmp": 48_000_000,
    "tiff": 24_000_000,
    "avif": 28_000_000,
    "heic": 28_000_000,
    "jpeg2000": 6_000_000,
    "ico": 16_000_000,
    "ppm": 36_000_000,
}
_S_PER_PIXEL: Final = {"png": 65e-9, "webp": 40e-9}
_JPEG_S_PER_PIXEL, _JPEG_S_PER_SCALED_PIXEL, _JPEG_S_PER_SCANNED_PIXEL = 3e-9, 10e-9, 1.2e-9

_FILLING: Final = re.compile(rb"\xff+")
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MOST_SEGMENTS: Final = 10_000
# Bytes of EXIF, profiles and the like, and what a segment of them counts beside its bytes: taking them in takes time.
_MOST_NOTES, _NOTE = 1_000_000, 10_000
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)


@dataclass
class JpegStructure:
    """What the segments of a JPEG say.

    Attributes:
        kind: second byte of the marker of its frame: 0xC0 baseline, 0xC2 progressive; 0 if there is none.
        width: in pixels.
        height: in pixels.
        sampling: horizontal and vertical sampling factor of each component, by its number.
        scans: components, first and last coefficient and the bits left out of each scan.
        clear: whether every byte up to the end mark was understood. The scan of a baseline photo that holds all
            components is the only one that is decoded: what follows it was not looked at.
    """

    kind: int = 0
    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    scans: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    clear: bool = False

    @property
    def buffered(self) -> bool:
        """Whether the decoder has to hold the coefficients of the whole picture."""
        return self.kind not in _BASELINE or any(len(scan[0]) < len(self.sampling) for scan in self.scans[:1])

    @property
    def progressive(self) -> bool:
        """Whether scans refine each other."""
        return self.kind in _PROGRESSIVE

    @property
    def coefficient_bytes(self) -> int:
        """Memory for the coefficients: two bytes each."""
        factors = self.sampling.values()
        most = max((h for h, _ in factors), default=1) * max((v for _, v in factors), default=1)
        return 2 * self.width * self.height * sum(h * v for h, v in factors) // max(1, most)

    @property
    def scanned_pixels(self) -> int:
        """Pixels times the scans that pass over them; a progressive photo is decoded twice (`images`)."""
        return self.width * self.height * len(self.scans) * (2 if self.progressive else 1)

    def has_every_bit(self) -> bool:
        """Whether the scans bring every coefficient of every component to its last bit."""
        found: dict[int, set[int]] = {}
        for components, first, last, left_out in self.scans:
            if left_out == 0:
                for component in components:
                    found.setdefault(component, set()).update(range(first, last + 1))
        return all(len(found.get(component, ())) == 64 for component in self.sampling)


def jpeg_structure(data: bytes) -> JpegStructure:
    """Reads the segments of a JPEG up to its end mark; where they cannot be followed it stops, and is not clear."""
    found, at, notes = JpegStructure(), 2, 0
    for _ in range(_MOST_SEGMENTS):
        filling = _FILLING.match(data, at)
        if filling is None or filling.end() == len(data):
            return found
        at = filling.end()
        marker, length = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        if marker == 0xD9:
            found.clear = True
            return found
        body = data[at + 3 : at + 1 + length]
        at += 1 + length
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)) or length < 2:
            return found
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            notes += _NOTE + length
        if notes > _MOST_NOTES:
            return found
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if found.kind or len(body) < 6 or len(body) < 6 + 3 * body[5]:
                return found
            found.kind = marker
            found.height, found.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            for place in range(6, 6 + 3 * body[5], 3):
                found.sampling[body[place]] = body[place + 1] >> 4, body[place + 1] & 15
        elif marker == 0xDA:
            if not body or len(body) < 4 + 2 * body[0]:
                return found
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            found.scans.append((body[1 : 1 + 2 * body[0] : 2], first, last, bits & 15))
            if not found.buffered:
                found.clear = True
                return found
            following = _NEXT_MARKER.search(data, at)
            if following is None or len(found.scans) > MOST_SCANS:
                return found
            at = following.start()
    return found


def check_jpeg(found: JpegStructure) -> None:
    """Refuses a JPEG that is certain to cost too much.

    Raises:
        BadImage: too_complex.
    """
    scans, pixels = len(found.scans), found.width * found.height
    if found.buffered and (
        scans > MOST_SCANS
        or found.coefficient_bytes > MOST_BYTES
        or found.scanned_pixels * _JPEG_S_PER_SCANNED_PIXEL > MOST_S
    ):
        raise too_complex(f"a JPEG of {pixels} pixels in {scans} scans")


def check_pixels(form: str, size: tuple[int, int], cap: int) -> None:
    """Refuses a picture of more pixels than are allowed.

    Args:
        form: the format (`flowers.data.images.sniff`).
        size: width and height, in pixels.
        cap: the caller's limit.

    Raises:
        BadImage: too_many_pixels or, for a format that takes too long or too much memory, too_complex.
    """
    pixels = size[0] * size[1]
    if pixels > cap:
        raise BadImage("too_many_pixels", f"{size[0]} x {size[1]} pixels; the cap is {cap} pixels")
    if pixels > MOST_PIXELS.get(form, pixels):
        raise too_complex(f"{size[0]} x {size[1]} pixels as {form.upper()}")


def too_complex(what: str) -> BadImage:
    """The refusal of a photo that costs too much."""
    return BadImage(
        "too_complex",
        f"{what}: decoding takes more than {MOST_S:g} s or {MOST_BYTES // 10**6} MB; make it smaller, or save it as a "
        "plain JPEG",
    )


def is_quick(form: str | None, data: bytes, size: int | None) -> bool:
    """Whether decoding to `size` pixels a side is certain to take less than `QUICK_S`, or to be refused at once."""
    if form is None:
        return True
    if form == "jpeg":
        return _jpeg_s(jpeg_structure(data), size) < QUICK_S
    if form in _S_PER_PIXEL:
        extent = webp_extent(data) if form == "webp" else _png_extent(data)
        return extent[0] * extent[1] * _S_PER_PIXEL[form] < QUICK_S
    return False


def _jpeg_s(found: JpegStructure, size: int | None) -> float:
    if not found.clear or found.kind not in (*_BASELINE, *_PROGRESSIVE):
        return MOST_S
    pixels, reduction = found.width * found.height, 1
    while size and reduction < 8 and min(found.width, found.height) >= 4 * size * reduction:
        reduction *= 2
    seconds = pixels * _JPEG_S_PER_PIXEL + pixels / reduction**2 * _JPEG_S_PER_SCALED_PIXEL
    return seconds + (found.scanned_pixels * _JPEG_S_PER_SCANNED_PIXEL if found.buffered else 0)


def _png_extent(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def webp_extent(data: bytes) -> tuple[int, int]:
    """Width and height that the header of a WebP declares, in pixels."""
    bits = int.from_bytes(data[16:30].ljust(14, b"\0"), "little")  # past the name of the first chunk
    if data[15:16] == b"X":
        return (bits >> 64 & 0xFFFFFF) + 1, (bits >> 88 & 0xFFFFFF) + 1
    if data[15:16] == b"L":
        return (bits >> 40 & 0x3FFF) + 1, (bits >> 54 & 0x3FFF) + 1
    return bits >> 80 & 0x3FFF, bits >> 96 & 0x3FFF
