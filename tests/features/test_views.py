"""Views: functions of the photo alone, one like another only by chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from flowers.features.views import CROPS, FLIP, PLAIN, seen, views_of

SIZE = 48


@pytest.fixture(scope="module")
def photos() -> npt.NDArray[np.uint8]:
    """Bright to the right and to the bottom."""
    across = np.linspace(0, 255, SIZE)
    ramps = np.stack(np.broadcast_arrays(across, across[:, None], 128.0), axis=-1)
    return np.stack([ramps, ramps.clip(20, 230), ramps.clip(40, 210)]).astype(np.uint8)


@pytest.mark.parametrize("view", [PLAIN, FLIP, *CROPS])
def test_a_view_depends_on_the_photo_alone(photos: npt.NDArray[np.uint8], view: str) -> None:
    found = seen(photos, view)
    assert found.shape == photos.shape
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(np.concatenate([seen(photo[None], view) for photo in photos[::-1]])[::-1], found)


def test_views_show_parts_of_the_photo_half_of_them_mirrored(photos: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(seen(photos, PLAIN), photos)
    np.testing.assert_array_equal(seen(photos, FLIP), photos[:, :, ::-1])
    pictures, corners = set(), set()
    for number, view in enumerate(CROPS):
        found = seen(photos, view)
        pictures |= {photo.tobytes() for photo in found}
        widths = np.diff(found[0, SIZE // 2, [0, -1], 0].astype(int))[0] / 255
        heights = np.diff(found[0, [0, -1], SIZE // 2, 1].astype(int))[0] / 255
        assert (widths < 0) == (number % 2 == 1), "odd ones are mirrored"
        assert 0.4 < abs(widths) * heights < 1.01
        corners.add(tuple(found[0, 0, 0, :2]))
    assert len(pictures) == len(CROPS) * len(photos)
    assert len(corners) == len(CROPS)


def test_the_more_photos_the_fewer_views() -> None:
    assert views_of("none", 100) == views_of("standard", 100) == (PLAIN,)
    assert views_of("flip", 10**9) == (PLAIN, FLIP)
    assert views_of("crops", 0) == views_of("crops", 10_000) == (PLAIN, FLIP, *CROPS)
    assert views_of("crops", 20_000) == (PLAIN, FLIP, *CROPS[:3])
    assert views_of("crops", 10**9) == (PLAIN, FLIP)


def test_a_wrong_view_is_named(photos: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="view: received 'crop-8', required is one of plain, flip, crop-0, "):
        seen(photos, "crop-8")
