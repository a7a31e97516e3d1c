"""Answers: what a bundle says of labelled photos, as arrays, and all that is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from flowers.evaluation import calibration
from flowers.evaluation.metrics import Counts, Metric, Summary, summarize
from flowers.evaluation.slices import Slices, slices


class Calibration(BaseModel, frozen=True):
    """Whether scores are what they say.

    Attributes:
        bins: photos by their highest score.
        error: expected calibration error over these bins.
        temperature: by which logits are to be divided; None where it could not be fitted.
        fitted_on: validation photos of the run that it was fitted on.
        why_not: why it was not fitted.
        bins_after: as `bins`, of the scores with that temperature.
        error_after: of these.
        log_loss_after: of the scores with that temperature.
    """

    bins: list[calibration.Bin]
    error: float | None
    temperature: float | None = None
    fitted_on: int = 0
    why_not: str = ""
    bins_after: list[calibration.Bin] = []
    error_after: float | None = None
    log_loss_after: Metric | None = None


class Answers:
    """What a bundle says of labelled photos, as arrays.

    Args:
        rows: columns path, label, sha256, and what `flowers.evaluation.slices.slices` takes.
        scores: float32 [n, K].
        classes: names of the K classes.

    Attributes:
        labels: int64 [n], true classes.
        predicted: int64 [n].
        score: float32 [n], the highest score.
        margin: float32 [n], the highest score less the second.
        right: bool [n].
    """

    def __init__(self, rows: pa.Table, scores: npt.NDArray[np.float32], classes: Sequence[str]) -> None:
        self.rows, self.scores, self.classes = rows, scores, tuple(classes)
        index = {name: at for at, name in enumerate(classes)}
        self.labels = np.array([index[label] for label in rows["label"].to_pylist()], np.int64)
        self.predicted = scores.argmax(axis=1) if len(scores) else np.empty(0, np.int64)
        highest = np.sort(scores, axis=1)[:, -2:]
        self.score, self.right = highest[:, -1], self.predicted == self.labels
        self.margin = highest[:, -1] - highest[:, 0]

    @cached_property
    def counts(self) -> Counts:
        """The sums that all metrics follow from."""
        return Counts.of(self.labels, self.scores)

    def summary(self, top: int = 5) -> Summary:
        """The metrics of a training's report, with accuracies among the `top` highest scores at most."""
        return summarize(self.counts, self.classes, top)

    def calibration(self, temperature: float | None, fitted_on: int, why_not: str) -> Calibration:
        """Calibration, and what a temperature makes of it."""
        bins = calibration.reliability(self.score, self.right)
        before = Calibration(bins=bins, error=calibration.expected_error(bins), why_not=why_not)
        if temperature is None:
            return before
        scores = calibration.tempered(self.scores, temperature)
        after = calibration.reliability(scores.max(axis=1, initial=0), self.right)
        return before.model_copy(
            update={
                "temperature": temperature,
                "fitted_on": fitted_on,
                "bins_after": after,
                "error_after": calibration.expected_error(after),
                "log_loss_after": summarize(Counts.of(self.labels, scores), self.classes).log_loss,
            }
        )

    def slices(self, source: str) -> list[Slices]:
        """Accuracy by what photos have in common."""
        return slices(self.rows, self.right, source)
