"""Every option of a training run, in one place: its default, what may be given, whether it changes the result."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from flowers import storage
from flowers.data.corrections import Corrections, read_corrections
from flowers.data.groups import check_rule
from flowers.data.images import MAX_PIXELS
from flowers.model.registry import BACKBONES, trainable_help
from flowers.model.weights import NAMED_WEIGHTS
from flowers.options import OneOf, OptionSet, described, flag, option, said, wrong
from flowers.text import several

# Passes over the training photos at most: of the head, and of a deeper training's second phase.
HEAD_EPOCHS, TAIL_EPOCHS = 60, 12
# What that second phase does unless told otherwise, and the head's does not (docs/accuracy.md).
TAIL_SMOOTHING, TAIL_AUGMENT = 0.02, "flip"
# Options that are no more, each with the value that means what is done now: a run that began with it may go on, one
# that began with another value may not. Who removes an option that changed the result adds it here.
REMOVED: dict[str, Any] = {}

# Options that change what comes out, and those that change only where and how it is computed, or what is shown: an
# unfinished run may go on with others of these.
deciding, neutral = functools.partial(option, result=True), functools.partial(option, result=False)


# Share of photos of the classes that may be taken for none of them, where none is named.
UNKNOWN = 0.05
# Classes that are named for each photo, where nobody says how many.
TOP = 5


def top_said(top: int, classes: int) -> str:
    """A line where somebody asked for more classes than a bundle has; "" if not."""
    if top <= max(classes, TOP):
        return ""
    return f"--top {top}: the bundle has {several(classes, 'class', 'classes')}, all of them are named"


def unknown_option(**more: Any) -> Any:
    """The option by which photos of other things than the classes get no label: of bulk jobs and the server."""
    return option(
        None,
        "Give no label to photos that are none of the classes. The number is the share of photos of the classes that "
        "may be taken for such: the smaller, the more of other things pass for a class.",
        absent=f"all get one; without a number {UNKNOWN}",
        alone=str(UNKNOWN),
        gt=0,
        lt=1,
        **more,
    )


def _meant(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity in which values that come to the same are the same: those of a phase that there is not."""
    if identity["trainable"] != "head":
        return identity
    second = {name: None for name in ("head_epochs", "tail_learning_rate", "layer_decay")}
    absent = {"label_smoothing": 0.0, "augment": "none", "monitor": "log_loss"}
    plain = {name: identity[name] or value for name, value in absent.items()}
    return {**identity, **second, **plain}


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


NotEmpty = Annotated[str, AfterValidator(_not_empty)]


def _fractions(split: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(0 <= part <= 1 for part in split) or abs(sum(split) - 1) > 1e-6 or not split[0] or not split[1]:
        raise ValueError
    return split


def _number_of_workers(text: str) -> str:
    if ".." in text or ":" in text:
        raise ValueError(
            "one number: a number that changes during a run would change which photos share a step (the batch must "
            "divide by it), and each change restarts every worker; an unfinished run goes on with another --workers"
        )
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise ValueError
    return text


_UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds_of(duration: str) -> int:
    """Seconds of a duration such as 90s, 30d or 1h30m: whole numbers with units, the largest unit first.

    Raises:
        ValueError: it is none.
    """
    parts = re.fullmatch("".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS), duration)
    if not duration or parts is None:
        raise ValueError
    return sum(int(number) * unit for number, unit in zip(parts.groups("0"), _UNITS.values(), strict=True))


def _duration(text: str) -> str:
    """The same time always in the same words: they are part of a run's identity."""
    seconds = seconds_of(text)
    if not seconds:
        raise ValueError
    return "".join(
        f"{seconds % above // size}{unit}"
        for (unit, size), above in zip(_UNITS.items(), (1 << 62, *_UNITS.values()), strict=False)
        if seconds % above // size
    )


def _folder_name(text: str) -> str:
    if not text or text in (".", "..", "cache", "datasets") or set(text) & set("/\\\0"):
        raise ValueError
    return text


def _model_folder(uri: str) -> str:
    if not re.fullmatch(r"(?=.*[^0-9])[A-Za-z0-9_.-]+", storage.name(uri)) or storage.name(uri) in (".", ".."):
        raise ValueError
    return uri


# What --data may be beside a path; sets that are downloaded are listed in flowers/data/builtin/download.py.
_NAMED_SETS = ("sample", "flower_photos", "flower_photos_small")


class DataOptions(OptionSet):
    """Which photos, and how they are split: for every job that reads photos with labels."""

    data: NotEmpty = deciding(
        "sample",
        "Photos to train on: a folder with one sub-folder a class (local, or any URI pyarrow.fs opens, e.g. s3://), a "
        "manifest (.csv, .tsv, .txt, .jsonl, .json or .parquet) with the columns path, label and optionally split and "
        "group, an archive, a pack of jobs.pack, or a named set: sample (200 drawn pictures), flower_photos, "
        "flower_photos_small (downloaded once).",
        group="Data",
        required="a folder, a manifest or a named set",
        path=True,
        names=_NAMED_SETS,
    )
    per_class: int | None = deciding(
        None, "Take a seeded subset of at most this many files a class.", absent="all", ge=2
    )
    root: str | None = deciding(
        None,
        "Folder that relative paths of a manifest start at.",
        absent="the manifest's folder",
        path=True,
    )
    class_names: str | None = deciding(
        None,
        "File with the names of classes that a manifest gives as numbers: one name a line in their order, lines of "
        "number and name, or JSON.",
        absent="the numbers are the names",
        path=True,
    )
    layout: Literal["auto", "classes", "split"] = deciding(
        "auto",
        "What the folders of --data are: classes, or the sides of a split (train, val, test) above them; auto tells by "
        "their names and asks where these leave it open.",
    )
    split: Annotated[tuple[float, float, float], AfterValidator(_fractions)] = deciding(
        (0.7, 0.27, 0.03),
        "Fractions of each class for training, validation and test; where a split was given, for sides that it lacks.",
        required="three fractions that add up to 1, the first two above 0",
    )
    split_file: str | None = deciding(
        None,
        "A split.parquet of an earlier run: images known there keep their subset, new ones are assigned.",
        path=True,
    )
    group_by: Annotated[str, AfterValidator(check_rule)] | None = deciding(
        None,
        "Photos of one group stay on one side of the split: parent (the folder a photo lies in) or a regular "
        "expression for paths below --data, of which the first group counts.",
        absent="as the manifest's column group says",
        required="parent, or a regular expression",
    )
    near_duplicates: Literal["group", "drop", "keep"] = deciding(
        "group",
        "The same picture in several files, re-encoded, resized, mirrored or cropped a little: group keeps them on one "
        "side of the split, drop keeps the largest file, keep treats them as any two photos.",
    )
    relabel: NotEmpty | None = deciding(
        None,
        "A suspects.csv of jobs.suspects in which somebody decided: photos are relabelled or dropped as it says.",
        required="a file",
        path=True,
    )
    max_bad_fraction: float = deciding(0.1, "Stop if more than this fraction of the files is unusable.", ge=0, le=1)
    max_pixels: int = deciding(MAX_PIXELS, "Refuse pictures of more pixels, before decoding them.", ge=1)
    seed: int = deciding(
        0, "Seed of subset, split, shuffling, dropout and the head's start weights.", ge=0, le=(1 << 31) - 1
    )

    @functools.cached_property
    def corrections(self) -> Corrections | None:
        """What the file `relabel` says when it is first asked for; None without one.

        Raises:
            InputError: it cannot be read or understood.
        """
        return read_corrections(self.relabel) if self.relabel else None


class TrainConfig(DataOptions):
    """One training run; the options that are `deciding` are its identity."""

    backbone: Annotated[str, OneOf(tuple(BACKBONES))] = deciding(
        "resnet50v2", "The network whose last layer is replaced and trained.", group="Network"
    )
    weights: str = deciding(
        "imagenet",
        "Start weights of the backbone: imagenet (downloaded by Keras), random, or a .weights.h5, .h5 or .keras file.",
        path=True,
        names=NAMED_WEIGHTS,
    )
    image_size: int | None = deciding(
        None, "Height and width the network sees, in pixels.", absent="what the backbone was made for", ge=32
    )
    precision: Literal["auto", "float32", "bfloat16"] = deciding(
        "auto", "Arithmetic of the backbone; auto takes bfloat16 where the hardware computes in it, else float32."
    )

    engine: Literal["auto", "openvino", "tensorflow"] = deciding(
        "auto",
        "What runs the network where it is not trained: openvino or tensorflow; auto takes openvino on CPUs.",
    )

    trainable: str = deciding(
        "head",
        "How deep to train: head (the last layer), all, or the name of a part, to train the network from there on: "
        f"{trainable_help()}.",
        group="Training",
    )
    augment: Literal["none", "flip", "crops", "standard", "strong"] | None = deciding(
        None,
        "Varied views of the training photos: flip (mirrored), crops (also eight crops that stay the same, fewer if "
        "there are more than 10,000 photos), standard (random crop, flip, colour), strong (also RandAugment, erasing, "
        "mixup or cutmix). The last two need --trainable deeper than head, and decode photos in every epoch.",
        absent=f"none; {TAIL_AUGMENT} in the second phase",
    )
    epochs: int | None = deciding(
        None,
        "Passes over the training photos at most, in the last phase.",
        absent=f"{HEAD_EPOCHS} of the head, {TAIL_EPOCHS} when deeper",
        ge=1,
    )
    head_epochs: int = deciding(
        HEAD_EPOCHS, "Passes of the first phase at most, the head alone, if --trainable is deeper.", ge=1
    )
    batch_size: int = deciding(32, "Photos in one step, over all workers together.", ge=1)
    optimizer: Literal["adamw", "sgd"] = deciding("adamw", "The optimizer.")
    learning_rate: float = deciding(0.001, "Peak learning rate of the head; it really applies, see --schedule.", gt=0)
    tail_learning_rate: float = deciding(0.001, "Peak learning rate of what is trained in the second phase.", gt=0)
    layer_decay: float = deciding(
        0.8,
        "Layer-wise decay: each block further from the head learns at this fraction of the next one's rate.",
        gt=0,
        le=1,
    )
    schedule: Literal["cosine", "exponential", "constant"] = deciding(
        "cosine",
        "How the learning rate moves: cosine (warm-up, then down to 0), exponential (ML.NET's: x 0.94 every 2 epochs, "
        "in steps), or constant.",
    )
    warmup_epochs: float = deciding(1.0, "Epochs of linear warm-up (cosine and constant schedule).", ge=0)
    momentum: float = deciding(0.9, "Momentum of sgd.", ge=0, lt=1)
    weight_decay: float = deciding(0.01, "Decoupled weight decay of adamw.", ge=0)
    l2: float = deciding(0.0, "L2 penalty on the head's kernel, added to the loss.", ge=0)
    label_smoothing: float | None = deciding(
        None,
        "Part of each label spread over all classes, in both phases.",
        absent=f"0; {TAIL_SMOOTHING} in the second phase",
        ge=0,
        lt=1,
    )
    dropout: float = deciding(0.2, "Part of the features dropped in each training step.", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = deciding(
        "none", "balanced weighs each class by 1 / its number of training photos."
    )
    monitor: Literal["accuracy", "macro_accuracy", "log_loss"] | None = deciding(
        None,
        "Validation metric that chooses the best epoch and stops training.",
        absent="log_loss; accuracy in the second phase, at no worse log_loss than the head's",
    )
    patience: int = deciding(
        20, "Stop after this many epochs without a better monitored metric; 0 never stops early.", ge=0
    )
    min_delta: float = deciding(0.0, "An improvement smaller than this does not reset --patience.", ge=0)
    time_limit: Annotated[str, AfterValidator(_duration)] | None = deciding(
        None,
        "Time for the whole job, such as 90s, 5m or 1h30m: as many epochs as fit by the speed that is measured, the "
        "schedule with them. What comes before training takes as long as it takes, and one epoch is always trained.",
        required="a time such as 90s, 5m or 1h30m",
    )
    search: bool = deciding(
        False,
        "Try other learning rates, weight decays, dropouts and label smoothings first, one after the other, and take "
        "what validation photos say is best by --monitor: about nine trainings more, from the same cached features.",
    )
    folds: int | None = deciding(
        None,
        "Train so many times more from the cached features, each time with another part of the photos held out, for "
        "an accuracy with a spread; test photos stay out of it, and the model is the same.",
        ge=2,
    )

    device: Literal["auto", "cpu", "gpu"] = neutral(
        "auto",
        "What computes: cpu leaves GPUs alone, gpu ends where there is none, auto takes GPUs where there are any.",
        group="Machine",
    )
    workers: Annotated[str, AfterValidator(_number_of_workers)] = neutral(
        "auto",
        "Training processes, which share each batch: a number, or auto (one a GPU; without GPUs one a machine). One "
        "worker without several GPUs around it trains inside the job's own process. The result does not depend on it.",
        required="auto or a number from 1",
    )
    cpus_per_worker: int | None = neutral(
        None, "CPUs of each worker, and threads of TensorFlow in it.", absent="those of its machine, shared", ge=1
    )
    gpus_per_worker: float | None = neutral(None, "GPUs of each worker.", absent="1 if there are any", ge=0)
    wait_s: int = neutral(
        0,
        "Seconds to wait for machines that an autoscaler adds, where fewer --workers fit now than were asked for; it "
        "is asked to keep them until the run ends. In place of a lost one, another is waited for as long, but at least "
        "a minute; then as many workers go on as there is room for.",
        ge=0,
    )
    max_failures: int = neutral(
        3, "Lost workers after which training is given up; each time it goes on where it was.", ge=0
    )
    feature_actors: str = neutral(
        "auto",
        "Processes that run the frozen backbone: 0 is the job's own process, N a pool of Ray actors; auto takes the "
        "pool where there are several nodes or GPUs.",
        required="auto or a number",
        pattern="^(auto|[0-9]+)$",
    )
    cache_budget: float = neutral(
        20.0,
        "Gigabytes that cached outputs of the frozen part may take; photos are streamed through it beyond that.",
        ge=0,
    )
    auto_batch: bool = neutral(False, "Out of memory: take half as many photos at a time and go on, the result stays.")

    storage: NotEmpty = neutral(
        "runs",
        "Folder or URI of all runs; the feature cache lies beside them.",
        group="Run",
        required="a folder or a URI",
        path=True,
    )
    name: Annotated[str, AfterValidator(_folder_name)] | None = neutral(
        None,
        "Name of the run, a folder in the storage.",
        absent="made from the options",
        required="a plain folder name",
    )
    fresh: bool = neutral(False, "Delete an earlier run of this name and start over (the cache stays).")
    verbose: bool = neutral(False, "Show what Ray and TensorFlow log.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.trainable == "head" and self.augment in ("standard", "strong"):
            raise wrong(
                "augment",
                self.augment,
                "none, flip or crops while only the head is trained (its input is computed once a photo); or go deeper "
                "with --trainable",
            )
        if self.gpus_per_worker and self.device == "cpu":
            raise wrong("gpus_per_worker", self.gpus_per_worker, "none, or 0, beside --device cpu")
        if self.gpus_per_worker == 0 and self.device == "gpu":
            raise wrong("gpus_per_worker", self.gpus_per_worker, "none, or more than 0, beside --device gpu")
        return self

    @property
    def augmentation(self) -> str:
        """How training photos are varied in the last phase: `augment`, or what its absence means."""
        return self.augment or ("none" if self.trainable == "head" else TAIL_AUGMENT)

    @property
    def smoothing(self) -> float:
        """Label smoothing in the last phase: `label_smoothing`, or what its absence means."""
        absent = 0.0 if self.trainable == "head" else TAIL_SMOOTHING
        return absent if self.label_smoothing is None else self.label_smoothing

    @property
    def phase_epochs(self) -> dict[str, int]:
        """Passes of each phase at most, in their order: of the head, and of the tail if it goes deeper."""
        if self.trainable == "head":
            return {"head": self.epochs or HEAD_EPOCHS}
        return {"head": self.head_epochs, "tail": self.epochs or TAIL_EPOCHS}

    @property
    def limit_s(self) -> float | None:
        """`time_limit` in seconds."""
        return None if self.time_limit is None else float(seconds_of(self.time_limit))

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON has it: no option of where it is kept, where it runs and what is shown.

        Of corrections that is what they say, not what their file is called.

        Raises:
            InputError: the file of corrections cannot be read.
        """
        values = {name: getattr(self, name) for name, known in described(type(self)).items() if known.result}
        if (corrections := self.corrections) is not None:
            values["relabel"] = f"decisions {corrections.digest[:16]}"
        return dict(json.loads(json.dumps(values)))

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What keeps a run of these options from going on with one whose identity was `before`.

        An option that is new since then counts as its default, which therefore has to mean what was done without it.
        Of one that is no more `REMOVED` knows the value that changes nothing; any other stops the run, for nobody
        could tell whether the epochs still to come would be of the same training.
        """
        defaults = TrainConfig().identity()
        now, then = _meant(self.identity()), _meant({**defaults, **before})
        changed = [name for name in now if then[name] != now[name]]
        found = [f"{flag(name)} was {said(then[name])}, now {said(now[name])}" for name in changed]
        for name in sorted(before.keys() - described(TrainConfig).keys()):
            if name not in REMOVED or before[name] != REMOVED[name]:
                found.append(f"{flag(name)} was {said(before[name])}, now there is no such option")
        return found

    def run_name(self) -> str:
        """`name`, or one made from the data set, the backbone and a digest of what differs from the defaults.

        A new option leaves these names as they are. A default that changes does so as well; that the run of this name
        is another one then is seen by `differences`.
        """
        if self.name is not None:
            return self.name
        defaults = TrainConfig().identity()
        chosen = {name: value for name, value in self.identity().items() if value != defaults[name]}
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
        stem = storage.name(self.data).split(".")[0] or "data"
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem)
        return f"{plain[:40]}-{self.backbone}-{digest}"


class CheckOptions(DataOptions):
    """How photos are looked at before training."""

    page: NotEmpty = neutral(
        "check.html",
        "File or URI of the page to write.",
        group="Result",
        required="a file or a URI",
        path=True,
    )
    storage: NotEmpty = neutral(
        TrainConfig.model_fields["storage"].default,
        "Folder or URI of all runs, in which named sets are kept; it is none of the photos if it lies among them.",
        path=True,
    )
    verbose: bool = neutral(False, "Show what Ray logs.")


def _as_in_training(name: str) -> Any:
    return TrainConfig.model_fields[name]


class BulkOptions(OptionSet):
    """A bundle, and the machine that runs it on many photos."""

    bundle: NotEmpty = deciding(
        ...,
        "Run folder, bundle, or MODELS/NAME: its version that answers.",
        group="What",
        required="a run folder, a bundle or MODELS/NAME",
        path=True,
    )
    engine: Literal["auto", "openvino", "tensorflow"] = deciding(
        "auto", "What runs the network: openvino or tensorflow; auto takes openvino on CPUs.", group="Machine"
    )
    device: Literal["auto", "cpu", "gpu"] = _as_in_training("device")
    actors: str = neutral(
        "auto",
        "Processes that run the network: 0 is the job's own process, N a pool of Ray actors; auto takes the pool where "
        "there are several nodes or GPUs.",
        required="auto or a number",
        pattern="^(auto|[0-9]+)$",
    )
    max_pixels: int = deciding(MAX_PIXELS, "Refuse pictures of more pixels, before decoding them.", ge=1)
    storage: NotEmpty = neutral(
        TrainConfig.model_fields["storage"].default,
        "Folder or URI of all runs: archives are unpacked beside them; it is none of the photos if it lies among them.",
        path=True,
    )
    verbose: bool = neutral(False, "Show what Ray logs.")


class EvaluateOptions(BulkOptions):
    """On which photos a bundle is evaluated."""

    data: NotEmpty | None = deciding(
        None,
        "Labelled photos: a folder with one sub-folder a class, a manifest, an archive, or a URI of these.",
        group="Photos",
        absent="the run's own test photos",
        required="a folder, a manifest or an archive",
        path=True,
        names=_NAMED_SETS,
    )
    layout: Literal["auto", "classes", "split"] = _as_in_training("layout")
    root: str | None = _as_in_training("root")
    class_names: str | None = _as_in_training("class_names")
    relabel: NotEmpty | None = deciding(
        None,
        "A suspects.csv of jobs.suspects in which somebody decided: what it says of these photos counts.",
        required="a file",
        path=True,
    )
    allow_training_rows: bool = deciding(False, "Count photos too that the bundle was trained on.")
    baseline: str | None = deciding(
        None,
        "A run, a bundle or MODELS/NAME to compare with, photo by photo.",
        group="Result",
        path=True,
    )
    unknown: float | None = unknown_option(result=True)
    unknown_data: NotEmpty | None = deciding(
        None,
        "Photos of other things than the classes, however they lie in this folder: how many of them --unknown finds.",
        required="a folder, a photo, a manifest or an archive",
        path=True,
        names=_NAMED_SETS,
    )
    top: int = deciding(
        TOP,
        "Classes to name for each photo in predictions.parquet, all if there are fewer; and largest k of top-k "
        "accuracy.",
        ge=1,
    )
    out: NotEmpty | None = neutral(
        None,
        "Folder or URI to write to.",
        absent="evaluations/ in the folder of the run",
        required="a folder or a URI",
        path=True,
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unknown_data is not None and self.unknown is None:
            raise wrong("unknown_data", self.unknown_data, "also --unknown, which is to find these photos")
        return self


class PredictOptions(BulkOptions):
    """How photos are predicted."""

    data: NotEmpty = deciding(
        ...,
        "Photos: a folder, however they lie in it, a photo, a manifest with a column path, an archive, or a URI of "
        "these. Labels are not needed, and not looked at.",
        group="Photos",
        required="a folder, a photo, a manifest or an archive",
        path=True,
        names=_NAMED_SETS,
    )
    root: str | None = _as_in_training("root")
    out: NotEmpty = neutral(
        ...,
        "Folder or URI to write to.",
        group="Result",
        required="a folder or a URI",
        path=True,
    )
    format: Literal["parquet", "csv", "jsonl"] = deciding("parquet", "Form of the files in --out.")
    top: int = deciding(TOP, "Classes to name for each photo, the likeliest first; all if there are fewer.", ge=1)
    scores: bool = deciding(False, "Write the scores of all classes, too, in the order of `classes` in _config.json.")
    unknown: float | None = unknown_option(result=True)
    update: bool = neutral(
        False,
        "Predict the photos that were added since --out was complete, and look again at files that changed since, by "
        "their times, and at those with an error: their rows are replaced. Rows of files that are gone stay.",
    )
    part_photos: int = neutral(1000, "Files of --data in one file of --out; a killed job loses at most one.", ge=1)
    sort_into: str | None = neutral(
        None,
        "Copy each photo into a folder of its predicted class below this folder or URI.",
        group="Sorting",
        path=True,
    )
    link: bool = neutral(False, "Make symbolic links in --sort-into, not copies.")
    min_score: float | None = neutral(
        None, "Photos of lower scores go into unsure/ in --sort-into.", absent="none go there", ge=0, le=1
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sort_into is None and (self.link or self.min_score is not None):
            name = "link" if self.link else "min_score"
            raise wrong(name, getattr(self, name), "also --sort-into, as it says how photos are sorted there")
        if self.link and any(storage.is_remote(uri) for uri in (self.sort_into or "", self.data)):
            raise wrong("link", True, "photos and --sort-into on a disk; leave it out for a bucket")
        return self


class SuspectsOptions(OptionSet):
    """How many photos are suspected, and where they are listed."""

    count: int | None = neutral(
        None,
        "Photos to list, at most: those whose labels are the most doubtful.",
        group="Result",
        absent="twice as many as labels seem to be wrong",
        ge=1,
    )
    out: NotEmpty | None = neutral(
        None,
        "Folder or URI to write suspects.csv and suspects.html to; what was decided in a suspects.csv there stays.",
        absent="the folder of the run",
        required="a folder or a URI",
        path=True,
    )
    verbose: bool = neutral(False, "Show what Ray and TensorFlow log.")


class NextOptions(BulkOptions):
    """Which photos to label next."""

    data: NotEmpty = deciding(
        ...,
        "Photos without labels: a folder, however they lie in it, a manifest with a column path, an archive, or a URI "
        "of these. Labels are not looked at, and photos that the run knows are left out.",
        group="Photos",
        required="a folder, a manifest or an archive",
        path=True,
        names=_NAMED_SETS,
    )
    root: str | None = _as_in_training("root")
    count: int = deciding(100, "Photos to choose.", group="Result", ge=1)
    seed: int = deciding(0, "Seed of the choice.", ge=0, le=(1 << 31) - 1)
    out: NotEmpty = neutral(
        ...,
        "Folder or URI to write to: next.csv, and for Label Studio tasks.json and labels.xml.",
        required="a folder or a URI",
        path=True,
    )
    files_root: NotEmpty = neutral(
        "/",
        "Folder that Label Studio serves local files from (its LOCAL_FILES_DOCUMENT_ROOT).",
        required="a folder",
        path=True,
    )


class PackOptions(OptionSet):
    """Which photos are packed, and where."""

    data: NotEmpty = deciding(
        ...,
        "Photos, with or without labels: a folder, a manifest, an archive, shards, or a URI of these, as in training.",
        group="Photos",
        required="a folder, a manifest, an archive or a named set",
        path=True,
        names=_NAMED_SETS,
    )
    layout: Literal["auto", "classes", "split"] = _as_in_training("layout")
    root: str | None = _as_in_training("root")
    class_names: str | None = _as_in_training("class_names")
    out: NotEmpty = neutral(..., "Folder or URI of the pack.", group="Result", required="a folder or a URI", path=True)
    shard_mb: float = deciding(256.0, "Megabytes of photos in a shard, about.", gt=0, le=100_000)
    storage: NotEmpty = neutral(
        TrainConfig.model_fields["storage"].default,
        "Folder or URI of all runs: archives are unpacked beside them; it is none of the photos if it lies among them.",
        group="Machine",
        path=True,
    )
    verbose: bool = neutral(False, "Show what Ray logs.")


class CleanOptions(OptionSet):
    """What is cleaned away."""

    storage: NotEmpty = neutral(
        TrainConfig.model_fields["storage"].default,
        "Folder or URI of all runs, beside which the caches lie.",
        group="What",
        required="a folder or a URI",
        path=True,
    )
    older_than: str = neutral(
        "30d",
        "What was not used for so long may go: 45m, 12h, 30d, 8w; 0s is everything.",
        required="a number and one of s, m, h, d, w",
        pattern="^[0-9]{1,9}[smhdw]$",
    )
    max_size: float | None = neutral(
        None,
        "Gigabytes that may stay at most: what was not used for longest may go besides, until the rest fits.",
        absent="any size",
        ge=0,
    )
    delete: bool = neutral(False, "Remove what may go; without it, it is only shown.")

    @property
    def oldest_s(self) -> float:
        """`older_than` in seconds."""
        return float(seconds_of(self.older_than))


class DoctorOptions(OptionSet):
    """What a long run will need of the cluster."""

    storage: NotEmpty = neutral(
        TrainConfig.model_fields["storage"].default,
        "Folder or URI of all runs: every node has to be able to write there.",
        group="What the run will be given",
        required="a folder or a URI",
        path=True,
    )
    data: NotEmpty | None = neutral(
        None,
        "Photos that every node has to see, as in training.",
        absent="not looked at",
        required="a folder, a manifest or a named set",
        path=True,
        names=_NAMED_SETS,
    )
    layout: Literal["auto", "classes", "split"] = _as_in_training("layout")
    root: str | None = _as_in_training("root")
    class_names: str | None = _as_in_training("class_names")
    device: Literal["auto", "cpu", "gpu"] = _as_in_training("device")
    workers: Annotated[str, AfterValidator(_number_of_workers)] = _as_in_training("workers")
    cpus_per_worker: int | None = _as_in_training("cpus_per_worker")
    gpus_per_worker: float | None = _as_in_training("gpus_per_worker")
    batch_size: int = _as_in_training("batch_size")
    nodes: int | None = neutral(
        None,
        "Nodes that have to be there.",
        group="What is asked of the cluster",
        absent="as many as have joined and were not stopped",
        ge=1,
    )
    free_gb: float = neutral(10.0, "Gigabytes that have to be free on each disk of each node.", ge=0)
    limit_s: float = neutral(120.0, "A node that does not answer within this time is named, in seconds.", gt=0)
    out: str | None = neutral(
        None,
        "File or URI that what was found is written to as JSON too.",
        group="Result",
        absent="not written",
        path=True,
    )
    verbose: bool = neutral(False, "Show what Ray logs.")


class PublishOptions(OptionSet):
    """Where a bundle is published, how good it has to be, and what else is done to the versions there."""

    to: Annotated[str, AfterValidator(_model_folder)] = option(
        ...,
        "Folder or URI of the model, MODELS/NAME: its versions are MODELS/NAME/1/, 2/, ...",
        group="Where",
        required="MODELS/NAME, where NAME has letters, digits, '.', '_' and '-' and is no number",
        path=True,
    )
    min_accuracy: float | None = option(
        None,
        "Publish only if the accuracy on the run's test photos is at least this: the lower end of its 95 % interval.",
        group="Gate",
        ge=0,
        le=1,
    )
    not_worse_than: str | None = option(
        None,
        "Publish only if this run, bundle or MODELS/NAME (its version that answers) is not better on the run's test "
        "photos, which both classify: McNemar's exact test at 5 %.",
        path=True,
    )
    mlflow: str | None = option(
        None,
        "Tracking store of MLflow, http://HOST:5000 or sqlite:///FILE.db: the bundle and the run's report, options and "
        "metrics are logged there as well, as experiment and registered model NAME. Needs the extra `mlflow`.",
        group="Tracking",
    )
    list: bool = option(False, "List the versions.", group="Instead of publishing")
    rollback: bool = option(False, "Pin the version before the one that answers; a damaged one is passed over.")
    pin: int | None = option(None, "Let this version answer, whatever is published later.", ge=0)
    unpin: bool = option(False, "Let the newest version answer.")
    verbose: bool = option(False, "Show what libraries log.")

    @property
    def instead(self) -> tuple[str, ...]:
        """Names of the options given that ask for something else than publishing."""
        return tuple(name for name in ("list", "rollback", "pin", "unpin") if getattr(self, name) not in (None, False))


class ExportOptions(OptionSet):
    """What of which bundle is exported, where, and on which photos that is tried."""

    bundle: NotEmpty = option(
        ...,
        "Run folder, bundle, or MODELS/NAME: its version that answers.",
        group="Export",
        required="a run folder, a bundle or MODELS/NAME",
        path=True,
    )
    format: Literal["saved_model", "onnx", "openvino", "litert", "keras"] = option(..., "What to make of it.")
    to: NotEmpty = option(
        ...,
        "Folder or URI to make; only an earlier export is replaced.",
        required="a folder or a URI",
        path=True,
    )
    quantize: Literal["none", "float16", "int8"] = option(
        "none", "Smaller weights: float16 halves them, int8 quarters them (openvino and litert)."
    )
    layout: Literal["plain", "triton", "tensorflow-serving"] = option(
        "plain",
        "How the files lie: plain, or as the model --to of a model repository: for Triton (onnx, saved_model, "
        "openvino) or TensorFlow Serving (saved_model).",
    )
    photos: str | None = option(
        None,
        "Folder of photos to try the export on.",
        group="Photos",
        absent="test and validation photos of the run, or drawn pictures",
        path=True,
    )
    calibration: str | None = option(
        None,
        "Folder of photos by which int8 chooses its scales.",
        absent="training photos of the run",
        path=True,
    )
    min_agreement: float | None = option(
        None,
        "Export only if the top class of at least this part of the photos is the bundle's.",
        absent="1; 0.99 with float16, 0.95 with int8",
        ge=0,
        le=1,
    )
    verbose: bool = option(False, "Show what libraries log.")
