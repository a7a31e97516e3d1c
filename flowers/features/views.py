"""Views of a photo: what the frozen network is shown of it, once each, so that training varies photos it never sees.

Each view is a function of the decoded photo alone: however a run reads its photos, whichever process does it, and
whether its outputs are cached, it is the same.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from flowers.data.crops import random_resized_crop

PLAIN, FLIP = "plain", "flip"
CROPS = tuple(f"crop-{number}" for number in range(8))
# A view costs as much as its photo, in time and in the cache: the more photos there are, the fewer views of each.
_MOST_VIEWS = 100_000
_SCALE = (0.5, 1.0)  # area of a crop as a part of the photo's


def views_of(augment: str, photos: int) -> tuple[str, ...]:
    """The views of each of so many photos, the plain one first, for a value of `--augment`."""
    if augment == "flip":
        return PLAIN, FLIP
    if augment == "crops":
        return (PLAIN, FLIP, *CROPS)[: max(2, _MOST_VIEWS // max(1, photos))]
    return (PLAIN,)


def seen(photos: npt.NDArray[np.uint8], view: str) -> npt.NDArray[np.uint8]:
    """A view of photos uint8 [n, size, size, 3], of the same shape.

    "flip" mirrors them. "crop-N" takes a random part of at least half the area (as in Szegedy et al. 2015, "Going
    deeper with convolutions") by numbers drawn from the photo's content and N, and mirrors it if N is odd.

    Raises:
        ValueError: there is no such view.
    """
    if view == PLAIN:
        return photos
    if view == FLIP:
        return np.ascontiguousarray(photos[:, :, ::-1])
    if view not in CROPS:
        raise ValueError(f"view: received {view!r}, required is one of {', '.join((PLAIN, FLIP, *CROPS))}")
    number = CROPS.index(view)
    found = np.empty_like(photos)
    for index, photo in enumerate(photos):
        found[index] = _cropped(photo, number)
    return found[:, :, ::-1].copy() if number % 2 else found


def _cropped(photo: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8]:
    height, width, _ = photo.shape
    draws = np.random.Generator(np.random.Philox(key=[zlib.crc32(photo.tobytes()), number])).random(4).tolist()
    box = random_resized_crop(width, height, draws=draws, scale=_SCALE)
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR, box=box))
