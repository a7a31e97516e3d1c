"""Test photos through the saved bundle: from their bytes, never from the feature cache."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data import reading
from flowers.data.ledger import Ledger
from flowers.data.listing import listing_of
from flowers.errors import DamagedFile
from flowers.evaluation.answers import Answers, Calibration
from flowers.evaluation.examples import Example
from flowers.evaluation.gallery import CellPhotos, Gallery, first_photos, worth_a_look
from flowers.evaluation.metrics import Summary
from flowers.evaluation.slices import Slices
from flowers.evaluation.unknown import EACH, Pictures, Unknown, pictures
from flowers.prediction.scorer import decode_block, score, scored_schema, scores_of
from flowers.predictor import Predictor

EXAMPLES = 5


@dataclass(frozen=True)
class Evaluation:
    """The quality of a bundle on test photos.

    Attributes:
        summary: the metrics.
        examples: the first photos.
        calibration: of scores; None without photos.
        slices: accuracy by what photos have in common.
        galleries: photos that are worth a look.
        cells: photos of the cells of the confusion matrix.
        unknown: how photos are told that are none of the classes; None without photos, or if nobody asked.
    """

    summary: Summary
    examples: list[Example] = field(default_factory=list)
    calibration: Calibration | None = None
    slices: list[Slices] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    cells: list[CellPhotos] = field(default_factory=list)
    unknown: Unknown | None = None


def evaluate_bundle(predictor: Predictor, ledger: Ledger, source: str, *, readers: int) -> Evaluation:
    """Measures a bundle on the test photos, which are read and decoded again.

    Args:
        predictor: runs it.
        ledger: the photos.
        source: folder where they were listed; examples are named from there.
        readers: tasks that read and decode at once.
    """
    photos = ledger.subset("test")
    tables: Iterable[pa.Table] = ()
    if photos.num_rows:
        decode = functools.partial(_decoded, size=predictor.bundle.image_size, max_pixels=predictor.max_pixels)
        listing = listing_of(photos).drop_columns("group").append_column("group", photos["group"])
        tables = reading.tables(reading.stream_blocks(listing, decode, readers=readers))
    shown: list[Pictures] = []
    answers = answered(_watched(tables, predictor.bundle.image_size, shown), predictor, ledger.classes)
    if not photos.num_rows:
        return Evaluation(answers.summary())
    galleries, cells = worth_a_look(answers, source, predictor)
    return Evaluation(
        answers.summary(),
        first_photos(answers, EXAMPLES, source, predictor),
        answers.calibration(None, 0, ""),
        answers.slices(source),
        galleries,
        cells,
        None if predictor.unknown is None else _unknown(answers, predictor, predictor.unknown, np.stack(shown)),
    )


def _watched(tables: Iterable[pa.Table], size: int, shown: list[Pictures]) -> Iterator[pa.Table]:
    """The tables as they are; pixels of the first photos go to `shown`, each uint8 [size, size, 3]."""
    for table in tables:
        for value in table["pixels"][: EACH - len(shown)]:
            if value.is_valid:
                shown.append(np.frombuffer(value.as_py(), np.uint8).reshape(size, size, 3))
        yield table


def _unknown(answers: Answers, predictor: Predictor, allowed: float, photos: Pictures) -> Unknown:
    """How a bundle tells pictures of other things, drawn ones, from the test photos."""
    others = {name: predictor.run(drawn).typicality for name, drawn in pictures(photos).items()}
    return Unknown.of(allowed, answers.rows["typicality"].to_numpy(), answers.right, others)


def _decoded(block: pa.Table, size: int, max_pixels: int) -> pa.Table:
    return decode_block(reading.read_block(block), size=size, max_pixels=max_pixels)


def answered(tables: Iterable[pa.Table], predictor: Predictor, classes: tuple[str, ...]) -> Answers:
    """What a bundle says of decoded photos.

    Args:
        tables: schema `flowers.prediction.scorer.DECODED`.
        predictor: the bundle.
        classes: names of its classes.

    Raises:
        DamagedFile: a photo of the split can no longer be read.
    """
    parts = [scored_schema(len(classes)).empty_table()]
    for table in tables:
        lost = table.filter(pc.is_valid(table["code"]))
        if lost.num_rows:
            raise DamagedFile(f"{lost['path'][0]} changed since it was split: {lost['detail'][0]}; use another --name")
        parts.append(score(table, predictor))
    rows = pa.concat_tables(parts)
    return Answers(rows, scores_of(rows), classes)
