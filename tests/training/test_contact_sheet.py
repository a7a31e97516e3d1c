"""The contact sheet: pictures in a grid."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flowers.training.contact_sheet import contact_sheet


def test_pictures_lie_in_rows() -> None:
    red, blue = (np.full((40, 30, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([[red, blue, red], [blue]]))).convert("RGB"))
    assert sheet.shape == (2 * 44 + 4, 3 * 34 + 4, 3)
    for top, left, colour in ((0, 0, red), (0, 1, blue), (1, 0, blue)):
        inside = sheet[4 + 44 * top + 10, 4 + 34 * left + 10]
        np.testing.assert_allclose(inside, colour[0, 0], atol=12)
    np.testing.assert_allclose(sheet[60, 60], 255, atol=8)
    wrong: list[list[list[npt.NDArray[np.uint8]]]] = [[], [[]], [[red, blue[1:]]]]
    for rows in wrong:
        with pytest.raises(ValueError, match="required is one"):
            contact_sheet(rows)
