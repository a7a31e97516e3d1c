"""A contact sheet of augmented training photos, to be looked at before one trusts an augmentation."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from flowers import storage
from flowers.data import images
from flowers.data.crops import random_resized_crop
from flowers.data.ledger import Ledger
from flowers.data.reading import read_bytes
from flowers.errors import BadImage, FlowersError
from flowers.features.views import seen
from flowers.model.augmentation import Augmenter
from flowers.plan import Plan
from flowers.training.inputs import CROP_SCALE

PHOTOS, VARIANTS = 6, 6
_GAP = 4  # pixels of white around each picture


def write_sheet(plan: Plan, ledger: Ledger) -> None:
    """Writes `augmented.jpg` into the run's folder: a row a photo, first as it is, then as training sees it."""
    photos = ledger.subset("train")
    indices = np.linspace(0, photos.num_rows - 1, min(PHOTOS, photos.num_rows)).astype(int)
    contents = [_content(photos["path"][index].as_py()) for index in indices.tolist()]
    columns = [_decoded(plan, contents, None)]
    columns += [seen(columns[0], view) for view in plan.views[1 : VARIANTS + 1]]
    if plan.config.augmentation in CROP_SCALE:
        columns += _augmented(plan, contents)
    rows = [[column[row] for column in columns] for row in range(len(contents))]
    storage.write(plan.run.contact_sheet, contact_sheet(rows))


def _content(path: str) -> bytes:
    found = read_bytes(path)
    if isinstance(found, BadImage):
        raise FlowersError(f"{path} changed or vanished since this run began ({found.detail}); put it back")
    return found


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
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (_GAP + column * across, _GAP + line * down))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=90)
    return out.getvalue()


def _augmented(plan: Plan, contents: list[bytes]) -> list[npt.NDArray[np.uint8]]:
    config = plan.config
    contents = contents + contents[: len(contents) % 2]  # mixing takes pairs
    augment = tf.function(
        Augmenter(
            config.augmentation, size=plan.image_size, batch_size=len(contents), workers=1, rank=0, seed=config.seed
        )
    )
    random = np.random.Generator(np.random.Philox(key=[config.seed, 0]))
    targets: Any = tf.one_hot(range(len(contents)), len(contents))
    columns = []
    for number in range(VARIANTS):
        pixels = _decoded(plan, contents, random.random((len(contents), 4)))
        columns.append(augment(tf.constant(pixels), targets, tf.constant(number))[0].numpy())
    return columns


def _decoded(plan: Plan, contents: list[bytes], draws: npt.NDArray[np.float64] | None) -> npt.NDArray[np.uint8]:
    """Photos uint8 [n, size, size, 3], cropped by a row of `draws` each, or to their middle square."""
    photos = []
    for number, data in enumerate(contents):
        crop = None
        if draws is not None:
            scale = CROP_SCALE[plan.config.augmentation]
            crop = functools.partial(random_resized_crop, draws=draws[number].tolist(), scale=scale)
        photos.append(images.decode(data, plan.image_size, max_pixels=plan.config.max_pixels, crop=crop))
    return np.stack(photos)
