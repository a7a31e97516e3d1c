"""The record of a look at photos: what its text and its page say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowers.data import quality
from flowers.data.corrections import in_words
from flowers.data.ledger import Ledger
from flowers.data.listing import Listing
from flowers.data.split import SUBSETS
from flowers.report.findings import SHOWN, Finding, left_out, near_duplicates, shown
from flowers.report.formatting import LARGE, count
from flowers.text import plain, several


@dataclass(frozen=True)
class ClassCounts:
    """Photos of a class: usable ones in all, those in each subset, and files that are not used."""

    name: str
    usable: int
    subsets: dict[str, int]
    quarantined: int


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes:
        source: where the files were listed.
        command: how the job was called.
        files: how many were found.
        notes: what was understood of the source.
        warnings: what looks wrong.
        refusal: why training would refuse the photos; None if it would not.
        classes: a row each.
        formats: photos that training would use, by format.
        sides: of the photos in pixels: the smallest, the median and the largest shorter side, then longer side.
        reasons: quarantined files, by reason.
        near_duplicates: groups of them.
        doubts: photos that look doubtful.
    """

    source: str
    command: str
    files: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    refusal: str | None
    classes: list[ClassCounts]
    formats: dict[str, int]
    sides: tuple[list[int], list[int]] | None
    reasons: list[Finding]
    near_duplicates: Finding | None
    doubts: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> int:
        """Photos that training would use."""
        return sum(row.usable for row in self.classes)


def build_check(
    command: str, listing: Listing, rows: pa.Table, ledger: Ledger | None, refusal: str | None, max_pixels: int
) -> DataCheck:
    """Puts together what was found.

    Args:
        command: how the job was called.
        listing: of the source.
        rows: of all files, schema `flowers.data.quality.LOOK`.
        ledger: of the same files; None where they cannot be split.
        refusal: why not.
        max_pixels: as when they were decoded.
    """
    table = ledger.table if ledger else _unsettled(rows)
    good = pc.is_valid(rows["width"])
    looked, used = rows.filter(good), rows.filter(pc.not_equal(table["status"], "quarantined"))
    return DataCheck(
        source=listing.source,
        command=command,
        files=rows.num_rows,
        notes=(*listing.notes, *_corrected(ledger)),
        warnings=(*listing.warnings, *(ledger.warnings() if ledger else ())),
        refusal=refusal,
        classes=_classes(table),
        formats=dict(Counter(used["format"].to_pylist()).most_common()),
        sides=_sides(looked),
        reasons=left_out(table, max_pixels),
        near_duplicates=near_duplicates(ledger, max_pixels) if ledger else None,
        doubts=[
            Finding(
                name=name,
                meaning=quality.DOUBTS[name][0],
                files=len(indices),
                shown=[
                    shown(looked["path"][index].as_py(), _measures(looked, index), max_pixels)
                    for index in indices[:SHOWN]
                ],
            )
            for name, indices in quality.doubtful(looked).items()
        ],
    )


def _corrected(ledger: Ledger | None) -> list[str]:
    """A line on the labels that were corrected."""
    said = in_words(ledger.decisions()) if ledger else ""
    return [f"labels corrected by --relabel: {said}"] if said else []


def _unsettled(rows: pa.Table) -> pa.Table:
    """The columns of a ledger for files that cannot be split."""
    status = pc.if_else(pc.is_null(rows["code"]), "usable", "quarantined")
    table = rows.select(["path", "label", "detail"]).append_column("reason", rows["code"])
    return table.append_column("status", status)


def _classes(table: pa.Table) -> list[ClassCounts]:
    pairs = Counter(zip(table["label"].to_pylist(), table["status"].to_pylist(), strict=True))
    names = sorted({label for label, _ in pairs if label is not None})
    return [
        ClassCounts(
            name,
            sum(number for (label, status), number in pairs.items() if label == name and status != "quarantined"),
            {subset: pairs[name, subset] for subset in SUBSETS},
            pairs[name, "quarantined"],
        )
        for name in names
    ]


def _sides(looked: pa.Table) -> tuple[list[int], list[int]] | None:
    if not looked.num_rows:
        return None
    extents = np.stack([looked["width"].to_numpy(), looked["height"].to_numpy()])
    shorter, longer = (
        [int(value) for value in np.quantile(side, [0, 0.5, 1], method="nearest")]
        for side in (extents.min(axis=0), extents.max(axis=0))
    )
    return shorter, longer


def _measures(looked: pa.Table, index: int) -> str:
    width, height, brightness, contrast, sharpness = (looked[name][index].as_py() for name in quality.MEASURES)
    return f"{width} x {height}, brightness {brightness:.0f}, contrast {contrast:.0f}, sharpness {sharpness:.0f}"


def render_check_text(found: DataCheck) -> Group:
    """What was found, for the terminal."""
    parts: list[Table | Text] = [_class_table(found.classes)]
    lines = [
        *found.notes,
        f"{several(found.files, 'file')}, {several(found.usable, 'photo')} of "
        f"{several(len(found.classes), 'class', 'classes')}: "
        + (", ".join(f"{count(number)} {form}" for form, number in found.formats.items()) or "none that can be read"),
    ]
    if found.sides:
        (low, middle, high), (_, long, longest) = found.sides
        lines.append(f"shorter side {low} to {high} pixels, median {middle}; longer side to {longest}, median {long}")
    lines += [f"quarantined: {_finding(one)}" for one in found.reasons]
    near = [found.near_duplicates] if found.near_duplicates else []
    lines += [_finding(one) for one in [*near, *found.doubts]]
    parts += [Text(plain(line)) for line in lines]
    parts += [Text(f"warning: {plain(text)}", style="bold") for text in found.warnings]
    return Group(*parts)


def _class_table(classes: Sequence[ClassCounts]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("class")
    for title in (*SUBSETS, "photos", "quarantined"):
        table.add_column(title, justify="right")
    shown = sorted(classes, key=lambda row: row.usable)[:LARGE] if len(classes) > LARGE else classes
    for row in shown:
        numbers = [*row.subsets.values(), row.usable, row.quarantined]
        table.add_row(Text(plain(row.name)), *map(count, numbers))
    if len(shown) < len(classes):
        table.caption = f"the {len(shown)} smallest of {len(classes)} classes"
    return table


def _finding(one: Finding) -> str:
    example = f", e.g. {one.shown[0].path}" if one.shown else ""
    return f"{count(one.files)} {one.name} ({one.meaning}){example}"
