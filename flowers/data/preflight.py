"""Small classes are read before anything heavy starts: whether they can be split is known in a second."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from flowers.data.ledger import check_classes, mark_repeats
from flowers.data.reading import decode_block, read_block

# A class of so many files or more is taken to have two good ones, until all have been read.
SMALL = 10
_SIZE = 32


def check_small_classes(table: pa.Table, max_pixels: int) -> None:
    """Reads and decodes the files of classes that have fewer than `SMALL`.

    Args:
        table: schema `flowers.data.listing.LISTING`.
        max_pixels: larger pictures count as unusable.

    Raises:
        InputError: fewer than two classes, or a class with fewer than two usable photos.
    """
    files = table.filter(pc.is_null(table["code"]))
    sizes = Counter(files["label"].to_pylist())
    small = [label for label, size in sizes.items() if size < SMALL]
    if not small:
        return
    doubtful = files.filter(pc.is_in(files["label"], pa.array(small))).combine_chunks()
    rows = mark_repeats(decode_block(read_block(doubtful), size=_SIZE, max_pixels=max_pixels))
    others = table.filter(
        pc.or_kleene(pc.is_valid(table["code"]), pc.invert(pc.is_in(table["label"], pa.array(small))))
    )
    check_classes(pa.concat_tables([part.select(["path", "label", "code", "detail"]) for part in (rows, others)]))
