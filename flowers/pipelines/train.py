"""Training: from photos to a report, in the order in which the data flows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from flowers import runs, storage
from flowers.cluster.placement import Node
from flowers.cluster.session import background, import_tensorflow, ray_session
from flowers.config import TrainConfig
from flowers.data import reading
from flowers.data.ledger import Ledger, settle
from flowers.data.listing import Listing, list_photos, listing_of
from flowers.data.preflight import check_small_classes
from flowers.data.split import SUBSETS
from flowers.evaluation.evaluate import evaluate_bundle
from flowers.features.extraction import (
    ActorPool,
    Backend,
    Caches,
    Extraction,
    InProcess,
    extract,
    fill,
    make_extractor,
    open_caches,
)
from flowers.features.spec import FeatureSpec
from flowers.model.precision import resolve_precision
from flowers.model.registry import POOL, cut_of
from flowers.model.weights import check_weights, weights_key
from flowers.plan import Facts, Plan, check_workers, gpu_count, image_size, make_plan, weights_of
from flowers.progress import Stopwatch, progress_bar
from flowers.report.build import build_report
from flowers.report.files import read_report, write_report
from flowers.report.record import Report
from flowers.runs import Run

if TYPE_CHECKING:
    import ray.data

    from flowers.features.extractor import FeatureExtractor
    from flowers.training.best import BestModel


def train(config: TrainConfig, out: Console, began: float, command: str = "") -> Report:
    """Runs a training job, goes on with it, or finds it finished.

    Args:
        config: what to do.
        out: where progress is printed.
        began: `time.time()` at the start of the process.
        command: how the job was called, for the report.

    Returns:
        The report of the run.

    Raises:
        FlowersError: one line that says what is wrong.
    """
    stopwatch, run = Stopwatch(began), Run.of(config)
    check_weights(config.weights)
    cut_of(config.backbone, config.trainable)
    known = runs.read_split(config.split_file) if config.split_file else {}
    run.open(config)
    if run.finished():
        out.print(f"The run {run.name!r} is finished; --fresh starts it over.", highlight=False)
        return read_report(run)
    listing = _list(config)
    out.print(_announcement(config, listing), highlight=False)
    tensorflow = background(functools.partial(import_tensorflow, _threads(config)), "import tensorflow").result
    with ray_session(config.verbose):
        from flowers.cluster.nodes import check_storage, cluster_nodes

        nodes = cluster_nodes()
        check_storage(run.uri)
        make_network, precision = _network(config, nodes, out)
        network = background(lambda: (tensorflow(), make_network())[1], "build the network").result
        plan = make_plan(config, _facts(config, listing, nodes, precision, network))
        if plan.inputs_reason:
            out.print(f"  training  {config.trainable}: {plan.inputs_reason}", highlight=False)
        backend, caches = _extraction(plan, make_network, network, listing, out)
        stopwatch.lap("start")

        photos = functools.partial(_decoded, plan)
        with progress_bar(out, "reading, decoding, features", listing.table.num_rows) as advance:
            extraction = extract(
                listing.table,
                photos,
                caches,
                backend,
                settle=functools.partial(
                    settle,
                    fractions=config.split,
                    seed=config.seed,
                    max_bad_fraction=config.max_bad_fraction,
                    known=known,
                ),
                max_bad_fraction=config.max_bad_fraction,
                advance=advance,
            )
        ledger = extraction.ledger
        if plan.validation_features:
            validation = listing_of(ledger.subset("validation"))
            with progress_bar(out, "validation photos", validation.num_rows) as advance:
                fill(validation, photos, _open(plan, plan.validation_features, out), backend, advance=advance)
        stopwatch.lap("read")
        stopwatch.move(extraction.features_s, "read", "features")
        stopwatch.move(extraction.waited_s, "read", "start")
        _say_what_was_found(extraction, out)
        check_workers(plan, ledger.counts().get("train", 0))
        run.begin(config, ledger)

        with run.running():
            best = _fit(plan, ledger, network, stopwatch, out)
            evaluation = evaluate_bundle(
                best.bundle, ledger, listing.source, max_pixels=config.max_pixels, readers=plan.readers
            )
            stopwatch.lap("evaluate")
            report = build_report(command, plan, listing, extraction, best, evaluation, stopwatch.report())
            write_report(run, report)
    return report


def _list(config: TrainConfig) -> Listing:
    """Lists the photos, and refuses what no split could be made of."""
    local = "~/.cache/flowers" if storage.is_remote(config.storage) else config.storage
    datasets = storage.join(storage.absolute(local), "datasets")
    listing = list_photos(config.data, datasets=datasets, per_class=config.per_class, seed=config.seed)
    check_small_classes(listing.table, config.max_pixels)
    return listing


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


def _network(config: TrainConfig, nodes: list[Node], out: Console) -> tuple[functools.partial[Any], tuple[str, str]]:
    """What builds the frozen network here and in actors, and its arithmetic with the reason."""
    precision, reason = resolve_precision(config.precision, gpu_count(nodes))
    out.print(f"  compute   {precision}: {reason}", highlight=False)
    build = functools.partial(build_network, config.backbone, weights_of(config), image_size(config), precision)
    return build, (precision, reason)


def build_network(backbone: str, weights: str, image_size: int, precision: str) -> Any:
    """See `flowers.model.backbones.build_backbone`, which imports TensorFlow: in a thread or an actor."""
    from flowers.model.backbones import build_backbone

    return build_backbone(backbone, weights, image_size, precision)


def _facts(
    config: TrainConfig, listing: Listing, nodes: list[Node], precision: tuple[str, str], network: Callable[[], Any]
) -> Facts:
    """What the plan is made from; waits for the network only if its output at the cut has to be measured."""
    cut, photo_bytes = cut_of(config.backbone, config.trainable), 0
    if cut != POOL:
        built = network()
        from flowers.model.cuts import output_bytes

        photo_bytes = output_bytes(built, config.backbone, cut)
    return Facts(
        nodes=tuple(nodes),
        photos=listing.table.num_rows,
        weights_key=weights_key(config.backbone, config.weights),
        precision=precision,
        photo_bytes=photo_bytes,
    )


def _extraction(
    plan: Plan, make_network: Callable[[], Any], network: Callable[[], Any], listing: Listing, out: Console
) -> tuple[Backend, Caches]:
    """Where features are computed, and their caches; the network is traced meanwhile if it will be needed."""
    caches = _open(plan, plan.features, out)
    if plan.feature_actors:
        return ActorPool(make_network, plan.feature_actors, plan.gpus), caches
    cold = min(len(cache.digests()) for cache in caches.values()) < listing.table.num_rows

    def build() -> FeatureExtractor:
        extractor = make_extractor(network(), plan.features)
        if cold:
            extractor.prepare()
        return extractor

    first = background(build, "trace the network").result

    def extractor(specs: tuple[FeatureSpec, ...]) -> FeatureExtractor:
        return first() if specs == plan.features else make_extractor(network(), specs)

    return InProcess(extractor), caches


def _open(plan: Plan, features: tuple[FeatureSpec, ...], out: Console) -> Caches:
    caches, damaged = open_caches(plan.cache, features)
    for name in damaged:
        out.print(f"[yellow]warning[/]: the cache part {name} was damaged; its photos are computed again")
    return caches


def _decoded(plan: Plan, listing: pa.Table, known: list[bytes]) -> ray.data.Dataset:
    """The photos of a listing as the network sees them; those whose digests are known are not decoded."""
    return reading.stream_pixels(
        listing,
        size=plan.image_size,
        max_pixels=plan.config.max_pixels,
        known=reading.digests_array(known),
        readers=plan.readers,
    )


def _fit(plan: Plan, ledger: Ledger, network: Callable[[], Any], stopwatch: Stopwatch, out: Console) -> BestModel:
    """Trains, and saves the model of the best epoch. What it imports runs on TensorFlow, which is there by now."""
    from flowers.training import trainer
    from flowers.training.best import save_best
    from flowers.training.contact_sheet import write_sheet
    from flowers.training.progress import follow

    config = plan.config
    if config.augment != "none":
        write_sheet(plan, ledger)
    say = functools.partial(out.print, highlight=False, markup=False)
    trainer.prepare(plan, say)
    with follow(plan.run, out, config.monitor):
        trainer.fit(plan, ledger.classes, say)
    stopwatch.lap("train")
    best = save_best(plan, ledger, network())
    stopwatch.lap("save")
    return best


def _say_what_was_found(extraction: Extraction, out: Console) -> None:
    ledger: Ledger = extraction.ledger
    counts, reasons = ledger.counts(), ledger.reasons()
    subsets = " + ".join(f"{counts.get(subset, 0)} {subset}" for subset in (*SUBSETS, "quarantined"))
    out.print(f"  files     {ledger.table.num_rows} found = {subsets}", highlight=False)
    if reasons:
        text = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        out.print(f"            quarantined: {text}; each with its path in ledger.parquet", highlight=False)
    for text in ledger.warnings():
        out.print(f"[yellow]warning[/]: {text}", highlight=False)
    out.print(f"  features  {extraction.hits} from the cache, {extraction.computed} computed", highlight=False)
