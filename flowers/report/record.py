"""The record of a run: everything its text, its page and report.json say.

The names of the fields are the keys of report.json, but for `schema`. Keys of later versions are ignored; fields with a
default were added after the first version and may be absent.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from flowers.errors import DamagedFile
from flowers.evaluation.answers import Calibration
from flowers.evaluation.examples import Example
from flowers.evaluation.gallery import CellPhotos, Gallery
from flowers.evaluation.metrics import Summary
from flowers.evaluation.slices import Slices
from flowers.evaluation.unknown import Unknown
from flowers.report.findings import Finding

# Stages that a run has only with an option of this name.
_ASKED_FOR = {"search", "folds"}


class DataUsed(BaseModel, frozen=True):
    """The photos of a run.

    Attributes:
        source: where they were listed.
        listed: files there, before `--per-class`.
        found: files of the run.
        used: photos in one of the subsets.
        quarantined: files that were left out.
        reasons: how many by reason, the most frequent first.
        classes: names of the classes, in the order of the model's outputs.
        per_class: photos used by class.
        notes: what was understood of the source.
        near_duplicates: photos used that show the same picture as another.
        near_groups: groups of these, each on one side of the split.
        near_examples: paths of some groups.
        left_out: the quarantined files by reason, some by name.
        near: the near-duplicates, some groups by name; None if there are none.
        decisions: photos that somebody looked at, by what was decided (`flowers.data.corrections.ACTIONS`).
    """

    source: str
    listed: int
    found: int
    used: int
    quarantined: int
    reasons: dict[str, int]
    classes: list[str]
    per_class: dict[str, int]
    notes: list[str] = []
    near_duplicates: int = 0
    near_groups: int = 0
    near_examples: list[list[str]] = []
    left_out: list[Finding] = []
    near: Finding | None = None
    decisions: dict[str, int] = {}


class SubsetCounts(BaseModel, frozen=True):
    """Photos in each subset."""

    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        """Photos in all subsets."""
        return self.train + self.validation + self.test


class SplitCounts(SubsetCounts, frozen=True):
    """The same by class too, and the hash of who is in which subset."""

    per_class: dict[str, SubsetCounts]
    sha256: str


class StageSeconds(BaseModel, frozen=True):
    """Wall time of the job and of each of its stages, which add up to it; 0 for one that there was not."""

    total: float
    start: float
    read: float
    features: float
    search: float = 0.0
    train: float
    save: float
    evaluate: float
    folds: float = 0.0

    def stages(self) -> list[tuple[str, float]]:
        """Names and seconds of the stages, in their order."""
        return [(name, seconds) for name, seconds in self if name != "total" and (seconds or name not in _ASKED_FOR)]


class ImagesPerSecond(BaseModel, frozen=True):
    """Speed of the stages that go through all photos; None where nothing was done."""

    read: float | None
    features: float | None


class FeatureUse(BaseModel, frozen=True):
    """Photos whose features were in the cache, photos they were computed of, and the cache's URI."""

    hits: int
    computed: int
    cache: str


class EpochMetrics(BaseModel, frozen=True):
    """A line of metrics.jsonl."""

    epoch: int
    phase: str | None = None
    loss: float
    val_accuracy: float | None
    val_macro_accuracy: float | None
    val_log_loss: float | None
    learning_rate: float
    seconds: float

    def monitored(self, monitor: str) -> float | None:
        """The validation metric of that name."""
        return {
            "accuracy": self.val_accuracy,
            "macro_accuracy": self.val_macro_accuracy,
            "log_loss": self.val_log_loss,
        }[monitor]


class PhaseResult(BaseModel, frozen=True):
    """What a phase of the training reached on the validation photos.

    Attributes:
        name: "head" or "tail" (the head and what `--trainable` names).
        epochs: that it took.
        val_accuracy: the highest of its epochs.
        val_log_loss: the lowest.
        kept: whether the model is of one of its epochs.
    """

    name: str
    epochs: int
    val_accuracy: float | None
    val_log_loss: float | None
    kept: bool


class TriedOptions(BaseModel, frozen=True):
    """A training of a search.

    Attributes:
        options: that were not as given, with their values.
        best_epoch: of this training.
        val_accuracy: of that epoch on the validation photos.
        val_log_loss: the same.
        chosen: whether the run was trained with these.
    """

    options: dict[str, float]
    best_epoch: int
    val_accuracy: float
    val_log_loss: float
    chosen: bool


class LimitedPhase(BaseModel, frozen=True):
    """The epochs of a phase that would have been trained at most, and those that fit; 0 left it out."""

    name: str
    most: int
    fit: int


class TimeLimit(BaseModel, frozen=True):
    """What --time-limit came to, in seconds.

    Attributes:
        limit: for the whole job.
        training: what was left of it for the training: without start, features, saving, tests, and its folds.
        used: what the training took.
        phases: epochs of each phase.
    """

    limit: float
    training: float
    used: float
    phases: list[LimitedPhase]


class Fold(BaseModel, frozen=True):
    """A training on another split of the run's photos.

    Attributes:
        train: photos that it was trained on.
        validation: photos that chose its epoch.
        held_out: photos that it is measured on, and that had no part in it.
        best_epoch: the epoch that was chosen.
        accuracy: on the photos held out.
        macro_accuracy: the same.
        log_loss: the same.
    """

    train: int
    validation: int
    held_out: int
    best_epoch: int
    accuracy: float
    macro_accuracy: float
    log_loss: float


class Spread(BaseModel, frozen=True):
    """A metric over the folds: their plain mean, standard deviation (n - 1), least and largest value."""

    mean: float
    sd: float
    low: float
    high: float


class CrossValidation(BaseModel, frozen=True):
    """The run's training on folds.

    Attributes:
        folds: each of them.
        accuracy: over the folds.
        macro_accuracy: the same.
        log_loss: the same.
        held_out: metrics of all photos together, each measured by the fold that held it out.
    """

    folds: list[Fold]
    accuracy: Spread
    macro_accuracy: Spread
    log_loss: Spread
    held_out: Summary


class Report(BaseModel, frozen=True):
    """The record of a finished run; `flowers.report.build` makes it.

    Attributes:
        created: when, ISO 8601.
        command: how the job was called.
        schema_version: of this record, the key `schema`.
        name: of the run.
        sample: whether its pictures were drawn.
        data: its photos.
        split: photos by subset.
        monitor: the validation metric that decides which epoch is the best.
        timing_s: seconds by stage.
        images_per_s: photos a second by stage.
        features: use of the feature cache.
        trainable: what of the network was trained.
        augment: how training photos were varied.
        cut: layer after which training started.
        streamed: whether training photos were decoded again each epoch.
        workers: training processes.
        backbone: the network without its head.
        weights: its start weights.
        image_size: height and width of its input, in pixels.
        precision: of its computations.
        precision_reason: why.
        seed: of everything random.
        warnings: what one should know before trusting the numbers.
        config: the options that decide the result.
        versions: of what the result depends on.
        validation: metrics of the best epoch on the validation photos.
        best_epoch: its number.
        history: metrics of every epoch.
        phases: what each phase reached, in their order.
        advice: that training deeper did not pay, and what to try; "" where it did.
        weights_sha256: hash of the bundle's weights.
        bundle: URI of the bundle.
        test: metrics of the bundle on the test photos.
        predictions: the first test photos.
        calibration: of the scores on the test photos; None without any.
        slices: accuracy on the test photos by what they have in common.
        galleries: test photos that are worth a look.
        cells: test photos of the cells of the confusion matrix.
        cross_validation: the same training on folds; None without --folds, or if fewer than two fit into the time.
        search: the options that were tried on the validation photos; empty without --search.
        time_limit: what it came to; None without --time-limit.
        unknown: how it tells photos that are none of the classes, at a share of false rejections; None of bundles that
            do not.
    """

    created: str
    command: str
    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    sample: bool
    data: DataUsed
    split: SplitCounts
    monitor: str
    timing_s: StageSeconds
    images_per_s: ImagesPerSecond
    features: FeatureUse
    trainable: str = "head"
    augment: str = "none"
    cut: str = "pool"
    streamed: bool = False
    workers: int = 1
    backbone: str
    weights: str
    image_size: int
    precision: str
    precision_reason: str
    seed: int
    warnings: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    validation: Summary
    best_epoch: int
    history: list[EpochMetrics]
    phases: list[PhaseResult] = []
    advice: str = ""
    weights_sha256: str
    bundle: str
    test: Summary
    predictions: list[Example]
    calibration: Calibration | None = None
    slices: list[Slices] = []
    galleries: list[Gallery] = []
    cells: list[CellPhotos] = []
    cross_validation: CrossValidation | None = None
    search: list[TriedOptions] = []
    time_limit: TimeLimit | None = None
    unknown: Unknown | None = None

    def to_json(self) -> str:
        """The text of report.json; it has no thumbnails."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that a report.json holds.

        Raises:
            DamagedFile: it holds none; the text names the first key that is wrong.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DamagedFile(f"{place}: {first['msg']}" if place else first["msg"]) from error
        except ValueError as error:
            raise DamagedFile(f"it is no JSON: {error}") from error
