"""Photos of other things than the classes: how many of them are found, and how many photos of the classes with them.

A training measures both on what is always at hand: its test photos, and pictures that no program was asked to know.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import BaseModel

from flowers.evaluation.metrics import Metric, proportion
from flowers.typicality import rejected

Pictures = npt.NDArray[np.uint8]

# Pictures of each kind; the parts a side that photos are cut into to be shuffled.
EACH, _PARTS = 20, 8


class Unknown(BaseModel, frozen=True):
    """How photos are told that are none of the classes.

    Attributes:
        allowed: share of photos of the classes that may be taken for none of them (`--unknown`).
        rejected: share of the photos of the classes that was.
        accuracy: of the others.
        detected: share of other photos that was found, by what they are.
    """

    allowed: float
    rejected: Metric
    accuracy: Metric
    detected: dict[str, Metric]

    @classmethod
    def of(
        cls,
        allowed: float,
        typicality: npt.ArrayLike,
        right: npt.ArrayLike,
        others: Mapping[str, npt.ArrayLike],
    ) -> Unknown:
        """Counts.

        Args:
            allowed: as above.
            typicality: float [n], of photos of the classes (`flowers.typicality`).
            right: bool [n], whether their likeliest class is their own.
            others: typicality of other photos, by what they are.
        """
        kept = ~rejected(typicality, allowed)
        return cls(
            allowed=allowed,
            rejected=proportion(int((~kept).sum()), len(kept)),
            accuracy=proportion(int((kept & np.asarray(right)).sum()), int(kept.sum())),
            detected={
                name: proportion(int(rejected(found, allowed).sum()), np.size(found)) for name, found in others.items()
            },
        )


def pictures(photos: Pictures) -> dict[str, Pictures]:
    """Pictures that are none of any class, the same for ever: uint8 [n, size, size, 3], by what they are.

    Args:
        photos: uint8 [m, size, size, 3], of the classes, m at least 1; their parts are shuffled.
    """
    size = photos.shape[1]
    rng = np.random.Generator(np.random.PCG64(0))
    grains = [max(1, size >> number % 8) for number in range(EACH)]
    noise = [_scaled(rng.integers(0, 256, (grain, grain, 3), np.uint8), size) for grain in grains]
    drawn = [_drawing(size, rng) for _ in range(EACH)]
    shuffled = [_shuffled(photo, rng) for photo in photos[:EACH]]
    return {"pictures of noise": np.stack(noise), "drawings": np.stack(drawn), "shuffled photos": np.stack(shuffled)}


def _scaled(pixels: Pictures, size: int) -> Pictures:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def _drawing(size: int, rng: np.random.Generator) -> Pictures:
    """A few shapes on a plain ground."""

    def colour() -> tuple[int, ...]:
        return tuple(rng.integers(0, 256, 3).tolist())

    picture = Image.new("RGB", (size, size), colour())
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 12))):
        left, top, right, bottom = np.sort(rng.integers(0, size, (2, 2)), axis=0).reshape(-1).tolist()
        form = rng.integers(3)
        if form == 0:
            draw.rectangle((left, top, right, bottom), fill=colour())
        elif form == 1:
            draw.ellipse((left, top, right, bottom), fill=colour())
        else:
            draw.line((left, bottom, right, top), fill=colour(), width=1 + size // 40)
    return np.asarray(picture)


def _shuffled(photo: Pictures, rng: np.random.Generator) -> Pictures:
    """The parts of a photo in another order; what does not fill a part is left out."""
    size = len(photo)
    side = max(1, size // _PARTS)
    count = size // side
    parts = photo[: count * side, : count * side].reshape(count, side, count, side, 3).swapaxes(1, 2)
    mixed = parts.reshape(-1, side, side, 3)[rng.permutation(count * count)].reshape(count, count, side, side, 3)
    return _scaled(np.ascontiguousarray(mixed.swapaxes(1, 2).reshape(count * side, count * side, 3)), size)
