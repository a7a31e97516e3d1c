"""The look of a photo: what makes one doubtful that can be decoded all the same.

Brightness and sharpness are those of cleanvision (github.com/cleanlab/cleanvision): the mean grey, and the variance of
the picture's edges; limits were set so that they name few of 1,200 photos of flowers (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageFilter, ImageStat

from flowers.data import decoding
from flowers.data.ledger import ROW
from flowers.data.near_duplicates import perceptual_hash
from flowers.data.reading import decoded

SIZE: Final = 224
# What is measured of a photo: width and height in pixels as stored, mean and standard deviation of its grey levels
# (0 to 255), and the variance of its edges. Null where there is a code.
LOOK: Final = pa.schema(
    [
        *ROW,
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
    ]
)
MEASURES: Final = ("width", "height", "brightness", "contrast", "sharpness")
_Test = Callable[[float, float, float, float, float], bool]
# What is doubtful, what it means, and when; in the order in which it is shown.
DOUBTS: Final[dict[str, tuple[str, _Test]]] = {
    "tiny": ("the shorter side has less than 64 pixels", lambda w, h, b, c, s: min(w, h) < 64),
    "odd-shaped": (
        "one side is more than 3 times the other: only the middle square is used",
        lambda w, h, b, c, s: max(w, h) > 3 * min(w, h),
    ),
    "dark": ("the mean grey level is below 30 of 255", lambda w, h, b, c, s: b < 30),
    "bright": ("the mean grey level is above 235 of 255", lambda w, h, b, c, s: b > 235),
    "flat": ("grey levels hardly differ: a standard deviation below 8 of 255", lambda w, h, b, c, s: c < 8),
    "blurry": ("hardly any edges", lambda w, h, b, c, s: s < 60 and c >= 8),
}


def look(block: pa.Table, *, max_pixels: int) -> pa.Table:
    """Decodes and measures the photos of one block.

    Args:
        block: schema `flowers.data.reading.BYTES`.
        max_pixels: refuse larger pictures.

    Returns:
        A table of schema `LOOK`.
    """
    columns = {name: block[name].to_pylist() for name in ROW.names}
    measured: dict[str, list[float | None]] = {name: [None] * block.num_rows for name in MEASURES}

    def decode(_: int, data: bytes) -> decoding.Decoded:
        return decoding.decode_with_extent(data, SIZE, max_pixels=max_pixels)

    for index, (pixels, extent) in decoded(block, columns["code"], columns["detail"], decode):
        columns["phash"][index] = perceptual_hash(pixels)
        for name, number in zip(MEASURES, (*extent, *_light(pixels)), strict=True):
            measured[name][index] = number
    return pa.table({**columns, **measured}, schema=LOOK)


def _light(pixels: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Brightness, contrast and sharpness."""
    grey = Image.fromarray(pixels).convert("L")
    levels = ImageStat.Stat(grey)
    edges = ImageStat.Stat(grey.filter(ImageFilter.FIND_EDGES).crop((1, 1, grey.width - 1, grey.height - 1)))
    return levels.mean[0], levels.stddev[0], edges.var[0]


def doubtful(rows: pa.Table) -> dict[str, list[int]]:
    """Indices of rows by what is doubtful about them, the most striking first.

    Args:
        rows: schema `LOOK`.
    """
    values = list(zip(*(rows[name].to_pylist() for name in MEASURES), strict=True))
    found: dict[str, list[int]] = {}
    for name, (_, applies) in DOUBTS.items():
        indices = [index for index, row in enumerate(values) if row[0] is not None and applies(*row)]
        if indices:
            found[name] = indices
    return found
