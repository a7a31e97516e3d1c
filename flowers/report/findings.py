"""Findings: files of which one thing is to be said, some of them by name and with a small picture."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from pydantic import BaseModel, Field

from flowers import storage
from flowers.data.ledger import REASONS, Ledger
from flowers.evaluation.examples import thumbnail_of
from flowers.text import several

SHOWN = 10
"""Files that are shown of each kind."""
_GROUPS, _OF_A_GROUP = 8, 4
# Files that are left out for what they share with others; there are usable photos in them.
_PICTURES = frozenset({"duplicate", "conflict", "leak", "near_duplicate"})

Thumbnails = Callable[[str], str]


class Shown(BaseModel, frozen=True):
    """A file.

    Attributes:
        path: of the file.
        note: what is to be said of it.
        thumbnail: a small picture as a data URI; empty where there is none. It is not in the JSON.
    """

    path: str
    note: str
    thumbnail: str = Field(default="", exclude=True, repr=False)


class Finding(BaseModel, frozen=True):
    """Files of which one thing is to be said.

    Attributes:
        name: of the thing.
        meaning: in a sentence.
        files: how many there are.
        shown: some of them; for near-duplicates some groups, one after the other.
    """

    name: str
    meaning: str
    files: int
    shown: list[Shown]


def left_out(table: pa.Table, max_pixels: int, source: str = "") -> list[Finding]:
    """Files that are not used, by reason, the most frequent first.

    Args:
        table: columns path, reason (a key of `flowers.data.ledger.REASONS`; null for files that are used) and detail.
        max_pixels: larger pictures have no thumbnail.
        source: folder that files are named from; "" names them whole.
    """
    found: dict[str, list[int]] = {}
    for index, reason in enumerate(table["reason"].to_pylist()):
        if reason is not None:
            found.setdefault(reason, []).append(index)
    return [
        Finding(
            name=reason,
            meaning=REASONS.get(reason, ""),
            files=len(indices),
            shown=[
                shown(
                    table["path"][index].as_py(),
                    table["detail"][index].as_py() or "",
                    max_pixels if reason in _PICTURES else 0,
                    source,
                )
                for index in indices[:SHOWN]
            ],
        )
        for reason, indices in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def near_duplicates(ledger: Ledger, max_pixels: int, source: str = "") -> Finding | None:
    """Groups of photos of the same picture; None if there are none. Arguments as of `left_out`."""
    groups = ledger.near_duplicates()
    if not groups:
        return None
    sides = dict(zip(ledger.table["path"].to_pylist(), ledger.table["status"].to_pylist(), strict=True))
    return Finding(
        name="near-duplicates",
        meaning=f"the same picture in several files: {several(len(groups), 'group')}, each on one side of the split",
        files=sum(map(len, groups)),
        shown=[
            shown(path, f"group {number}: {sides[path]}", max_pixels, source)
            for number, group in enumerate(groups[:_GROUPS], start=1)
            for path in group[:_OF_A_GROUP]
        ],
    )


def shown(path: str, note: str, max_pixels: int, source: str = "") -> Shown:
    """A file with its thumbnail, which one of more than `max_pixels` has not."""
    name = storage.relative(path, source) if source else path
    return Shown(path=name, note=note, thumbnail=thumbnail_of(path, max_pixels) if max_pixels else "")
