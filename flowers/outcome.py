"""What a finished training leaves: the best bundle, its measured quality, and the report of the run."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flowers import __version__, bundle, runs, storage
from flowers.data import reading
from flowers.data.ledger import Ledger
from flowers.data.listing import Listing, listing_of
from flowers.evaluation.evaluate import evaluate
from flowers.evaluation.metrics import Counts, summarize
from flowers.features.extraction import Extraction
from flowers.model import classifier, cuts
from flowers.plan import Plan
from flowers.predictor import Predictor
from flowers.report.html import render_html
from flowers.runs import Run
from flowers.training import trainer

if TYPE_CHECKING:
    import ray.data

EXAMPLES = 5


def save_best(plan: Plan, ledger: Ledger, network: Any) -> dict[str, Any]:
    """Gives the network the weights of the best epoch and saves it.

    Args:
        plan: of the run.
        ledger: its photos.
        network: what `flowers.model.backbones.build_backbone` returned, with its start weights.

    Returns:
        Parts of the report: validation (of that epoch), best_epoch, history, weights_sha256, bundle.
    """
    classes, backbone = ledger.classes, plan.config.backbone
    best, last = trainer.best(plan.run)
    arrays = best.arrays
    head = classifier.build_head(
        arrays["standardize:mean"], arrays["standardize:variance"], len(classes), plan.config.dropout
    )
    blocks = cuts.trained_variables(network, backbone, plan.cut) if "tail:0" in arrays else []
    tail = [variable for block in blocks for variable in block]
    for kind, variables in (("head", head.trainable_variables), ("tail", tail)):
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{kind}:{number}"])
    measured = summarize(Counts.from_vector(arrays["validation"], len(classes)), classes)
    model = classifier.join(network, head)
    weights_sha256 = classifier.weights_sha256(model)
    uri = plan.run.bundle
    manifest = {
        "classes": list(classes),
        "image_size": plan.image_size,
        "backbone": backbone,
        "precision": plan.precision,
        "start_weights": plan.start_weights,
        "weights_sha256": weights_sha256,
        "split_sha256": runs.split_sha256(ledger),
        "epoch": best.epoch,
        "validation": measured,
        "config": plan.config.identity(),
        "versions": versions(),
    }
    bundle.save_bundle(model, manifest, uri)
    return {
        "validation": measured,
        "best_epoch": best.epoch,
        "history": last.state["lines"],
        "weights_sha256": weights_sha256,
        "bundle": uri,
    }


def stream_test(plan: Plan, ledger: Ledger) -> ray.data.Dataset:
    """The test photos, to be read and decoded again."""
    return reading.stream_pixels(
        listing_of(ledger.subset("test")),
        size=plan.image_size,
        max_pixels=plan.config.max_pixels,
        known=reading.digests_array([]),
        readers=plan.readers,
    )


def measure(plan: Plan, ledger: Ledger, source: str) -> dict[str, Any]:
    """Loads the bundle and measures it on the test photos, from their bytes.

    Args:
        plan: of the run.
        ledger: its photos.
        source: where the photos were listed; examples are named from there.

    Returns:
        Parts of the report: test, predictions.
    """
    predictor = Predictor(bundle.load_bundle(plan.run.bundle), plan.config.max_pixels)
    tables = reading.tables(stream_test(plan, ledger)) if ledger.counts().get("test") else iter(())
    counts, examples = evaluate(tables, predictor, EXAMPLES)
    for example in examples:
        example["path"] = storage.relative(example["path"], source)
    return {"test": summarize(counts, ledger.classes), "predictions": examples}


def describe(plan: Plan, listing: Listing, extraction: Extraction, timing: dict[str, float]) -> dict[str, Any]:
    """The parts of the report that say what was done, to which data, in which time."""
    ledger, config = extraction.ledger, plan.config
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
            "sha256": runs.split_sha256(ledger),
        },
        "monitor": config.monitor,
        "timing_s": timing,
        "images_per_s": {
            "read": round(ledger.table.num_rows / reading, 1) if reading else None,
            "features": round(extraction.computed / reading, 1) if extraction.computed and reading else None,
        },
        "features": {"hits": extraction.hits, "computed": extraction.computed, "cache": plan.cache(plan.features[0])},
        "trainable": config.trainable,
        "augment": config.augment,
        "cut": plan.cut,
        "streamed": plan.streamed,
        "workers": plan.workers,
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


def write_report(run: Run, report: dict[str, Any]) -> dict[str, Any]:
    """Writes report.html and, last, report.json, which marks the run as finished; returns the whole report."""
    report = {"created": runs.now(), **report}
    storage.write(run.page, render_html(report).encode())
    plain = [{name: row[name] for name in row if name != "thumbnail"} for row in report["predictions"]]
    storage.write(run.report, json.dumps({**report, "predictions": plain}, indent=2).encode())
    return report


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("ray", "tensorflow", "keras", "pyarrow", "numpy", "pillow")
    return {"flowers": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
