"""Every option of a training run, in one place: the dataclass is the command line's help and the saved config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from flowers.errors import InputError

BACKBONES = (
    "resnet50v2",
    "resnet101v2",
    "resnet152v2",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenetv2",
    "inceptionv3",
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

    backbone: str = option("resnet50v2", "The network whose last layer is replaced and trained.", BACKBONES)
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

    epochs: int = option(60, "Passes over the training photos at most.")
    batch_size: int = option(32, "Photos in one step, over all workers together.")
    optimizer: str = option("adamw", "The optimizer.", ("adamw", "sgd"))
    learning_rate: float = option(0.001, "Peak learning rate; it really applies, see --schedule.")
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

    workers: int = option(
        1,
        "Training processes; 1 trains inside the job's own process. The batch is divided among them.",
    )
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
        for name in ("epochs", "batch_size", "workers", "max_pixels"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup_epochs", "weight_decay", "l2", "patience", "min_delta"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        _require(0 <= self.seed < 1 << 31, "seed", self.seed, f"0 to {(1 << 31) - 1}")
        for name in ("label_smoothing", "dropout", "momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", self.max_bad_fraction, "0 to 1")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0")
        _require(
            self.feature_actors == "auto" or self.feature_actors.isdecimal(),
            "feature_actors",
            self.feature_actors,
            "auto or a number",
        )
        _require(
            self.batch_size % self.workers == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of --workers ({self.workers}), so that every worker takes the same part",
        )
        if self.name is not None:
            ok = bool(self.name) and self.name not in (".", "..", "cache", "datasets")
            _require(ok and not set(self.name) & set("/\\\0"), "name", self.name, "a plain folder name")

    def identity(self) -> dict[str, Any]:
        """What decides the result: all options but where it is kept and what is shown."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("storage", "name", "fresh", "verbose", "feature_actors"):
            del values[name]
        return values

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
