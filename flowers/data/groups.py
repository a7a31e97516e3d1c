"""Groups of photos that stay on one side of a split: one patient, one burst, one picture in several files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowers.errors import InputError, few
from flowers.text import several

PARENT: Final = "parent"


def connected(count: int, pairs: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Connected components.

    Args:
        count: how many things there are.
        pairs: of things that belong together.

    Returns:
        int64 [count], the same number for things that belong together, directly or by others: that of the first.
    """
    first = np.arange(count, dtype=np.int64)
    join(first, pairs)
    return first


def join(first: npt.NDArray[np.int64], pairs: Iterable[Sequence[int]]) -> None:
    """Makes one group of the groups of each pair, in place.

    Args:
        first: int64 [n], for each thing the first of its group.
        pairs: of things that belong together.
    """

    def root(index: int) -> int:
        while (above := int(first[index])) != index:
            first[index] = first[above]
            index = above
        return index

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        first[high] = low
    while (first[first] != first).any():
        first[:] = first[first]


def by_name(names: Sequence[str | None]) -> list[tuple[int, int]]:
    """Pairs that connect what has one name; None is alone."""
    first: dict[str, int] = {}
    return [(first.setdefault(name, index), index) for index, name in enumerate(names) if name is not None]


def kept_together(ledger: pa.Table) -> npt.NDArray[np.int64]:
    """A number for each row of a ledger, int64 [n]: the same for near-duplicates and for photos of one named group."""
    return connected(ledger.num_rows, [*by_name(ledger["like"].to_pylist()), *by_name(ledger["group"].to_pylist())])


def check_rule(rule: str) -> str:
    """Returns a rule of ``--group-by`` if it is one.

    Raises:
        ValueError: it is no regular expression; the text says why.
    """
    if rule != PARENT:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"parent, or a regular expression; this one is none: {error}") from error
    return rule


def from_paths(paths: Sequence[str], labels: Sequence[str | None], rule: str) -> list[str | None]:
    """The group of each photo, by its path.

    Args:
        paths: below the source.
        labels: classes; None where a file has none.
        rule: "parent", the folder that a photo lies in, or a regular expression: what its first group matches, or all
            that it matches if it has no group. A photo that it does not match is alone.

    Raises:
        InputError: it puts all photos of a class into one group, or matches none at all.
    """
    if rule == PARENT:
        found = [path.rpartition("/")[0] or None for path in paths]
    else:
        matches = [re.search(rule, path) for path in paths]
        found = [match and (match[1] if match.re.groups else match[0]) for match in matches]
    photos = [(label, group) for label, group in zip(labels, found, strict=True) if label is not None]
    if photos and all(group is None for _, group in photos):
        raise InputError(f"--group-by: {rule!r} matches none of {several(len(photos), 'path')}, such as {paths[0]!r}")
    groups: dict[str, set[str | None]] = {}
    for label, group in photos:
        groups.setdefault(label, set()).add(group)
    whole = sorted(label for label, names in groups.items() if len(names) == 1 and None not in names)
    if whole:
        raise InputError(
            f"--group-by {rule}: all photos of {few(whole)} are one group, which cannot be both trained on and "
            "validated; give a rule that makes several groups of each class"
        )
    return found
