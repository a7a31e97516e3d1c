"""A training run from photos to a report, in the order in which the data flows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from rich.console import Console

from flowers import runs, storage
from flowers.cluster.placement import Node, check_storage, cluster_nodes, place
from flowers.cluster.session import background, import_tensorflow, ray_session
from flowers.config import TrainConfig
from flowers.data.ledger import Ledger, settle
from flowers.data.listing import Listing, list_photos, listing_of
from flowers.data.preflight import check_small_classes
from flowers.errors import InputError
from flowers.features.cache import FrozenPart, Target
from flowers.features.extraction import Frozen, Ingested, fill, ingest, open_caches
from flowers.model import backbones, cuts
from flowers.model.registry import BACKBONES
from flowers.outcome import describe, measure, save_best
from flowers.plan import Plan, choose_inputs
from flowers.progress import Stopwatch
from flowers.training import trainer
from flowers.training.contact_sheet import write_sheet
from flowers.training.progress import follow


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
    cut = cuts.cut_of(config.backbone, config.trainable)
    known = runs.read_split(config.split_file) if config.split_file else {}
    uri, finished = runs.open_run(config)
    if finished:
        out.print(f"The run {config.run_name()!r} is finished; --fresh starts it over.", highlight=False)
        return runs.read_report(uri)
    local = "~/.cache/flowers" if storage.is_remote(config.storage) else config.storage
    datasets = storage.join(storage.absolute(local), "datasets")
    listing = list_photos(config.data, datasets=datasets, per_class=config.per_class, seed=config.seed)
    check_small_classes(listing.table, config.max_pixels)
    out.print(_announcement(config, listing), highlight=False)
    tensorflow = background(functools.partial(import_tensorflow, _threads(config)), "import tensorflow")
    with ray_session(config.verbose):
        nodes = cluster_nodes()
        actors = _feature_actors(config, nodes)
        plan = _plan(config, uri, cut, nodes, actors)
        check_storage(uri)
        out.print(f"  compute   {plan.precision}: {plan.precision_reason}", highlight=False)
        maker = functools.partial(
            backbones.build_backbone, config.backbone, plan.weights, plan.image_size, plan.precision
        )
        network = background(lambda: (tensorflow.result(), maker())[1], "build the network").result
        plan = _with_inputs(plan, network, listing, out)
        caches = open_caches(plan, plan.targets, out)
        cold = not actors and min(len(cache.digests()) for cache in caches.values()) < listing.table.num_rows
        frozen = Frozen(_prepared(plan, network, cold), maker, actors, sum(int(node.gpus) for node in nodes))
        watch.lap("start")

        settled = functools.partial(
            settle, fractions=config.split, seed=config.seed, max_bad_fraction=config.max_bad_fraction, known=known
        )
        ingested = ingest(listing.table, plan, caches, frozen, settled, out)
        ledger = ingested.ledger
        if plan.validation_targets:
            photos = listing_of(ledger.side("validation"))
            fill(photos, plan, open_caches(plan, plan.validation_targets, out), frozen, out)
        watch.lap("read")
        watch.move(ingested.features_s, "read", "features")
        watch.move(ingested.waited_s, "read", "start")
        _say_what_was_found(ingested, out)
        _check_workers(plan, ledger)
        runs.begin(uri, config, ledger)
        if config.augment != "none":
            write_sheet(plan, ledger)

        say = functools.partial(out.print, highlight=False, markup=False)
        trainer.prepare(plan, say)
        with follow(uri, out, config.monitor):
            trainer.fit(plan, ledger.classes, say)
        watch.lap("train")

        saved = save_best(plan, ledger, network())
        watch.lap("save")
        tested = measure(plan, ledger, saved["bundle"], listing.source)
        watch.lap("evaluate")
        report = {"command": command, **describe(plan, listing, ingested, watch.report()), **saved, **tested}
        written = background(lambda: runs.write_report(uri, report), "write the report")  # while Ray ends
    return written.result()


def _announcement(config: TrainConfig, listing: Listing) -> str:
    files = f"{listing.table.num_rows} files of {listing.source}"
    if listing.drawn:
        files = f"{listing.table.num_rows} DRAWN pictures, not photos: made on the spot to try the whole way"
    weights = f"{config.weights} weights"
    if config.weights == "random":
        weights = "RANDOM weights: an untrained network, so the accuracy says little about real photos"
    return f"Run {config.run_name()}\n  data      {files}\n  network   {config.backbone}, {weights}"


def _threads(config: TrainConfig) -> int | None:
    """Threads of TensorFlow in this process, which trains in it if there is one worker."""
    return config.cpus_per_worker if config.workers in ("auto", "1") else None


def _plan(config: TrainConfig, uri: str, cut: str, nodes: list[Node], actors: int) -> Plan:
    placement = place(config.workers, config.cpus_per_worker, config.gpus_per_worker, config.batch_size, nodes)
    precision, reason = backbones.resolve_precision(config.precision, sum(int(node.gpus) for node in nodes))
    cpus = int(sum(node.cpus for node in nodes))
    return Plan(
        config=config,
        uri=uri,
        image_size=config.image_size or BACKBONES[config.backbone].image_size,
        weights=config.weights if config.weights in ("imagenet", "random") else storage.absolute(config.weights),
        start_weights=backbones.weights_key(config.backbone, config.weights),
        precision=precision,
        precision_reason=reason,
        # Where the network runs in this process it takes all CPUs: half of them, at Ray's low priority, feed it.
        readers=cpus if actors else max(1, cpus // 2),
        workers=placement.workers,
        nodes=len(nodes),
        worker_cpus=placement.cpus,
        worker_gpus=placement.gpus,
        cut=cut,
    )


def _with_inputs(plan: Plan, network: Callable[[], Any], listing: Listing, out: Console) -> Plan:
    """Decides whether the tail trains from cached outputs or from photos decoded again, and says so."""
    if plan.cut == cuts.POOL:
        return plan
    photo_bytes = cuts.output_bytes(network(), plan.config.backbone, plan.cut)
    streamed, validation, reason = choose_inputs(plan.config, plan.cut, photo_bytes, listing.table.num_rows)
    out.print(f"  training  {plan.config.trainable}: {reason}", highlight=False)
    return dataclasses.replace(plan, streamed=streamed, validation_streamed=validation)


def _prepared(plan: Plan, network: Callable[[], Any], cold: bool) -> Callable[[tuple[Target, ...]], FrozenPart]:
    """Starts tracing the frozen part in the background; returns the function that waits for it."""

    def build() -> FrozenPart:
        part = FrozenPart(network(), plan.config.backbone, plan.image_size, plan.targets)
        if cold:
            part.prepare()
        return part

    first = background(build, "trace the network")

    def part(targets: tuple[Target, ...]) -> FrozenPart:
        if targets == plan.targets:
            return first.result()
        return FrozenPart(network(), plan.config.backbone, plan.image_size, targets)

    return part


def _feature_actors(config: TrainConfig, nodes: list[Node]) -> int:
    """Actors that run the frozen network; 0 runs it in this process, which is faster on one machine without GPUs."""
    if config.feature_actors != "auto":
        return int(config.feature_actors)
    gpus = sum(int(node.gpus) for node in nodes)
    if gpus > 1 or (gpus and len(nodes) > 1):
        return gpus
    return len(nodes) if len(nodes) > 1 else 0


def _check_workers(plan: Plan, ledger: Ledger) -> None:
    """Refuses workers that would never see a photo, before any is started."""
    photos, share = ledger.counts().get("train", 0), plan.config.batch_size // plan.workers
    if photos <= (plan.workers - 1) * share:
        raise InputError(
            f"--workers: received {plan.workers} for {photos} training photos; with --batch-size "
            f"{plan.config.batch_size} each takes {share} of a step, so at most {-(-photos // share)} would have any; "
            "give fewer workers or a smaller batch"
        )
    if plan.config.augment == "strong" and share % 2:
        raise InputError(
            f"--batch-size: received {plan.config.batch_size} for {plan.workers} workers, required for --augment "
            "strong is an even number for each: it mixes photos in pairs"
        )


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
