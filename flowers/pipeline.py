"""A training run from photos to a report, in the order in which the data flows."""

from __future__ import annotations

import functools
import platform
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc
from rich.console import Console

from flowers import __version__, bundle, run, storage
from flowers.config import TrainConfig
from flowers.data import dataset
from flowers.data.ledger import Ledger, settle
from flowers.data.sources import LISTING, Listing, list_photos
from flowers.evaluation.evaluate import evaluate
from flowers.evaluation.metrics import Counts, summarize
from flowers.ingest import Frozen, Ingested, ingest
from flowers.model import backbones, classifier
from flowers.model.features import FeatureCache, FrozenPart, cache_key
from flowers.predictor import Predictor
from flowers.progress import Stopwatch
from flowers.session import background, cluster_shape, import_tensorflow, ray_session
from flowers.training import trainer
from flowers.training.loop import load_sides
from flowers.training.watch import follow

EXAMPLES = 5
# So few photos, with a class of so few, are all read before a network is built: the answer may be "not enough".
_SMALL_SET, _SMALL_CLASS = 256, 10


def train(config: TrainConfig, out: Console, began: float, command: str = "") -> dict[str, Any]:
    """Runs a training job, goes on with it, or finds it finished.

    Args:
        config: what to do.
        out: where progress is printed.
        began: `time.time()` at the start of the process.
        command: how the job was called, for the report.

    Returns:
        The content of report.json; `predictions` have thumbnails.

    Raises:
        FlowersError: one line that says what is wrong.
    """
    backbones.check_weights(config.weights)
    known = run.read_split(config.split_file) if config.split_file else {}
    uri, finished = run.open_run(config)
    if finished:
        out.print(f"The run {config.run_name()!r} is finished; --fresh starts it over.")
        return run.read_report(uri)
    local = "~/.cache/flowers" if storage.is_remote(config.storage) else config.storage
    datasets = storage.join(storage.absolute(local), "datasets")
    listing = list_photos(config.data, datasets=datasets, per_class=config.per_class, seed=config.seed)
    out.print(_what(config, listing), highlight=False)
    report = _Job(config, uri, listing, known, out, Stopwatch(began)).run()
    return run.write_report(uri, {**report, "command": command})


def _what(config: TrainConfig, listing: Listing) -> str:
    files = f"{listing.table.num_rows} files of {listing.source}"
    if listing.drawn:
        files = f"{listing.table.num_rows} DRAWN pictures, no photos: made on the spot to try the whole way"
    weights = f"{config.weights} weights"
    if config.weights == "random":
        weights = "RANDOM weights: an untrained network, so the accuracy says nothing about real photos"
    return f"Run {config.run_name()}\n  data      {files}\n  network   {config.backbone}, {weights}"


class _Job:
    """One run: its stages in order, and what they hand on."""

    def __init__(
        self, config: TrainConfig, uri: str, listing: Listing, known: dict[bytes, int], out: Console, watch: Stopwatch
    ) -> None:
        self.config, self.uri, self.listing, self.known = config, uri, listing, known
        self.out, self.watch = out, watch
        self.image_size = config.image_size or backbones.REGISTRY[config.backbone].image_size
        self.start_weights = backbones.weights_key(config.backbone, config.weights)

    def run(self) -> dict[str, Any]:
        """Goes through all stages; returns the report."""
        tensorflow = background(import_tensorflow, "import tensorflow")
        with ray_session(self.config.verbose):
            self.nodes, self.cpus, self.gpus = cluster_shape()
            self.precision, self.precision_reason = backbones.resolve_precision(self.config.precision, self.gpus)
            self.out.print(f"  compute   {self.precision}: {self.precision_reason}", highlight=False)
            self.cache = FeatureCache(self._cache_uri()).open()
            for name in self.cache.damaged:
                self.out.print(f"[yellow]warning[/]: the cache part {name} was damaged; its photos are computed again")
            self.frozen = self._frozen(tensorflow)
            self.watch.lap("start")
            ingested = self._ingest()
            self._train(ingested.ledger)
            found = self._evaluate(ingested.ledger)
        return self._report(ingested, found)

    def _frozen(self, tensorflow: Future[None]) -> Future[FrozenPart]:
        """The network, built in the background as soon as that is known to be of use."""
        cold = len(self.cache.digests()) < self.listing.table.num_rows and not self._actors()

        def build() -> FrozenPart:
            tensorflow.result()
            frozen = FrozenPart(self._make_backbone()(), self.image_size)
            if cold:
                frozen.warm_up()
            return frozen

        sizes = pc.value_counts(self.listing.table["label"].drop_null()).field("counts").to_pylist()
        self.hold = self.listing.table.num_rows <= _SMALL_SET and min(sizes) < _SMALL_CLASS
        if not self.hold:
            return background(build, "build the network")
        self._build_later = build
        return Future()

    def _network(self) -> FrozenPart:
        if self.hold and not self.frozen.done():
            self.frozen.set_result(self._build_later())
        return self.frozen.result()

    def _make_backbone(self) -> functools.partial[Any]:
        name, weights = self.config.backbone, self.config.weights
        return functools.partial(backbones.build_backbone, name, weights, self.image_size, self.precision)

    def _actors(self) -> int:
        if self.config.feature_actors != "auto":
            return int(self.config.feature_actors)
        if self.gpus > 1 or (self.gpus and self.nodes > 1):
            return self.gpus
        return self.nodes if self.nodes > 1 else 0

    def _cache_uri(self) -> str:
        key = cache_key(
            backbone=self.config.backbone,
            weights=self.start_weights,
            image_size=self.image_size,
            precision=self.precision,
        )
        return storage.join(storage.absolute(self.config.storage), "cache", "features", key)

    def _ingest(self) -> Ingested:
        config = self.config
        settled = functools.partial(
            settle,
            fractions=config.split,
            seed=config.seed,
            max_bad_fraction=config.max_bad_fraction,
            known=self.known,
        )
        frozen = Frozen(self._network, self._make_backbone(), self._actors(), self.gpus, self.hold)
        found = ingest(self.listing, config, self.image_size, self.cpus, self.cache, frozen, settled, self.out)
        self.watch.lap("read")
        self.watch.move(found.features_s, "read", "features")
        self.watch.move(found.waited_s, "read", "start")
        counts, ledger = found.ledger.counts(), found.ledger
        sides = " + ".join(f"{counts.get(side, 0)} {side}" for side in ("train", "validation", "test", "quarantined"))
        self.out.print(f"  files     {ledger.table.num_rows} found = {sides}", highlight=False)
        if ledger.reasons():
            reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.reasons().items())
            self.out.print(f"            quarantined: {reasons}; each with its path in ledger.parquet", highlight=False)
        for text in ledger.warnings():
            self.out.print(f"[yellow]warning[/]: {text}", highlight=False)
        self.out.print(f"  features  {found.hits} from the cache, {found.computed} computed", highlight=False)
        return found

    def _train(self, ledger: Ledger) -> None:
        run.write_tables(self.uri, ledger)
        with follow(self.uri, self.out, self.config.monitor):
            trainer.fit(self.config, self.uri, self.cache.uri, ledger.classes)
        self.watch.lap("train")

    def _evaluate(self, ledger: Ledger) -> dict[str, Any]:
        """Saves the best bundle, then measures it: validation from the cache, test from bytes through the bundle."""
        classes = ledger.classes
        test = ledger.side("test")
        listing = test.select(["path", "label"])
        for name in LISTING.names[2:]:
            listing = listing.append_column(name, dataset.nulls(test.num_rows))
        stream = dataset.stream_pixels(
            listing,
            size=self.image_size,
            max_pixels=self.config.max_pixels,
            known=dataset.digests_array([]),
            parallelism=self.cpus,
        )
        trained, last = trainer.best_head(self.uri)
        fitted, validation = load_sides(self.uri, self.cache.uri, list(classes))
        mean, variance = classifier.standardization(fitted.features)
        head = classifier.build_head(mean, variance, len(classes), self.config.dropout)
        for variable, value in zip(head.trainable_variables, trained, strict=True):
            variable.assign(value)
        probabilities = head(validation.features, training=False).numpy()
        measured = summarize(Counts.of(validation.labels, probabilities), classes)
        network = self._network().model
        model = classifier.join(network, head)
        manifest = {
            "classes": list(classes),
            "backbone": self.config.backbone,
            "image_size": self.image_size,
            "precision": self.precision,
            "start_weights": self.start_weights,
            "weights_sha256": classifier.weights_sha256(model),
            "config": self.config.identity(),
            "split_sha256": run.split_sha256(ledger),
            "epoch": last.state["best"],
            "validation": measured,
            "versions": versions(),
        }
        best = storage.join(self.uri, "best")
        bundle.save_bundle(model, manifest, best)
        self.watch.lap("save")
        predictor = Predictor(bundle.load_bundle(best), self.config.max_pixels)
        tables = dataset.tables(stream) if test.num_rows else iter(())
        counts, examples = evaluate(tables, predictor, EXAMPLES)
        if counts.n == 0:
            counts = Counts.zero(len(classes))
        self.watch.lap("evaluate")
        return {
            "validation": measured,
            "test": summarize(counts, classes),
            "predictions": examples,
            "best_epoch": last.state["best"],
            "history": last.state["history"],
            "weights_sha256": manifest["weights_sha256"],
            "bundle": best,
        }

    def _report(self, ingested: Ingested, found: dict[str, Any]) -> dict[str, Any]:
        ledger, config = ingested.ledger, self.config
        counts, per_class, timing = ledger.counts(), ledger.per_class(), self.watch.report()
        reading = timing["read"] + timing["features"]
        return {
            "schema": 1,
            "name": config.run_name(),
            "sample": self.listing.drawn,
            "data": {
                "source": self.listing.source,
                "listed": self.listing.listed,
                "found": ledger.table.num_rows,
                "used": ledger.used().num_rows,
                "quarantined": counts.get("quarantined", 0),
                "reasons": ledger.reasons(),
                "classes": list(ledger.classes),
                "per_class": {label: sum(sides.values()) for label, sides in per_class.items()},
            },
            "split": {
                **{side: counts.get(side, 0) for side in ("train", "validation", "test")},
                "per_class": per_class,
                "sha256": run.split_sha256(ledger),
            },
            **found,
            "monitor": config.monitor,
            "timing_s": timing,
            "images_per_s": {
                "read": round(ledger.table.num_rows / reading, 1) if reading else None,
                "features": round(ingested.computed / reading, 1) if ingested.computed and reading else None,
            },
            "features": {"hits": ingested.hits, "computed": ingested.computed, "cache": self.cache.uri},
            "backbone": config.backbone,
            "weights": config.weights,
            "image_size": self.image_size,
            "precision": self.precision,
            "precision_reason": self.precision_reason,
            "seed": config.seed,
            "warnings": ledger.warnings(),
            "config": config.identity(),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("ray", "keras", "pyarrow", "numpy", "pillow")
    return {"flowers": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
