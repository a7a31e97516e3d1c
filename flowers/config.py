"""Every option of a training run, in one place: the dataclass is the command line's help and the saved config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from flowers.errors import InputError
from flowers.model.registry import BACKBONES, trainable_help

# Options that change where and how a run is computed, not what comes out: an unfinished run may go on with others.
_WHERE = (
    "storage",
    "name",
    "fresh",
    "verbose",
    "feature_actors",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "max_failures",
    "cache_budget",
    "auto_batch",
)
MONITORS = ("accuracy", "macro_accuracy", "log_loss")


def option(default: Any, help: str, choices: tuple[str, ...] = (), absent: str = "off") -> Any:
    """A field of `TrainConfig` that is also an option of the command line; `absent` words a default of nothing."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "absent": absent})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Checked when made: a wrong value raises `InputError` naming its option."""

    data: str = option(
        "sample",
        "Photos to train on: a folder with one sub-folder a class (local, or any URI pyarrow.fs opens, e.g. s3://), a "
        "manifest FILE.csv, .jsonl or .parquet with the columns path, label and optionally split, or a named set: "
        "sample (200 drawn pictures), flower_photos, flower_photos_small (downloaded once).",
    )
    per_class: int | None = option(None, "Take a seeded subset of at most this many files a class.", absent="all")
    split: tuple[float, float, float] = option(
        (0.7, 0.27, 0.03), "Fractions of each class for training, validation and test."
    )
    split_file: str | None = option(
        None,
        "A split.parquet of an earlier run: images known there keep their side, new ones are assigned.",
        absent="none",
    )
    max_bad_fraction: float = option(0.1, "Stop if more than this fraction of the files is unusable.")
    max_pixels: int = option(100_000_000, "Refuse pictures of more pixels, before decoding them.")

    backbone: str = option("resnet50v2", "The network whose last layer is replaced and trained.", tuple(BACKBONES))
    weights: str = option(
        "imagenet",
        "Start weights of the backbone: imagenet (downloaded by Keras), random, or a .weights.h5, .h5 or .keras file.",
    )
    image_size: int | None = option(
        None,
        "Height and width the network sees, in pixels.",
        absent="what the backbone was made for",
    )
    precision: str = option(
        "auto",
        "Arithmetic of the backbone; auto takes bfloat16 where the hardware computes in it, else float32.",
        ("auto", "float32", "bfloat16"),
    )

    trainable: str = option(
        "head",
        "How deep to train: head (the last layer), all, or the name of a part, to train the network from there on: "
        f"{trainable_help()}.",
    )
    augment: str = option(
        "none",
        "Varied views of the training photos: flip (mirrored), standard (random crop, flip, colour), strong (also "
        "RandAugment, erasing, mixup or cutmix). The last two need --trainable deeper than head.",
        ("none", "flip", "standard", "strong"),
    )
    cache_budget: float = option(
        20.0, "Gigabytes that cached outputs of the frozen part may take; photos are streamed through it beyond that."
    )

    epochs: int | None = option(
        None, "Passes over the training photos at most, in the last phase.", absent="60 of the head, 12 when deeper"
    )
    head_epochs: int = option(60, "Passes of the first phase at most, the head alone, if --trainable is deeper.")
    batch_size: int = option(32, "Photos in one step, over all workers together.")
    auto_batch: bool = option(False, "Out of memory: take half as many photos at a time and go on, the result stays.")
    optimizer: str = option("adamw", "The optimizer.", ("adamw", "sgd"))
    learning_rate: float = option(0.001, "Peak learning rate of the head; it really applies, see --schedule.")
    tail_learning_rate: float = option(0.001, "Peak learning rate of what is trained in the second phase.")
    layer_decay: float = option(
        0.8, "Layer-wise decay: each block further from the head learns at this fraction of the next one's rate."
    )
    schedule: str = option(
        "cosine",
        "How the learning rate moves: cosine (warm-up, then down to 0), exponential (ML.NET's: x 0.94 every 2 epochs, "
        "in steps), or constant.",
        ("cosine", "exponential", "constant"),
    )
    warmup_epochs: float = option(1.0, "Epochs of linear warm-up (cosine and constant schedule).")
    momentum: float = option(0.9, "Momentum of sgd.")
    weight_decay: float = option(0.01, "Decoupled weight decay of adamw.")
    l2: float = option(0.0, "L2 penalty on the head's kernel, added to the loss.")
    label_smoothing: float = option(0.0, "Part of each label spread over all classes, 0 to 1.")
    dropout: float = option(0.2, "Part of the features dropped in each training step, 0 to 1.")
    class_weights: str = option(
        "none",
        "balanced weighs each class by 1 / its number of training photos.",
        ("none", "balanced"),
    )
    monitor: str = option("log_loss", "Validation metric that chooses the best epoch and stops training.", MONITORS)
    patience: int = option(20, "Stop after this many epochs without a better monitored metric; 0 never stops early.")
    min_delta: float = option(0.0, "An improvement smaller than this does not reset --patience.")
    seed: int = option(0, "Seed of subset, split, shuffling, dropout and the head's start weights.")

    workers: str = option(
        "auto",
        "Training processes, which share each batch: a number, or auto (one a GPU; without GPUs one a machine). One "
        "worker without several GPUs around it trains inside the job's own process. The result does not depend on it.",
    )
    cpus_per_worker: int | None = option(
        None, "CPUs of each worker, and threads of TensorFlow in it.", absent="those of its machine, shared"
    )
    gpus_per_worker: float | None = option(None, "GPUs of each worker.", absent="1 if there are any")
    max_failures: int = option(3, "Lost workers after which training is given up; each time it goes on where it was.")
    feature_actors: str = option(
        "auto",
        "Processes that run the frozen backbone: 0 is the job's own process, N a pool of Ray actors; auto takes the "
        "pool where there are several nodes or GPUs.",
    )
    storage: str = option("runs", "Folder or URI of all runs; the feature cache lies beside them.")
    name: str | None = option(None, "Name of the run, a folder in the storage; by default made from the options.")
    fresh: bool = option(False, "Delete an earlier run of this name and start over (the cache stays).")
    verbose: bool = option(False, "Show what Ray and TensorFlow log.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            value = getattr(self, field.name)
            _require(not choices or value in choices, field.name, value, f"one of {', '.join(choices)}")
        object.__setattr__(self, "split", tuple(float(part) for part in self.split))
        ok = len(self.split) == 3 and all(0 <= part <= 1 for part in self.split)
        _require(
            ok and abs(sum(self.split) - 1) < 1e-6 and self.split[0] > 0 and self.split[1] > 0,
            "split",
            " ".join(map(str, self.split)),
            "three fractions that add up to 1, the first two above 0",
        )
        _require(bool(self.data), "data", self.data, "a folder, a manifest or a named set")
        _require(bool(self.storage), "storage", self.storage, "a folder or a URI")
        for name, least in (("per_class", 2), ("image_size", 32)):
            value = getattr(self, name)
            _require(value is None or value >= least, name, value, f"{least} or more")
        for name in ("epochs", "head_epochs", "batch_size", "cpus_per_worker", "max_pixels"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "1 or more")
        for name in ("warmup_epochs", "weight_decay", "l2", "patience", "min_delta", "cache_budget", "max_failures"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        _require(0 <= self.seed < 1 << 31, "seed", self.seed, f"0 to {(1 << 31) - 1}")
        for name in ("label_smoothing", "dropout", "momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", self.max_bad_fraction, "0 to 1")
        for name in ("learning_rate", "tail_learning_rate"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0")
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "above 0 and at most 1")
        _require(
            self.trainable != "head" or self.augment in ("none", "flip"),
            "augment",
            self.augment,
            "none or flip while only the head is trained (its input is computed once a photo); or go deeper with "
            "--trainable",
        )
        _require(
            self.feature_actors == "auto" or self.feature_actors.isdecimal(),
            "feature_actors",
            self.feature_actors,
            "auto or a number",
        )
        _require(
            ".." not in self.workers and ":" not in self.workers,
            "workers",
            self.workers,
            "one number: a number that changes during a run would change which photos share a step (the batch must "
            "divide by it), and each change restarts every worker; an unfinished run goes on with another --workers",
        )
        _require(
            self.workers == "auto" or (self.workers.isdecimal() and int(self.workers) >= 1),
            "workers",
            self.workers,
            "auto or a number from 1",
        )
        gpus = self.gpus_per_worker
        _require(gpus is None or 0 <= gpus < math.inf, "gpus_per_worker", gpus, "0 or more")
        if self.name is not None:
            ok = bool(self.name) and self.name not in (".", "..", "cache", "datasets")
            _require(ok and not set(self.name) & set("/\\\0"), "name", self.name, "a plain folder name")

    def identity(self) -> dict[str, Any]:
        """What decides the result: all options but where it is kept, where it runs and what is shown."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name not in _WHERE}

    def run_name(self) -> str:
        """`name`, or one made from the data set, the backbone and a digest of `identity()`."""
        if self.name is not None:
            return self.name
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        stem = self.data.rstrip("/").rsplit("/", 1)[-1].split(".")[0] or "data"
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem)
        return f"{plain[:40]}-{self.backbone}-{digest}"


def flag(name: str) -> str:
    """The command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")


def _require(ok: bool, name: str, received: object, required: str) -> None:
    if not ok:
        raise InputError(f"{flag(name)}: received {received!r}, required is {required}")
