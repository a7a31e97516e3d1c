"""The plan: what the options come down to on this machine, for these photos. Every decision is made here, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from flowers import storage
from flowers.cluster.placement import (
    Node,
    Placement,
    Pool,
    network_pool,
    on_device,
    place,
    pool_of_the_rest,
    reading_tasks,
)
from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.features.spec import FeatureSpec, hashes_key
from flowers.features.views import PLAIN, views_of
from flowers.model.registry import BACKBONES, POOL, cut_of
from flowers.model.weights import NAMED_WEIGHTS
from flowers.runs import Run
from flowers.text import several

# Seconds of the head's training for one photo in one epoch, and from the call of Ray Train until a group of workers has
# its first step: both measured on two cores (docs/decisions.md), and only compared with each other.
HEAD_PHOTO_S, GROUP_START_S = 2e-5, 15.0
# No more photos than this: one process holds the features of all of them, some kB each.
_HEAD_ALONE = 100_000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known before anything is decided.

    Attributes:
        nodes: machines of the cluster, as far as `--device` uses them.
        cpus: of the machine that the job's own process is on.
        photos: files that were listed.
        weights_key: key of the start weights (`flowers.model.weights.weights_key`).
        precision: the arithmetic of the network, and why (`flowers.model.precision.resolve_precision`).
        engine: what runs it, and why (`flowers.inference.engine.resolve_engine`).
        photo_bytes: size of one photo's output at the cut; nobody asks for it if only the head is trained.
    """

    nodes: tuple[Node, ...]
    cpus: int
    photos: int
    weights_key: str
    precision: tuple[str, str]
    engine: tuple[str, str]
    photo_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned run.

    Attributes:
        config: the options.
        run: its folder.
        image_size: height and width that the network sees, in pixels.
        weights: start weights of the backbone; a path is absolute, for workers start in other folders.
        start_weights: their key.
        precision: "float32" or "bfloat16".
        precision_reason: why.
        engine: that runs it, "openvino" or "tensorflow".
        readers: tasks that read and decode at once.
        workers: training processes.
        nodes: machines of the cluster.
        worker_cpus: CPUs, and threads of TensorFlow, of each worker.
        worker_gpus: GPUs of each worker.
        feature_actors: actors that run the frozen network; 0 runs it in the job's own process.
        feature_cpus: CPUs, and threads of the network, of each actor, or of this process.
        feature_gpus: GPUs of each actor.
        cut: layer after which training starts (`flowers.model.cuts`).
        streamed: whether training photos are decoded again each epoch and go through the whole network, because they
            are augmented or their cached outputs at the cut would be too large.
        validation_streamed: the same of the validation photos, which are never augmented.
        inputs_reason: why.
        photos: files that are listed; 0 if that is not known.
        head_alone: whether the job's own process trains the head, because it has done so before workers have started.
    """

    config: TrainConfig
    run: Run
    image_size: int
    weights: str
    start_weights: str
    precision: str
    precision_reason: str = ""
    engine: str = "openvino"
    readers: int = 1
    workers: int = 1
    nodes: int = 1
    worker_cpus: int = 1
    worker_gpus: float = 0.0
    feature_actors: int = 0
    feature_cpus: int = 1
    feature_gpus: float = 0.0
    cut: str = POOL
    streamed: bool = False
    validation_streamed: bool = False
    inputs_reason: str = ""
    photos: int = 0
    head_alone: bool = False

    @property
    def in_process(self) -> bool:
        """Whether the job's own process trains: on one machine a single worker elsewhere would only cost its start."""
        return self.workers == 1 and self.nodes == 1

    def alone(self) -> Plan:
        """The same run, trained by the job's own process."""
        return dataclasses.replace(self, workers=1, nodes=1)

    @property
    def views(self) -> tuple[str, ...]:
        """The views of a training photo that are cached."""
        return views_of(self.config.augmentation, self.photos)

    @property
    def head_views(self) -> tuple[str, ...]:
        """Those that the head is trained on: variations that nobody asked for are those of what is trained after it."""
        return (PLAIN,) if self.config.augment is None else self.views

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What the frozen part makes of every photo: the head's input and, if it is cached, the tail's."""
        wanted = (POOL,) if self.streamed or self.cut == POOL else (POOL, self.cut)
        return tuple(self.feature(cut, view) for view in self.views for cut in wanted)

    @property
    def validation_features(self) -> tuple[FeatureSpec, ...]:
        """What it makes of the validation photos besides."""
        return (self.feature(self.cut),) if self.streamed and not self.validation_streamed else ()

    def feature(self, cut: str, view: str = PLAIN) -> FeatureSpec:
        """The feature at a cut, of a view of the photos."""
        return FeatureSpec(
            cut=cut,
            view=view,
            backbone=self.config.backbone,
            weights=self.start_weights,
            image_size=self.image_size,
            precision=self.precision,
            engine=self.engine,
            max_pixels=self.config.max_pixels,
        )

    @property
    def networks(self) -> str:
        """URI of the converted networks; runs in one storage share them."""
        return storage.join(storage.absolute(self.config.storage), "cache", "networks")

    @property
    def hashes(self) -> str:
        """URI of the cache of perceptual hashes; runs in one storage share it."""
        return storage.join(storage.absolute(self.config.storage), "cache", "phash", hashes_key(self.image_size))

    @property
    def caches(self) -> list[str]:
        """URIs of all caches that the run uses."""
        return [*map(self.cache, (*self.features, *self.validation_features)), self.hashes, self.networks]

    def cache(self, feature: FeatureSpec) -> str:
        """URI of the cache of a feature; runs in one storage share it."""
        return storage.join(storage.absolute(self.config.storage), "cache", "features", feature.key)


def image_size(config: TrainConfig) -> int:
    """Height and width that the network sees: as asked, or what the backbone was made for."""
    return config.image_size or BACKBONES[config.backbone].image_size


def weights_of(config: TrainConfig) -> str:
    """Start weights of the backbone; a path is absolute, for workers start in other folders."""
    return config.weights if config.weights in NAMED_WEIGHTS else storage.absolute(config.weights)


def placed(config: TrainConfig, nodes: Sequence[Node]) -> Placement:
    """Where workers train; raises as `on_device` and `place` of `flowers.cluster.placement`."""
    usable = on_device(nodes, config.device)
    return place(config.workers, config.cpus_per_worker, config.gpus_per_worker, config.batch_size, usable)


def bundles(config: TrainConfig) -> list[dict[str, float]]:
    """What each worker needs at least, in Ray's words."""
    gpus = float(config.device == "gpu") if config.gpus_per_worker is None else config.gpus_per_worker
    one = {"CPU": float(config.cpus_per_worker or 1), "GPU": gpus}
    needed = {name: amount for name, amount in one.items() if amount}
    return [needed] * (1 if config.workers == "auto" else int(config.workers))


def make_plan(config: TrainConfig, facts: Facts) -> Plan:
    """Decides everything that the options leave open.

    Raises:
        InputError: options that do not fit the cluster, the backbone or each other.
    """
    placement = placed(config, facts.nodes)
    alone = config.workers in ("auto", "1")
    own_cpus = (config.cpus_per_worker if alone else None) or facts.cpus
    pool = network_pool(config.feature_actors, facts.nodes, own_cpus)
    cut = cut_of(config.backbone, config.trainable)
    streamed, validation_streamed, reason = choose_inputs(config, cut, facts.photo_bytes, facts.photos)
    precision, precision_reason = facts.precision
    return Plan(
        config=config,
        run=Run.of(config),
        image_size=image_size(config),
        weights=weights_of(config),
        start_weights=facts.weights_key,
        precision=precision,
        precision_reason=precision_reason,
        engine=facts.engine[0],
        readers=reading_tasks(facts.nodes, pool),
        workers=placement.workers,
        nodes=len(facts.nodes),
        worker_cpus=placement.cpus,
        worker_gpus=placement.gpus,
        feature_actors=pool.actors,
        feature_cpus=pool.cpus,
        feature_gpus=pool.gpus,
        cut=cut,
        streamed=streamed,
        validation_streamed=validation_streamed,
        inputs_reason=reason,
        photos=facts.photos,
        head_alone=_head_alone(config, placement.workers, len(facts.nodes), facts.photos),
    )


def after_loss(plan: Plan, nodes: Sequence[Node]) -> Plan:
    """The plan with features computed on the nodes that are left; nothing else changes, the result neither."""
    if not plan.feature_actors:
        return plan
    pool = pool_of_the_rest(Pool(plan.feature_actors, plan.feature_cpus, plan.feature_gpus), nodes)
    return dataclasses.replace(
        plan,
        feature_actors=pool.actors,
        feature_cpus=pool.cpus,
        feature_gpus=pool.gpus,
        readers=reading_tasks(nodes, pool),
    )


def fewer_workers(plan: Plan, nodes: Sequence[Node]) -> Plan | None:
    """The plan with as many of its workers as the nodes that are left have room for; None if for none.

    Global batches, and so the result, are the same for any number of them.
    """
    config = plan.config
    for count in range(plan.workers, 0, -1):
        with suppress(InputError):
            check_workers(dataclasses.replace(plan, workers=count), plan.workers)
            usable = on_device(nodes, config.device)
            found = place(str(count), config.cpus_per_worker, plan.worker_gpus, config.batch_size, usable)
            return dataclasses.replace(plan, workers=found.workers, nodes=len(nodes), worker_cpus=found.cpus)
    return None


def _head_alone(config: TrainConfig, workers: int, nodes: int, photos: int) -> bool:
    if workers == nodes == 1:
        return False  # nobody else trains at all
    return photos <= _HEAD_ALONE and photos * config.phase_epochs["head"] * HEAD_PHOTO_S < GROUP_START_S


def choose_inputs(config: TrainConfig, cut: str, photo_bytes: int, photos: int) -> tuple[bool, bool, str]:
    """Whether training and validation photos are streamed instead of cached at the cut, and why.

    Args:
        config: the options.
        cut: the cut, above which is trained.
        photo_bytes: size of one photo's output there.
        photos: number of photos, at most.
    """
    if cut == POOL:
        return False, False, ""
    budget = config.cache_budget * 1e9
    views = len(views_of(config.augmentation, photos))
    whole, validation = photos * views * photo_bytes, photos * config.split[1] * photo_bytes
    size = f"{photos} photos x {f'{views} views x ' if views > 1 else ''}{photo_bytes / 1e3:.0f} kB = {_gb(whole)}"
    limit = f"--cache-budget {config.cache_budget:g} GB"
    if config.augment in ("standard", "strong"):
        reason = f"photos are decoded again each epoch: --augment {config.augment} makes every view a new one"
        return True, validation > budget, reason
    if whole > budget:
        reason = f"photos are decoded again each epoch: {size} at {cut}, more than {limit}"
        return True, validation > budget, reason
    return False, False, f"the frozen part runs once a photo: {size} at {cut}, within {limit}"


def check_workers(plan: Plan, photos: int) -> None:
    """Refuses workers that would never see one of so many training photos, before any is started.

    Raises:
        InputError: it says how many workers would have photos.
    """
    config, per_worker = plan.config, plan.config.batch_size // plan.workers
    if photos < plan.workers:
        raise InputError(
            f"--workers: received {plan.workers} for {several(photos, 'training photo')}, so that some would "
            f"have none; give at most {photos}"
        )
    if config.augment == "strong" and per_worker % 2:
        raise InputError(
            f"--batch-size: received {config.batch_size} for {plan.workers} workers, required for --augment strong is "
            "an even number for each: it mixes photos in pairs"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
