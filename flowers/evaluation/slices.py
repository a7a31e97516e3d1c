"""Slices: the accuracy on photos that have something in common, to see where a classifier is weak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from flowers import storage
from flowers.data.shards import below
from flowers.evaluation.metrics import Metric, proportion

MOST = 50
"""Slices that are kept of one kind: those of most photos."""


class Slice(BaseModel, frozen=True):
    """Photos of one value, and the share of them that is right."""

    value: str
    accuracy: Metric


class Slices(BaseModel, frozen=True):
    """Photos by one thing.

    Attributes:
        name: of it.
        slices: in the order of their values, or the largest first where values have none.
        more: slices that are not kept, as they are small and many.
    """

    name: str
    slices: list[Slice]
    more: int = 0


# Names of ranges with the limit that is not in them any more, ascending.
_PIXELS = (
    ("below 0.1 megapixels", 0.1e6),
    ("0.1 to 0.5", 0.5e6),
    ("0.5 to 2", 2e6),
    ("2 to 8", 8e6),
    ("8 and more", 0),
)
_ASPECT = (("tall: below 1:2", 0.5), ("upright: to 4:5", 0.8), ("near square: to 5:4", 1.25), ("wide: to 2:1", 2.0),
           ("very wide", 0))  # fmt: skip
_BRIGHTNESS = (("dark: below 64 of 255", 64), ("64 to 128", 128), ("128 to 192", 192), ("bright: from 192 on", 0))


def slices(rows: pa.Table, right: npt.NDArray[np.bool_], source: str) -> list[Slices]:
    """Accuracy by everything that is known of photos.

    Args:
        rows: columns path, label, width and height (in pixels as stored), brightness (0 to 255), split, group.
        right: bool [n].
        source: folder that the photos were listed from.
    """
    width, height = (rows[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    found = [
        _by_value("class", rows["label"].to_pylist(), right),
        _by_range("width x height", _PIXELS, width * height, right),
        _by_range("aspect, width to height", _ASPECT, width / np.maximum(height, 1), right),
        _by_range("brightness", _BRIGHTNESS, rows["brightness"].to_numpy(), right),
    ]
    folders = [storage.parent(below(path, source)) for path in rows["path"].to_pylist()]
    if [storage.name(folder) for folder in folders] != rows["label"].to_pylist():  # they say more than the class
        found.append(_by_value("folder", folders, right))
    for name in ("split", "group"):
        if rows[name].null_count < rows.num_rows:
            found.append(_by_value(name, rows[name].to_pylist(), right))
    return found


def _by_value(name: str, values: Sequence[str | None], right: npt.NDArray[np.bool_]) -> Slices:
    hits: dict[str, list[int]] = {}
    for value, hit in zip(values, right.tolist(), strict=True):
        counts = hits.setdefault("none" if value is None else value, [0, 0])
        counts[0] += hit
        counts[1] += 1
    largest = sorted(hits.items(), key=lambda item: (-item[1][1], item[0]))
    kept = [Slice(value=value, accuracy=proportion(*counts)) for value, counts in largest[:MOST]]
    return Slices(name=name, slices=kept, more=len(largest) - len(kept))


def _by_range(
    name: str,
    ranges: Sequence[tuple[str, float]],
    values: npt.NDArray[np.floating],
    right: npt.NDArray[np.bool_],
) -> Slices:
    at = np.searchsorted(np.array([limit for _, limit in ranges[:-1]]), values, side="right")
    kept = [
        Slice(value=title, accuracy=proportion(int(right[at == index].sum()), int((at == index).sum())))
        for index, (title, _) in enumerate(ranges)
        if (at == index).any()
    ]
    return Slices(name=name, slices=kept)
