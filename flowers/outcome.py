"""What a finished training leaves: the best bundle, its measured quality, and the report of the run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flowers import __version__, bundle, run, storage
from flowers.config import TrainConfig
from flowers.data import dataset
from flowers.data.ledger import Ledger
from flowers.data.sources import Listing, listing_of
from flowers.evaluation.evaluate import evaluate
from flowers.evaluation.metrics import Counts, summarize
from flowers.ingest import Ingested
from flowers.model import classifier
from flowers.predictor import Predictor
from flowers.training import trainer
from flowers.training.loop import load_sides

if TYPE_CHECKING:
    import ray.data

EXAMPLES = 5


@dataclass(frozen=True)
class Plan:
    """What the options came down to on this machine.

    Attributes:
        config: the options.
        uri: the run folder.
        cache: URI of the feature cache.
        image_size: height and width that the network sees, in pixels.
        start_weights: key of the backbone's start weights.
        precision: "float32" or "bfloat16".
        precision_reason: why.
        cpus: CPUs that read and decode.
    """

    config: TrainConfig
    uri: str
    cache: str
    image_size: int
    start_weights: str
    precision: str
    precision_reason: str
    cpus: int


def save_best(plan: Plan, ledger: Ledger, network: Any) -> dict[str, Any]:
    """Joins the frozen network and the head of the best epoch, measures it on the validation photos, and saves it.

    Args:
        plan: of the run.
        ledger: its photos.
        network: the frozen `keras.Model`.

    Returns:
        Parts of the report: validation, best_epoch, history, weights_sha256, bundle.
    """
    classes = ledger.classes
    trained, last = trainer.best_head(plan.uri)
    fitted, validation = load_sides(plan.uri, plan.cache, list(classes))
    mean, variance = classifier.standardization(fitted.features)
    head = classifier.build_head(mean, variance, len(classes), plan.config.dropout)
    for variable, value in zip(head.trainable_variables, trained, strict=True):
        variable.assign(value)
    counts = Counts.of(validation.labels, head.predict_on_batch(validation.features))
    measured = summarize(counts, classes)
    model = classifier.join(network, head)
    weights_sha256 = classifier.weights_sha256(model)
    uri = storage.join(plan.uri, "best")
    manifest = {
        "classes": list(classes),
        "image_size": plan.image_size,
        "backbone": plan.config.backbone,
        "precision": plan.precision,
        "start_weights": plan.start_weights,
        "weights_sha256": weights_sha256,
        "split_sha256": run.split_sha256(ledger),
        "epoch": last.state["best"],
        "validation": measured,
        "config": plan.config.identity(),
        "versions": versions(),
    }
    bundle.save_bundle(model, manifest, uri)
    return {
        "validation": measured,
        "best_epoch": last.state["best"],
        "history": last.state["history"],
        "weights_sha256": weights_sha256,
        "bundle": uri,
    }


def stream_test(plan: Plan, ledger: Ledger) -> ray.data.Dataset:
    """The test photos, to be read and decoded again."""
    return dataset.stream_pixels(
        listing_of(ledger.side("test")),
        size=plan.image_size,
        max_pixels=plan.config.max_pixels,
        known=dataset.digests_array([]),
        readers=max(1, plan.cpus // 2),
    )


def measure(plan: Plan, ledger: Ledger, uri: str, source: str) -> dict[str, Any]:
    """Loads the bundle at `uri` and measures it on the test photos, from their bytes.

    Args:
        plan: of the run.
        ledger: its photos.
        uri: the bundle.
        source: where the photos were listed; examples are named from there.

    Returns:
        Parts of the report: test, predictions.
    """
    predictor = Predictor(bundle.load_bundle(uri), plan.config.max_pixels)
    tables = dataset.tables(stream_test(plan, ledger)) if ledger.counts().get("test") else iter(())
    counts, examples = evaluate(tables, predictor, EXAMPLES)
    for example in examples:
        example["path"] = example["path"].removeprefix(source.rstrip("/") + "/")
    return {"test": summarize(counts, ledger.classes), "predictions": examples}


def describe(plan: Plan, listing: Listing, ingested: Ingested, timing: dict[str, float]) -> dict[str, Any]:
    """The parts of the report that say what was done, to which data, in which time."""
    ledger, config = ingested.ledger, plan.config
    counts, per_class = ledger.counts(), ledger.per_class()
    reading = timing["read"] + timing["features"]
    return {
        "schema": 1,
        "name": config.run_name(),
        "sample": listing.drawn,
        "data": {
            "source": listing.source,
            "listed": listing.listed,
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
        "monitor": config.monitor,
        "timing_s": timing,
        "images_per_s": {
            "read": round(ledger.table.num_rows / reading, 1) if reading else None,
            "features": round(ingested.computed / reading, 1) if ingested.computed and reading else None,
        },
        "features": {"hits": ingested.hits, "computed": ingested.computed, "cache": plan.cache},
        "backbone": config.backbone,
        "weights": config.weights,
        "image_size": plan.image_size,
        "precision": plan.precision,
        "precision_reason": plan.precision_reason,
        "seed": config.seed,
        "warnings": ledger.warnings(),
        "config": config.identity(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("ray", "tensorflow", "keras", "pyarrow", "numpy", "pillow")
    return {"flowers": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
