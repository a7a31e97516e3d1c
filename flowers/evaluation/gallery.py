"""The photos of an evaluation that are worth a look: the mistakes, the unsure answers, and some of each confusion.

How many there are is fixed, whatever the number of photos and classes, so that a page stays small.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from flowers import storage
from flowers.data import reading
from flowers.data.listing import listing_of
from flowers.evaluation.answers import Answers
from flowers.evaluation.examples import THUMBNAIL, Example, example, heated, thumbnail
from flowers.predictor import Predictor

GALLERY = 9
"""Photos of a gallery."""
OF_A_CELL, OF_ALL_CELLS = 12, 120
"""Photos of a cell of the confusion matrix, and of all its cells together."""

_SMALL = 96  # pixels a side of the photos of a cell
Indices = npt.NDArray[np.int64]


class Gallery(BaseModel, frozen=True):
    """Photos of one kind.

    Attributes:
        name: of the kind.
        meaning: what is special about them, and their order.
        n: photos of the kind.
        above: of its first `GALLERY`, how many an earlier gallery shows.
        photos: the others of them.
    """

    name: str
    meaning: str
    n: int
    above: int
    photos: list[Example]


class CellPhotos(BaseModel, frozen=True):
    """Photos of a cell of the confusion matrix.

    Attributes:
        true: their class.
        predicted: what they were taken for.
        n: photos of the cell.
        photos: some of them, the surest mistakes first, or the least sure right answers.
    """

    true: str
    predicted: str
    n: int
    photos: list[Example]


class _Kind(NamedTuple):
    name: str
    meaning: str
    n: int
    first: Indices


def worth_a_look(answers: Answers, source: str, predictor: Predictor) -> tuple[list[Gallery], list[CellPhotos]]:
    """Galleries, and photos of the cells of the confusion matrix, with small pictures and heat maps.

    Args:
        answers: to all photos.
        source: folder that photos are named from.
        predictor: the bundle that gave them.
    """
    kinds, cells = _kinds(answers), cells_of(answers)
    shown = np.unique(np.concatenate([kind.first for kind in kinds])) if kinds else np.empty(0, np.int64)
    large = _large(answers, shown.tolist(), source, predictor)
    small = _small(answers, [at for cell in cells.values() for at in cell], source, predictor)
    galleries, seen = list[Gallery](), set[int]()
    for kind in kinds:
        new = [at for at in kind.first.tolist() if at not in seen]
        above = len(kind.first) - len(new)
        galleries.append(
            Gallery(name=kind.name, meaning=kind.meaning, n=kind.n, above=above, photos=[large[at] for at in new])
        )
        seen.update(new)
    counts = answers.counts.confusion
    return galleries, [
        CellPhotos(
            true=answers.classes[true],
            predicted=answers.classes[predicted],
            n=int(counts[true, predicted]),
            photos=[small[at] for at in indices],
        )
        for (true, predicted), indices in cells.items()
    ]


def first_photos(answers: Answers, count: int, source: str, predictor: Predictor) -> list[Example]:
    """The first photos, whatever was said of them; arguments as of `worth_a_look`."""
    return list(_large(answers, list(range(min(count, len(answers.labels)))), source, predictor).values())


def small_pictures(answers: Answers, indices: list[int], predictor: Predictor) -> list[str]:
    """Small pictures of photos, as data URIs; "" of one that is not any more what was answered."""
    rows = answers.rows.take(pa.array(indices, pa.int64()))
    return ["" if photo is None else thumbnail(photo, _SMALL) for photo in _decoded(rows, _SMALL, predictor)]


def _kinds(answers: Answers) -> list[_Kind]:
    """The galleries that have photos: their names, meanings and numbers, and the first photos of each."""
    own = answers.scores[np.arange(len(answers.labels)), answers.labels]
    right, wrong = np.flatnonzero(answers.right), np.flatnonzero(~answers.right)
    found = [
        ("Worst mistakes", "wrong, with the lowest scores for their own class", wrong, own),
        ("Most certain mistakes", "wrong, with the highest scores", wrong, -answers.score),
        ("Least certain right answers", "right, with the lowest scores", right, answers.score),
    ]
    return [
        _Kind(name, meaning, len(of), of[np.argsort(by[of], kind="stable")[:GALLERY]])
        for name, meaning, of, by in found
        if len(of)
    ]


def cells_of(answers: Answers, most: int = OF_A_CELL, of_all: int = OF_ALL_CELLS) -> dict[tuple[int, int], list[int]]:
    """Which photos are shown of which cell of the confusion matrix, by (true, predicted).

    Each cell gets a first one before any gets a second one, mistakes before right answers, the frequent ones first.

    Args:
        answers: to all photos.
        most: photos of a cell.
        of_all: photos of all cells together.
    """
    k = len(answers.classes)
    counts = answers.counts.confusion.copy()
    np.fill_diagonal(counts, counts.diagonal() - counts.sum() - 1)  # after all mistakes
    place = np.empty(k * k, np.int64)
    place[np.argsort(-counts, axis=None, kind="stable")] = np.arange(k * k)
    cell = place[answers.labels * k + answers.predicted]
    order = np.lexsort((np.where(answers.right, answers.score, -answers.score), cell))
    ordered = cell[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within its cell
    chosen = np.lexsort((ordered, rank))[:of_all]
    found: dict[tuple[int, int], list[int]] = {}
    for at in np.sort(chosen[rank[chosen] < most]):
        index = int(order[at])
        found.setdefault((int(answers.labels[index]), int(answers.predicted[index])), []).append(index)
    return found


def _large(answers: Answers, indices: list[int], source: str, predictor: Predictor) -> dict[int, Example]:
    """Photos of galleries by their index, with heat maps."""
    pixels = _decoded(answers.rows.take(pa.array(indices, pa.int64())), predictor.bundle.image_size, predictor)
    there = [photo for photo in pixels if photo is not None]
    heats = predictor.run(np.stack(there))[1] if there else ()
    hot = iter(
        [
            heated(photo, heat) if heat.size > 1 and heat.max() > 0 else None
            for photo, heat in zip(there, heats, strict=True)
        ]
    )
    return {
        at: _example(answers, at, source, THUMBNAIL, photo, None if photo is None else next(hot))
        for at, photo in zip(indices, pixels, strict=True)
    }


def _small(answers: Answers, indices: list[int], source: str, predictor: Predictor) -> dict[int, Example]:
    """Photos of cells by their index."""
    pixels = _decoded(answers.rows.take(pa.array(indices, pa.int64())), _SMALL, predictor)
    return {at: _example(answers, at, source, _SMALL, photo) for at, photo in zip(indices, pixels, strict=True)}


def _decoded(rows: pa.Table, size: int, predictor: Predictor) -> list[npt.NDArray[np.uint8] | None]:
    """The middle squares of photos, uint8 [size, size, 3]; None for one that is not any more what was answered."""
    read = reading.read_block(listing_of(rows))
    block = reading.decode_block(read, size=size, max_pixels=predictor.max_pixels)
    digests = block["sha256"].to_pylist(), rows["sha256"].to_pylist()
    return [
        np.frombuffer(value.as_buffer(), np.uint8).reshape(size, size, 3) if value.is_valid and now == then else None
        for value, now, then in zip(block["pixels"], *digests, strict=True)
    ]


def _example(
    answers: Answers,
    at: int,
    source: str,
    size: int,
    photo: npt.NDArray[np.uint8] | None,
    hot: npt.NDArray[np.uint8] | None = None,
) -> Example:
    path, label = storage.relative(answers.rows["path"][at].as_py(), source), int(answers.labels[at])
    small, heat = ("" if pixels is None else thumbnail(pixels, size) for pixels in (photo, hot))
    return example(path, label, answers.classes, answers.scores[at], small, heat)
