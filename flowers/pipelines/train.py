"""Training: from photos to a report, in the order in which the data flows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from flowers import runs, storage
from flowers.bundle import MANIFEST, load_bundle
from flowers.cluster.access import joined
from flowers.cluster.placement import Node, gpu_count, on_device
from flowers.cluster.placement import in_words as nodes_in_words
from flowers.cluster.session import background, import_tensorflow, ray_session
from flowers.config import UNKNOWN, TrainConfig
from flowers.data import reading
from flowers.data.corrections import in_words
from flowers.data.folds import fold_splits
from flowers.data.ledger import Ledger, settle
from flowers.data.listing import Listing, listing_of, some
from flowers.data.split import SUBSETS
from flowers.errors import DamagedFile, FlowersError, InputError, ProcessLost
from flowers.evaluation.evaluate import evaluate_bundle
from flowers.features.cache import FeatureCache
from flowers.features.extraction import (
    ActorPool,
    Backend,
    Caches,
    Extraction,
    InProcess,
    extract,
    fill,
    open_caches,
)
from flowers.features.extractor import FeatureExtractor, cuts_of
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FeatureSpec
from flowers.inference.engine import resolve_engine, usable_cpus
from flowers.model.precision import resolve_precision
from flowers.model.registry import POOL, cut_of
from flowers.model.weights import NAMED_WEIGHTS, check_weights, weights_key
from flowers.pipelines.fit import budget_of, cross_validate, fit, search
from flowers.pipelines.source import list_source
from flowers.plan import (
    Facts,
    Plan,
    after_loss,
    bundles,
    check_workers,
    image_size,
    make_plan,
    placed,
    weights_of,
)
from flowers.predictor import Predictor
from flowers.progress import Stopwatch, progress_bar, warn
from flowers.report.build import build_report
from flowers.report.files import read_report, write_report
from flowers.report.record import Report
from flowers.runs import Run
from flowers.text import plain, several
from flowers.training.search import Trial

if TYPE_CHECKING:
    import ray.data


def train(config: TrainConfig, out: Console, began: float, command: str = "") -> Report:
    """Runs a training job, goes on with it, or finds it finished.

    Args:
        config: what to do.
        out: where progress is printed.
        began: `time.monotonic()` at the start of the process.
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
    if not config.fresh and (report := finished(run, config, out)) is not None:
        return report
    with run.held(), storage.enough_space(run.uri):
        if not config.fresh:
            run.open(config)
        return _train(config, run, known, out, stopwatch, command)


def finished(run: Run, config: TrainConfig, out: Console) -> Report | None:
    """The report of a run that has all it should leave; what is damaged is made again from what is whole."""
    if not run.finished() or not storage.exists(run.config):
        return None
    run.compare(config)
    try:
        report = read_report(run)
        if not storage.exists(storage.join(run.bundle, MANIFEST)):
            raise DamagedFile(f"there is no bundle at {run.bundle}")
        with suppress(InputError):  # of another version of this program, but whole
            load_bundle(run.bundle)
    except DamagedFile as error:
        warn(f"{error}; it is made again", out)
        return None
    out.print(f"The run {run.name!r} is finished; --fresh starts it over.", highlight=False)
    if text := _came_or_went(run, config):
        warn(text, out)
    return report


def _came_or_went(run: Run, config: TrainConfig) -> str:
    """What is listed now and was not when a finished run read it, and the other way round; nothing if all is the same.

    What is in the files is not looked at.
    """
    try:
        before = set(runs.read_ledger(run)["path"].to_pylist())
        found = set(list_source(config, config.storage).table["path"].to_pylist())
    except FlowersError:  # its photos have gone: what the run found stays
        return ""
    if before == found:
        return ""
    return (
        f"--data has {several(len(found - before), 'file')} that the run did not read, and {len(before - found)} of "
        "its files have gone; to train on what is there now choose another --name, with --split-file "
        f"{run.split} for the same test photos"
    )


def _train(
    config: TrainConfig, run: Run, known: dict[bytes, int], out: Console, stopwatch: Stopwatch, command: str
) -> Report:
    """Trains a run whose folder is held, and open unless --fresh is to delete it; see `train`."""
    listing = list_source(config, config.storage)
    if config.fresh:  # what can be refused before anything is read is, by now
        run.open(config)
    known = known | run.assigned()
    out.print(_announcement(config, listing), highlight=False, markup=False)
    for text in listing.warnings:
        warn(text, out)
    tensorflow = background(functools.partial(import_tensorflow, _threads(config)), "import tensorflow").result
    with ray_session(config.verbose, config.device), ExitStack() as held:
        from flowers.cluster.nodes import asked_for, check_files, check_storage

        fits = functools.partial(placed, config)
        nodes = held.enter_context(asked_for(bundles(config), fits, config.wait_s, functools.partial(_wait, out)))
        check_storage(run.uri)
        check_files("--data", some(listing.table))
        if config.weights not in NAMED_WEIGHTS:
            check_files("--weights", [config.weights])
        facts = facts_of(config, listing, nodes)
        out.print(_device(facts, config.device), highlight=False)
        build = functools.partial(
            build_network, config.backbone, weights_of(config), image_size(config), facts.precision[0]
        )
        network = background(lambda: (tensorflow(), build())[1], "build the network").result
        plan = make_plan(config, _measured(facts, config, network))
        if plan.inputs_reason:
            out.print(f"  training  {config.trainable}: {plan.inputs_reason}", highlight=False)
        if plan.head_alone:
            said = "this process trains the head by itself, which is done before workers have started"
            out.print(f"  workers   {plan.workers}; {said}", highlight=False)
        run.use([listing.source, *plan.caches])
        settled = functools.partial(
            settle,
            fractions=config.split,
            seed=config.seed,
            max_bad_fraction=config.max_bad_fraction,
            known=known,
            near=config.near_duplicates,
            corrections=config.corrections,
        )
        held.enter_context(run.running())
        extraction = _extracted(plan, build, network, listing, settled, stopwatch, out)
        ledger = extraction.ledger
        stopwatch.lap("read")
        stopwatch.move(extraction.features_s, "read", "features")
        stopwatch.move(extraction.waited_s, "read", "start")
        _say_what_was_found(extraction, listing.source, out)
        check_workers(plan, ledger.counts().get("train", 0))
        splits = fold_splits(ledger, config.folds, config.seed) if config.folds else []
        run.begin(config, ledger)
        budget = budget_of(plan, ledger, stopwatch, out)

        asked, trials = plan, list[Trial]()
        if config.search:
            plan, trials = search(plan, ledger, budget, stopwatch, out)
        best = fit(plan, ledger, network, budget, stopwatch, out)
        saved = load_bundle(best.bundle)
        unknown = max(UNKNOWN, saved.typicality().least)  # few validation photos say nothing of rare ones
        predictor = Predictor(saved, config.max_pixels, engine=plan.engine, threads=_threads(config), unknown=unknown)
        evaluation = evaluate_bundle(predictor, ledger, listing.source, readers=plan.readers)
        stopwatch.lap("evaluate")
        folds = cross_validate(plan, ledger, splits, best, stopwatch, out) if splits else []
        report = build_report(command, asked, listing, extraction, best, evaluation, stopwatch.report(), folds, trials)
        write_report(run, report)
    return report


def _extracted(
    plan: Plan,
    build: Callable[[], Any],
    network: Callable[[], Any],
    listing: Listing,
    settled: Callable[[pa.Table], Ledger],
    stopwatch: Stopwatch,
    out: Console,
) -> Extraction:
    """Every file settled, and the features of all photos in the caches, whatever nodes are lost meanwhile.

    What is in a cache by then is not computed again.
    """
    from flowers.cluster.nodes import alive_ids, nodes_left

    photos, losses = functools.partial(decoded_photos, plan), 0
    while True:
        backend, caches = extraction_of(plan, build, network, listing, out)
        stopwatch.lap("start")
        before = alive_ids()
        try:
            with progress_bar(out, "reading, decoding, features", listing.table.num_rows) as advance:
                extraction = extract(
                    listing.table,
                    photos,
                    caches,
                    backend,
                    hashes=_hashes(plan, out),
                    settle=settled,
                    max_bad_fraction=plan.config.max_bad_fraction,
                    advance=advance,
                )
            if plan.validation_features:
                validation = listing_of(extraction.ledger.subset("validation"))
                with progress_bar(out, "validation photos", validation.num_rows) as advance:
                    fill(validation, photos, _open(plan, plan.validation_features, out), backend, advance=advance)
            return extraction
        except ProcessLost as error:
            losses += 1
            if losses > reading.LOSSES:
                raise
            stopwatch.lap("read")
            plan = after_loss(plan, nodes_left(before))
            photos = functools.partial(decoded_photos, plan)
            warn(f"{error}; goes on with the nodes that are left and the features that are there", out)


def _announcement(config: TrainConfig, listing: Listing) -> str:
    said = [f"{several(listing.table.num_rows, 'file')} of {listing.source}", *listing.notes]
    files = "\n            ".join(map(plain, said))
    if listing.drawn:
        files = f"{listing.table.num_rows} DRAWN pictures, not photos: made on the spot to try the whole way"
    weights = f"{config.weights} weights"
    if config.weights == "random":
        weights = "RANDOM weights: an untrained network, so the accuracy says little about real photos"
    cluster = f"\n  cluster   joins {plain(address)} (RAY_ADDRESS)" if (address := joined()) else ""
    return f"Run {config.run_name()}\n  data      {files}\n  network   {config.backbone}, {weights}{cluster}"


def _wait(out: Console, text: str) -> None:
    out.print(f"  cluster   {plain(text)}", highlight=False, markup=False)


def _threads(config: TrainConfig) -> int | None:
    """Threads of TensorFlow in this process, which trains in it if there is one worker."""
    return config.cpus_per_worker if config.workers in ("auto", "1") else None


def build_network(backbone: str, weights: str, image_size: int, precision: str) -> Any:
    """See `flowers.model.backbones.build_backbone`, which imports TensorFlow: in a thread or an actor."""
    from flowers.model.backbones import build_backbone

    return build_backbone(backbone, weights, image_size, precision)


def facts_of(config: TrainConfig, listing: Listing, nodes: list[Node]) -> Facts:
    """What the plan is made from, as far as nothing has to be measured for it."""
    usable = on_device(nodes, config.device)
    gpus = gpu_count(usable)
    return Facts(
        nodes=tuple(usable),
        cpus=usable_cpus(),
        photos=listing.table.num_rows,
        weights_key=weights_key(config.backbone, config.weights),
        precision=resolve_precision(config.precision, gpus),
        engine=resolve_engine(config.engine, gpus),
    )


def _device(facts: Facts, device: str) -> str:
    """A line on what computes, the arithmetic and the engine."""
    (precision, why), (engine, reason) = facts.precision, facts.engine
    return f"  device    {nodes_in_words(facts.nodes, device)}; {precision}: {why}; {engine}: {reason}"


def _measured(facts: Facts, config: TrainConfig, network: Callable[[], Any]) -> Facts:
    """Waits for the network if its output at the cut has to be measured."""
    cut = cut_of(config.backbone, config.trainable)
    if cut == POOL:
        return facts
    built = network()
    from flowers.model.cuts import output_bytes

    return dataclasses.replace(facts, photo_bytes=output_bytes(built, config.backbone, cut))


def extraction_of(
    plan: Plan, build: Callable[[], Any], network: Callable[[], Any], listing: Listing, out: Console
) -> tuple[Backend, Caches]:
    """Where features are computed, and their caches; the network is compiled meanwhile if it will be needed."""
    caches = _open(plan, plan.features, out)
    frozen = FrozenNetwork(
        folder=plan.networks,
        backbone=plan.config.backbone,
        weights=plan.start_weights,
        image_size=plan.image_size,
        precision=plan.precision,
        engine_name=plan.engine,
        build=build,
    )
    if plan.feature_actors:
        for specs in filter(None, (plan.features, plan.validation_features)):
            frozen.prepare(cuts_of(specs), network)
        return ActorPool(frozen, plan.feature_actors, plan.feature_cpus, plan.feature_gpus), caches

    @functools.cache
    def compiled(specs: tuple[FeatureSpec, ...]) -> FeatureExtractor:
        frozen.prepare(cuts_of(specs), network)
        return FeatureExtractor(frozen, specs, plan.feature_cpus)

    cold = min(len(cache.digests()) for cache in caches.values()) < listing.table.num_rows
    first = background(functools.partial(compiled, plan.features), "compile the network").result if cold else None

    def extractor(specs: tuple[FeatureSpec, ...]) -> FeatureExtractor:
        return first() if first and specs == plan.features else compiled(specs)

    return InProcess(extractor), caches


def _hashes(plan: Plan, out: Console) -> FeatureCache | None:
    """The cache of perceptual hashes, where they are asked for."""
    if plan.config.near_duplicates == "keep":
        return None
    cache = FeatureCache(plan.hashes).open()
    _warn_of(cache.damaged, out)
    return cache


def _warn_of(damaged: list[str], out: Console) -> None:
    for name in damaged:
        warn(f"the cache part {name} was damaged; its photos are computed again", out)


def _open(plan: Plan, features: tuple[FeatureSpec, ...], out: Console) -> Caches:
    caches, damaged = open_caches(plan.cache, features)
    _warn_of(damaged, out)
    return caches


def decoded_photos(plan: Plan, listing: pa.Table, known: list[bytes]) -> ray.data.Dataset:
    """The photos of a listing as the network sees them; those whose digests are known are not decoded."""
    return reading.stream_pixels(
        listing,
        size=plan.image_size,
        max_pixels=plan.config.max_pixels,
        known=reading.digests_array(known),
        readers=plan.readers,
        num_cpus=reading.BESIDE_ACTORS if plan.feature_actors and not plan.feature_gpus else 1,
    )


def _say_what_was_found(extraction: Extraction, source: str, out: Console) -> None:
    ledger: Ledger = extraction.ledger
    counts, reasons = ledger.counts(), ledger.reasons()
    subsets = " + ".join(f"{counts.get(subset, 0)} {subset}" for subset in (*SUBSETS, "quarantined"))
    out.print(f"  files     {ledger.table.num_rows} found = {subsets}", highlight=False)
    if reasons:
        text = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        out.print(f"            quarantined: {text}; each with its path in ledger.parquet", highlight=False)
    if decided := in_words(ledger.decisions()):
        out.print(f"  labels    --relabel: {decided}", highlight=False)
    if near := ledger.near_duplicates():
        example = plain(" and ".join(storage.relative(path, source) for path in near[0][:2]))
        count = sum(map(len, near))
        out.print(
            f"            near-duplicates: {several(count, 'photo')} in {several(len(near), 'group')}, each on one "
            f"side; e.g. {example}",
            highlight=False,
            markup=False,
        )
    for text in ledger.warnings():
        warn(text, out)
    out.print(f"  features  {extraction.hits} from the cache, {extraction.computed} computed", highlight=False)
