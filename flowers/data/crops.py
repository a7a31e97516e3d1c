"""Views of photos for training: each photo read and cropped at random, as a stream in a given order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers.data import images
from flowers.data.ledger import ROW
from flowers.data.reading import read_block, stream_blocks
from flowers.errors import BadImage

if TYPE_CHECKING:
    import ray.data

# A view: uint8 [size, size, 3] as `size * size * 3` bytes, null where there is a `code`.
VIEWS = pa.schema([*(ROW.field(name) for name in ("path", "sha256", "code", "detail")), ("pixels", pa.large_binary())])


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


def stream_views(
    listing: pa.Table,
    draws: npt.NDArray[np.float64] | None,
    *,
    scale: tuple[float, float],
    size: int,
    max_pixels: int,
    readers: int,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """Reads, hashes and crops the photos of `listing` by Ray tasks.

    Args:
        listing: schema `flowers.data.listing.LISTING`; a photo may be listed many times.
        draws: float64 [n, 4], a row of `random_resized_crop` for each of the listing; None takes the middle square.
        scale: as in `random_resized_crop`.
        size: height and width of a view, in pixels.
        max_pixels: refuse larger pictures before decoding.
        readers: tasks that run at once.
        num_cpus: CPUs that Ray reserves for each task; less than one where training holds them.

    Returns:
        A lazy dataset of schema `VIEWS` in the order of the listing.

    Raises:
        ValueError: not one row of draws a photo.
    """
    if draws is not None:
        if draws.shape != (listing.num_rows, 4):
            raise ValueError(f"draws: received {draws.shape}, required is {(listing.num_rows, 4)}")
        flat = pa.array(np.ascontiguousarray(draws, np.float64).ravel())
        listing = listing.append_column("draws", pa.FixedSizeListArray.from_arrays(flat, 4))

    def view(block: pa.Table) -> pa.Table:
        return view_block(block, scale=scale, size=size, max_pixels=max_pixels)

    return stream_blocks(listing, view, readers=readers, num_cpus=num_cpus)


def view_block(block: pa.Table, *, scale: tuple[float, float], size: int, max_pixels: int) -> pa.Table:
    """Reads, hashes and crops the photos of one block.

    Args:
        block: schema `flowers.data.listing.LISTING`, and a column "draws" of four numbers if crops are wanted.
        scale: as in `random_resized_crop`.
        size: height and width of a view, in pixels.
        max_pixels: refuse larger pictures.

    Returns:
        A table of schema `VIEWS`.
    """
    read = read_block(block)
    codes, details = read["code"].to_pylist(), read["detail"].to_pylist()
    draws = block["draws"].to_pylist() if "draws" in block.column_names else [None] * block.num_rows
    pixels: list[bytes | None] = [None] * block.num_rows
    for index, (data, numbers) in enumerate(zip(read["bytes"], draws, strict=True)):
        if codes[index] is not None:
            continue
        crop = None if numbers is None else partial(random_resized_crop, draws=numbers, scale=scale)
        try:
            pixels[index] = images.decode(data.as_py(), size, max_pixels=max_pixels, crop=crop).tobytes()
        except BadImage as error:
            codes[index], details[index] = error.code, error.detail
    columns = {"path": read["path"], "sha256": read["sha256"], "code": codes, "detail": details, "pixels": pixels}
    return pa.table(columns, schema=VIEWS)
