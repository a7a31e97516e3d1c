"""What the options came down to on this machine, for these photos: every later part works from it."""

from __future__ import annotations

from dataclasses import dataclass

from flowers import storage
from flowers.config import TrainConfig
from flowers.features.cache import FLIP, PLAIN, Target, cache_key
from flowers.model.cuts import POOL


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned run.

    Attributes:
        config: the options.
        uri: the run folder.
        image_size: height and width that the network sees, in pixels.
        weights: start weights of the backbone; a path is absolute, for workers start in other folders.
        start_weights: their key.
        precision: "float32" or "bfloat16".
        precision_reason: why.
        readers: tasks that read and decode at once.
        workers: training processes.
        nodes: machines of the cluster.
        worker_cpus: CPUs, and threads of TensorFlow, of each worker.
        worker_gpus: GPUs of each worker.
        cut: layer after which training starts (`flowers.model.cuts`).
        streamed: whether training photos are decoded again each epoch and go through the whole network, because they
            are augmented or their cached outputs at the cut would be too large.
        validation_streamed: the same of the validation photos, which are never augmented.
    """

    config: TrainConfig
    uri: str
    image_size: int
    weights: str
    start_weights: str
    precision: str
    precision_reason: str = ""
    readers: int = 1
    workers: int = 1
    nodes: int = 1
    worker_cpus: int = 1
    worker_gpus: float = 0.0
    cut: str = POOL
    streamed: bool = False
    validation_streamed: bool = False

    @property
    def in_process(self) -> bool:
        """Whether the job's own process trains: on one machine a single worker elsewhere would only cost its start."""
        return self.workers == 1 and self.nodes == 1

    @property
    def views(self) -> tuple[str, ...]:
        """The views of a training photo that are cached."""
        return (PLAIN, FLIP) if self.config.augment == "flip" else (PLAIN,)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the frozen part makes of every photo: the head's input and, if it is cached, the tail's."""
        cuts = (POOL,) if self.streamed or self.cut == POOL else (POOL, self.cut)
        return tuple(Target(cut, view) for view in self.views for cut in cuts)

    @property
    def validation_targets(self) -> tuple[Target, ...]:
        """What it makes of the validation photos besides."""
        return (Target(self.cut),) if self.streamed and not self.validation_streamed else ()

    def cache(self, target: Target) -> str:
        """URI of the feature cache of a target."""
        key = cache_key(
            backbone=self.config.backbone,
            weights=self.start_weights,
            image_size=self.image_size,
            precision=self.precision,
            max_pixels=self.config.max_pixels,
            cut=target.cut,
            view=target.view,
        )
        return storage.join(storage.absolute(self.config.storage), "cache", "features", key)


def choose_inputs(config: TrainConfig, cut: str, photo_bytes: int, photos: int) -> tuple[bool, bool, str]:
    """Whether training and validation photos are streamed instead of cached at the cut, and why.

    Args:
        config: the options.
        cut: the cut, above which is trained.
        photo_bytes: size of one photo's output there.
        photos: number of photos, at most.
    """
    budget = config.cache_budget * 1e9
    views = 2 if config.augment == "flip" else 1
    whole, validation = photos * views * photo_bytes, photos * config.split[1] * photo_bytes
    size = f"{photos} photos x {f'{views} views x ' if views > 1 else ''}{photo_bytes / 1e3:.0f} kB = {_gb(whole)}"
    if config.augment in ("standard", "strong"):
        reason = f"photos are decoded again each epoch: --augment {config.augment} makes every view a new one"
        return True, validation > budget, reason
    if whole > budget:
        return (
            True,
            validation > budget,
            f"photos are decoded again each epoch: {size} at {cut}, more than {_limit(config)}",
        )
    return False, False, f"the frozen part runs once a photo: {size} at {cut}, within {_limit(config)}"


def _limit(config: TrainConfig) -> str:
    return f"--cache-budget {config.cache_budget:g} GB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
