"""Parts of the pages of reports that all have in common, made ready for their templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from flowers.evaluation.examples import Example
from flowers.evaluation.gallery import CellPhotos
from flowers.evaluation.metrics import ClassSummary, Metric, Summary, proportion
from flowers.report.formatting import LARGE

MOST_CLASSES, MOST_COLUMNS = 200, 40
"""Rows of a table of classes, and rows and columns of the confusion matrix: a page stays small with any number."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """Rows of a table, each with its name, and how many there are besides."""

    rows: list[tuple[str, Row]]
    more: int


@dataclass(frozen=True)
class Cell:
    """A number of the confusion matrix.

    Attributes:
        n: photos.
        right: whether they are right.
        shade: an opacity that keeps the number readable, by their share of the row.
        link: id of the panel with photos of it; "" if there is none.
    """

    n: int
    right: bool
    shade: float
    link: str


@dataclass(frozen=True)
class Pair:
    """A class that was taken for another one: how often, its share of the class, and the link of a `Cell`."""

    true: str
    predicted: str
    n: int
    share: Metric
    link: str


@dataclass(frozen=True)
class Panel:
    """Photos of a cell of the confusion matrix, as `flowers.evaluation.gallery.CellPhotos`, under an id."""

    id: str
    true: str
    predicted: str
    n: int
    photos: list[Example]

    @property
    def right(self) -> bool:
        """Whether the predictions are right."""
        return self.true == self.predicted


@dataclass(frozen=True)
class HeldParts:
    """What is shown of the metrics of a set of photos.

    Attributes:
        held: the metrics.
        large: whether there are too many classes for tables of full height.
        most: rows that a table may have and still be open.
        classes: their metrics.
        matrix: the confusion matrix.
        pairs: the most confused classes.
        panels: photos of cells of the matrix.
        elsewhere: those of cells that the matrix has not.
        panels_more: cells with photos that have no panel.
    """

    held: Summary
    large: bool
    most: int
    classes: Rows[ClassSummary]
    matrix: Rows[list[Cell]]
    pairs: list[Pair]
    panels: list[Panel]
    elsewhere: list[Panel]
    panels_more: int

    @classmethod
    def of(cls, held: Summary, cells: Sequence[CellPhotos]) -> HeldParts:
        """What is shown of metrics, and of photos of the cells of their confusion matrix."""
        index = {name: at for at, name in enumerate(held.classes)}
        panels = [
            Panel(f"cell-{index[one.true]}-{index[one.predicted]}", one.true, one.predicted, one.n, one.photos)
            for one in cells
        ]
        links = {(one.true, one.predicted): one.id for one in panels}
        pairs = []
        for one in held.most_confused:
            share = proportion(one.count, held.per_class[one.true].n)
            pairs.append(Pair(one.true, one.predicted, one.count, share, links.get((one.true, one.predicted), "")))
        matrix = _matrix(held, links)
        shown = {name for name, _ in matrix.rows}
        return cls(
            held=held,
            large=len(held.classes) > LARGE,
            most=LARGE,
            classes=_classes(held),
            matrix=matrix,
            pairs=pairs,
            panels=panels,
            elsewhere=[one for one in panels if not {one.true, one.predicted} <= shown],
            panels_more=sum(n > 0 for row in held.confusion_matrix for n in row) - len(panels),
        )


def first_rows(rows: Mapping[str, Row] | Iterable[tuple[str, Row]], most: int = MOST_CLASSES) -> Rows[Row]:
    """The first rows of a table."""
    listed = list(rows.items() if isinstance(rows, Mapping) else rows)
    return Rows(listed[:most], max(0, len(listed) - most))


def _classes(held: Summary) -> Rows[ClassSummary]:
    """Classes in their order; of very many those of the lowest recall."""

    def recall(item: tuple[str, ClassSummary]) -> float:
        return 2.0 if item[1].recall.value is None else item[1].recall.value

    many = len(held.classes) > MOST_CLASSES
    return first_rows(sorted(held.per_class.items(), key=recall) if many else held.per_class)


def _matrix(held: Summary, links: Mapping[tuple[str, str], str]) -> Rows[list[Cell]]:
    """The confusion matrix; of very many classes those that have a part in most mistakes."""
    counts = np.array(held.confusion_matrix, np.int64).reshape(len(held.classes), -1)
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_COLUMNS]).tolist()
    shades = 0.55 / np.maximum(1, counts.sum(axis=1))
    names = held.classes
    rows = [
        (
            names[i],
            [
                Cell(
                    int(counts[i, j]),
                    i == j,
                    round(0.04 + float(counts[i, j] * shades[i]), 2),
                    links.get((names[i], names[j]), ""),
                )
                for j in chosen
            ],
        )
        for i in chosen
    ]
    return Rows(rows, len(names) - len(rows))
