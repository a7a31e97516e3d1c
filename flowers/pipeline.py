"""A training run from photos to a report, in the order in which the data flows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rich.console import Console

from flowers import run, storage
from flowers.config import TrainConfig
from flowers.data.ledger import Ledger, settle
from flowers.data.preflight import check_small_classes
from flowers.data.sources import Listing, list_photos
from flowers.errors import InputError
from flowers.ingest import Frozen, Ingested, ingest
from flowers.model import backbones
from flowers.model.features import FeatureCache, FrozenPart, cache_key
from flowers.outcome import Plan, describe, measure, save_best
from flowers.progress import Stopwatch
from flowers.session import background, cluster_shape, import_tensorflow, ray_session
from flowers.training import trainer
from flowers.training.watch import follow


def train(config: TrainConfig, out: Console, began: float, command: str = "") -> dict[str, Any]:
    """Runs a training job, goes on with it, or finds it finished.

    Args:
        config: what to do.
        out: where progress is printed.
        began: `time.time()` at the start of the process.
        command: how the job was called, for the report.

    Returns:
        The content of report.json; fresh from a run, its `predictions` have thumbnails.

    Raises:
        FlowersError: one line that says what is wrong.
    """
    watch = Stopwatch(began)
    backbones.check_weights(config.weights)
    known = run.read_split(config.split_file) if config.split_file else {}
    uri, finished = run.open_run(config)
    if finished:
        out.print(f"The run {config.run_name()!r} is finished; --fresh starts it over.", highlight=False)
        return run.read_report(uri)
    local = "~/.cache/flowers" if storage.is_remote(config.storage) else config.storage
    datasets = storage.join(storage.absolute(local), "datasets")
    listing = list_photos(config.data, datasets=datasets, per_class=config.per_class, seed=config.seed)
    check_small_classes(listing.table, config.max_pixels)
    out.print(_announcement(config, listing), highlight=False)
    tensorflow = background(import_tensorflow, "import tensorflow")
    with ray_session(config.verbose):
        nodes, cpus, gpus = cluster_shape()
        if config.workers > cpus:
            raise InputError(
                f"--workers: received {config.workers}, the cluster has {cpus} CPUs, one is required for each"
            )
        plan = _plan(config, uri, cpus, gpus)
        out.print(f"  compute   {plan.precision}: {plan.precision_reason}", highlight=False)
        cache = FeatureCache(plan.cache).open()
        for name in cache.damaged:
            out.print(f"[yellow]warning[/]: the cache part {name} was damaged; its photos are computed again")
        actors = _feature_actors(config, nodes, gpus)
        cold = not actors and len(cache.digests()) < listing.table.num_rows
        network = _network(plan, tensorflow, cold)
        watch.lap("start")

        frozen = Frozen(network, _maker(plan), actors, gpus)
        settled = functools.partial(
            settle, fractions=config.split, seed=config.seed, max_bad_fraction=config.max_bad_fraction, known=known
        )
        # Where the network runs in this process it takes all CPUs: half of them, at Ray's low priority, feed it.
        readers = cpus if actors else max(1, cpus // 2)
        ingested = ingest(listing, config, plan.image_size, readers, cache, frozen, settled, out)
        watch.lap("read")
        watch.move(ingested.features_s, "read", "features")
        watch.move(ingested.waited_s, "read", "start")
        _say_what_was_found(ingested, out)
        ledger = ingested.ledger
        run.begin(uri, config, ledger)

        with follow(uri, out, config.monitor):
            trainer.fit(config, uri, plan.cache, ledger.classes)
        watch.lap("train")

        saved = save_best(plan, ledger, network().model)
        watch.lap("save")
        tested = measure(plan, ledger, saved["bundle"], listing.source)
        watch.lap("evaluate")
        report = {"command": command, **describe(plan, listing, ingested, watch.report()), **saved, **tested}
        written = background(lambda: run.write_report(uri, report), "write the report")  # while Ray ends
    return written.result()


def _announcement(config: TrainConfig, listing: Listing) -> str:
    files = f"{listing.table.num_rows} files of {listing.source}"
    if listing.drawn:
        files = f"{listing.table.num_rows} DRAWN pictures, not photos: made on the spot to try the whole way"
    weights = f"{config.weights} weights"
    if config.weights == "random":
        weights = "RANDOM weights: an untrained network, so the accuracy says little about real photos"
    return f"Run {config.run_name()}\n  data      {files}\n  network   {config.backbone}, {weights}"


def _plan(config: TrainConfig, uri: str, cpus: int, gpus: int) -> Plan:
    image_size = config.image_size or backbones.REGISTRY[config.backbone].image_size
    weights = backbones.weights_key(config.backbone, config.weights)
    precision, reason = backbones.resolve_precision(config.precision, gpus)
    key = cache_key(
        backbone=config.backbone,
        weights=weights,
        image_size=image_size,
        precision=precision,
        max_pixels=config.max_pixels,
    )
    cache = storage.join(storage.absolute(config.storage), "cache", "features", key)
    return Plan(config, uri, cache, image_size, weights, precision, reason, cpus)


def _maker(plan: Plan) -> functools.partial[Any]:
    config = plan.config
    return functools.partial(backbones.build_backbone, config.backbone, config.weights, plan.image_size, plan.precision)


def _network(plan: Plan, tensorflow: Future[None], cold: bool) -> Callable[[], FrozenPart]:
    """Starts building the frozen network in the background; returns the function that waits for it."""

    def build() -> FrozenPart:
        tensorflow.result()
        frozen = FrozenPart(_maker(plan), plan.image_size)
        if cold:
            frozen.prepare()
        return frozen

    return background(build, "build the network").result


def _feature_actors(config: TrainConfig, nodes: int, gpus: int) -> int:
    """Actors that run the frozen network; 0 runs it in this process, which is faster on one machine without GPUs."""
    if config.feature_actors != "auto":
        return int(config.feature_actors)
    if gpus > 1 or (gpus and nodes > 1):
        return gpus
    return nodes if nodes > 1 else 0


def _say_what_was_found(ingested: Ingested, out: Console) -> None:
    ledger: Ledger = ingested.ledger
    counts, reasons = ledger.counts(), ledger.reasons()
    sides = " + ".join(f"{counts.get(side, 0)} {side}" for side in ("train", "validation", "test", "quarantined"))
    out.print(f"  files     {ledger.table.num_rows} found = {sides}", highlight=False)
    if reasons:
        text = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        out.print(f"            quarantined: {text}; each with its path in ledger.parquet", highlight=False)
    for text in ledger.warnings():
        out.print(f"[yellow]warning[/]: {text}", highlight=False)
    out.print(f"  features  {ingested.hits} from the cache, {ingested.computed} computed", highlight=False)
