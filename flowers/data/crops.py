"""Random crops of photos for training: a pure function of numbers that are drawn for each photo beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers.data import images

_DRAWS = "draws"  # a column that travels with the photos to the task that decodes them


def random_resized_crop(
    width: int,
    height: int,
    *,
    draws: Sequence[float],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> images.Box:
    """The random crop of Inception (Szegedy et al. 2015, "Going deeper with convolutions"), without a generator.

    A box that does not fit into the photo is shrunk and keeps its shape, so no draw is ever rejected.

    Args:
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        draws: four numbers, uniform in [0, 1): area, aspect ratio, position across and position down.
        scale: smallest and largest area as a part of the photo's, above 0 and up to 1.
        ratio: smallest and largest width / height; between them its logarithm is uniform.

    Returns:
        Left, top, right and bottom in pixels, inside the photo.
    """
    area, aspect, across, down = draws
    pixels = width * height * (scale[0] + area * (scale[1] - scale[0]))
    shape = ratio[0] * (ratio[1] / ratio[0]) ** aspect
    wide, high = math.sqrt(pixels * shape), math.sqrt(pixels / shape)
    shrink = min(1.0, width / wide, height / high)
    wide, high = min(wide * shrink, width), min(high * shrink, height)  # the product may be rounded up
    left, top = across * (width - wide), down * (height - high)
    return left, top, min(left + wide, width), min(top + high, height)


@dataclass(frozen=True)
class RandomCrops:
    """A random crop of each photo of a listing.

    Attributes:
        draws: float64 [n, 4], a row of `random_resized_crop` for each photo.
        scale: as in `random_resized_crop`.
    """

    draws: npt.NDArray[np.float64]
    scale: tuple[float, float]

    def beside(self, listing: pa.Table) -> pa.Table:
        """The listing with the draws of each photo in its row, as `crops_of` takes them.

        Raises:
            ValueError: not one row of draws a photo.
        """
        if self.draws.shape != (listing.num_rows, 4):
            raise ValueError(f"draws: received {self.draws.shape}, required is {(listing.num_rows, 4)}")
        flat = pa.array(np.ascontiguousarray(self.draws, np.float64).ravel())
        return listing.append_column(_DRAWS, pa.FixedSizeListArray.from_arrays(flat, 4))


def crops_of(block: pa.Table, scale: tuple[float, float]) -> list[images.Crop]:
    """The crops of the photos of a block, from the draws beside them."""
    return [partial(random_resized_crop, draws=draws, scale=scale) for draws in block[_DRAWS].to_pylist()]
