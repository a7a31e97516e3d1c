"""A contact sheet: a grid of pictures to look at."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

_GAP = 4  # pixels of white around each picture


def contact_sheet(rows: list[list[npt.NDArray[np.uint8]]]) -> bytes:
    """Lays out pictures, for instance a photo in each row: first as it is, then as training sees it.

    Args:
        rows: uint8 [height, width, 3] pictures, all of one size; a row may be shorter than others.

    Returns:
        The bytes of a JPEG file.

    Raises:
        ValueError: no pictures, or of different sizes.
    """
    shapes = {picture.shape for row in rows for picture in row}
    if len(shapes) != 1:
        raise ValueError(f"pictures: received sizes {sorted(shapes)}, required is one")
    height, width, _ = shapes.pop()
    down, across = height + _GAP, width + _GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * across + _GAP, len(rows) * down + _GAP), "white")
    for line, row in enumerate(rows):
        for place, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (_GAP + place * across, _GAP + line * down))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=90)
    return out.getvalue()
