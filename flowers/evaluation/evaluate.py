"""Test photos through the saved bundle: from their bytes, never from the feature cache."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pydantic import BaseModel, Field

from flowers import storage
from flowers.data import decoding, reading
from flowers.data.ledger import Ledger
from flowers.data.listing import listing_of
from flowers.errors import BadImage, DamagedFile
from flowers.evaluation.metrics import Counts, Summary, summarize
from flowers.predictor import Predictor

EXAMPLES = 5
THUMBNAIL = 160  # pixels a side


class ClassScore(BaseModel, frozen=True):
    """The probability of a class."""

    label: str
    score: float


class Example(BaseModel, frozen=True):
    """A photo and what the bundle said of it.

    Attributes:
        path: of the photo, from the folder where the photos were listed.
        label: its class.
        predicted: the class of the highest score.
        score: that score.
        top: the highest scores, at most three.
        thumbnail: a small picture as a data URI, for the page; it is not in the JSON.
    """

    path: str
    label: str
    predicted: str
    score: float
    top: list[ClassScore]
    thumbnail: str = Field(default="", exclude=True, repr=False)

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.predicted == self.label


@dataclass(frozen=True)
class Evaluation:
    """The quality of a bundle on test photos, with examples."""

    summary: Summary
    examples: list[Example]


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
        stream = reading.stream_pixels(
            listing_of(photos),
            size=predictor.bundle.image_size,
            max_pixels=predictor.max_pixels,
            readers=readers,
        )
        tables = reading.tables(stream)
    counts, examples = evaluate(tables, predictor, EXAMPLES, source)
    return Evaluation(summarize(counts, ledger.classes), examples)


def evaluate(
    tables: Iterable[pa.Table], predictor: Predictor, examples: int = 0, source: str = ""
) -> tuple[Counts, list[Example]]:
    """Counts every decoded photo and describes the first few.

    Args:
        tables: schema `flowers.data.reading.PIXELS`.
        predictor: the bundle.
        examples: photos to describe.
        source: folder that examples are named from.

    Raises:
        DamagedFile: a photo of the split can no longer be read.
    """
    classes, size = predictor.bundle.classes, predictor.bundle.image_size
    counts = Counts.zero(len(classes))
    described: list[Example] = []
    for table in tables:
        lost = table.filter(pc.is_valid(table["code"]))
        if lost.num_rows:
            raise DamagedFile(f"{lost['path'][0]} changed since it was split: {lost['detail'][0]}; use another --name")
        if not table.num_rows:
            continue
        photos = [np.frombuffer(value.as_buffer(), np.uint8).reshape(size, size, 3) for value in table["pixels"]]
        probabilities, _ = predictor.run(np.stack(photos))
        labels = table["label"].to_pylist()
        counts += Counts.of([classes.index(label) for label in labels], probabilities)
        for index in range(min(table.num_rows, examples - len(described))):
            path = storage.relative(table["path"][index].as_py(), source)
            described.append(example(path, labels[index], classes, probabilities[index], thumbnail(photos[index])))
    return counts, described


def example(
    path: str, label: str, classes: Sequence[str], probabilities: npt.NDArray[np.float32], picture: str
) -> Example:
    """What is shown of a photo.

    Args:
        path: as it is named.
        label: its class.
        classes: names of the K classes.
        probabilities: float32 [K].
        picture: its thumbnail.
    """
    top = [
        ClassScore(label=classes[at], score=float(probabilities[at]))
        for at in np.argsort(-probabilities, kind="stable")[:3]
    ]
    # The label that is shown is the argmax: ML.NET's F# sample shows the true one by mistake.
    return Example(path=path, label=label, predicted=top[0].label, score=top[0].score, top=top, thumbnail=picture)


def thumbnail_of(path: str, max_pixels: int, size: int = THUMBNAIL) -> str:
    """The thumbnail of a file, `size` pixels a side; empty if it is no usable photo."""
    data = reading.read_bytes(path)
    try:
        if isinstance(data, BadImage):
            return ""
        return thumbnail(decoding.decode(data, size, max_pixels=max_pixels), size)
    except BadImage:
        return ""


def thumbnail(pixels: Any, size: int = THUMBNAIL) -> str:
    """A small JPEG of uint8 [H, W, 3] pixels as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
