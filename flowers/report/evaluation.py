"""The record of an evaluation: what a bundle says of labelled photos, and how it compares with another one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from flowers import storage
from flowers.evaluation import ranking
from flowers.evaluation.answers import Answers, Calibration
from flowers.evaluation.gallery import CellPhotos, Gallery
from flowers.evaluation.metrics import Metric, Summary
from flowers.evaluation.paired import Paired
from flowers.evaluation.slices import Slices
from flowers.evaluation.unknown import Unknown
from flowers.report.findings import Finding
from flowers.text import spreadsheet_safe

# Changes that are named.
_NAMED = 20


class Rows(BaseModel, frozen=True):
    """What became of every file: `found` is the sum of the others.

    Attributes:
        found: files.
        evaluated: photos that count.
        training: photos that the bundle was trained on, left out.
        unknown: files of labels that the bundle does not know, left out.
        unusable: files without a label or that are no usable photo, left out.
    """

    found: int
    evaluated: int
    training: int
    unknown: int
    unusable: int


class Change(BaseModel, frozen=True):
    """A photo that only one of the two has right.

    Attributes:
        path: of the photo, from the folder where the photos were listed.
        label: its class.
        baseline: what the other one says.
        predicted: what the bundle says.
        thumbnail: a small picture as a data URI, for the page; it is not in the JSON.
    """

    path: str
    label: str
    baseline: str
    predicted: str
    thumbnail: str = Field(default="", exclude=True, repr=False)


class Comparison(BaseModel, frozen=True):
    """A bundle and another one on the same photos.

    Attributes:
        baseline: URI of the other one.
        training: photos that only the other one was trained on, left out here.
        unknown: photos of labels that the other one does not know, left out here.
        training_known: whether it is known what the other one was trained on.
        counts: photos by who is right.
        accuracy: of the bundle on these photos.
        baseline_accuracy: of the other one.
        difference: accuracy less that of the other one, with a paired interval.
        p_value: McNemar's exact test, two-sided.
        better: photos that only the bundle has right, some of them.
        worse: photos that only the other one has right, some of them.
    """

    baseline: str
    training: int
    unknown: int
    training_known: bool
    counts: Paired
    accuracy: Metric
    baseline_accuracy: Metric
    difference: Metric
    p_value: float
    better: list[Change]
    worse: list[Change]


class EvaluationReport(BaseModel, frozen=True):
    """The record of an evaluation.

    Attributes:
        created: when, ISO 8601.
        command: how the job was called.
        schema_version: of this record, the key `schema`.
        bundle: URI of the bundle.
        bundle_sha256: hash of its manifest.
        source: where the photos were listed.
        image_size: height and width of the network's input, in pixels.
        rows: what became of every file.
        unknown_labels: files by label that the bundle does not know.
        reasons: unusable files by reason.
        warnings: what one should know before trusting the numbers.
        seconds: from the first file to the last.
        summary: the metrics of a training's report.
        auc: area under the ROC curve of each class against the others.
        macro_auc: their mean.
        calibration: of scores.
        coverage: what is left where unsure answers are not taken.
        coverage_curve: coverage and accuracy, the surest photos first.
        slices: accuracy by what photos have in common.
        unknown: how photos of other things are told; None if that was not asked.
        comparison: with another bundle; None if none was named.
        galleries: photos that are worth a look.
        cells: photos of the cells of the confusion matrix.
        left_out: the unusable files by reason, some by name.
    """

    created: str
    command: str
    schema_version: Literal[1] = Field(default=1, alias="schema")
    bundle: str
    bundle_sha256: str
    source: str
    image_size: int
    rows: Rows
    unknown_labels: dict[str, int]
    reasons: dict[str, int]
    warnings: list[str]
    seconds: float
    summary: Summary
    auc: dict[str, Metric]
    macro_auc: Metric
    calibration: Calibration
    coverage: list[ranking.Coverage]
    coverage_curve: list[tuple[float, float]]
    slices: list[Slices]
    unknown: Unknown | None = None
    comparison: Comparison | None = None
    galleries: list[Gallery]
    cells: list[CellPhotos]
    left_out: list[Finding]

    def to_json(self) -> str:
        """The text of report.json; it has no thumbnails."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2)


def compare(
    new: Answers,
    old: Sequence[str],
    baseline: str,
    *,
    source: str,
    training: int,
    unknown: int,
    training_known: bool,
    pictures: Callable[[list[int]], list[str]],
) -> Comparison:
    """Compares a bundle with another one.

    Args:
        new: answers of the bundle to the photos of both.
        old: what the other one says of each.
        baseline: its URI.
        source: folder that photos are named from.
        training: photos left out as the other one was trained on them.
        unknown: photos left out as it does not know their labels.
        training_known: whether it is known what it was trained on.
        pictures: makes small pictures of some of the photos, as data URIs.
    """
    labels, paths = new.rows["label"].to_pylist(), new.rows["path"].to_pylist()
    said = [new.classes[at] for at in new.predicted]
    right = np.array([one == label for one, label in zip(old, labels, strict=True)], np.bool_)
    counts = Paired.of(new.right, right)

    def changes(chosen: npt.NDArray[np.bool_]) -> list[Change]:
        found = np.flatnonzero(chosen)  # in the order of the listing, so evenly spread over classes
        some = found[
            np.unique(np.linspace(0, len(found) - 1, min(_NAMED, len(found))).round().astype(np.int64))
        ].tolist()
        return [
            Change(
                path=storage.relative(paths[at], source),
                label=labels[at],
                baseline=old[at],
                predicted=said[at],
                thumbnail=picture,
            )
            for at, picture in zip(some, pictures(some), strict=True)
        ]

    return Comparison(
        baseline=baseline,
        training=training,
        unknown=unknown,
        training_known=training_known,
        counts=counts,
        accuracy=counts.accuracy,
        baseline_accuracy=counts.old_accuracy,
        difference=counts.difference,
        p_value=counts.p_value,
        better=changes(new.right & ~right),
        worse=changes(right & ~new.right),
    )


def confusion_csv(summary: Summary) -> bytes:
    """The confusion matrix: a row a true class, a column a predicted one."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [spreadsheet_safe(name) for name in summary.classes]
    writer.writerow(["true class", *names])
    writer.writerows([name, *counts] for name, counts in zip(names, summary.confusion_matrix, strict=True))
    return text.getvalue().encode("utf-8", "replace")
