"""The model of the best epoch: taken out of its checkpoint, joined with the backbone, saved as a bundle."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers import __version__, bundle, runs
from flowers.data.ledger import Ledger
from flowers.evaluation.metrics import Counts, Summary, summarize
from flowers.model import classifier, cuts
from flowers.plan import Plan
from flowers.training import trainer
from flowers.training.pace import Pace
from flowers.training.usual import typicality_of

_NO_LIMIT = Pace()


@dataclass(frozen=True)
class BestModel:
    """The saved model of a run.

    Attributes:
        bundle: URI of the bundle.
        weights_sha256: hash of its weights.
        epoch: that they are of.
        validation: metrics of that epoch.
        history: a line of metrics for every epoch of the run, as in metrics.jsonl.
        versions: of what the result depends on.
        precision: that the bundle is computed in.
        pace: what the training was given, if there is a time limit, and the epochs that it came to.
        spent_s: seconds of it that the training took.
    """

    bundle: str
    weights_sha256: str
    epoch: int
    validation: Summary
    history: list[dict[str, Any]]
    versions: dict[str, str]
    precision: str
    pace: Pace = _NO_LIMIT
    spent_s: float = 0.0


def save_best(plan: Plan, ledger: Ledger, network: Any, photos: npt.NDArray[np.uint8]) -> BestModel:
    """Gives the network the weights of the best epoch and saves it.

    Args:
        plan: of the run.
        ledger: its photos.
        network: what `flowers.model.backbones.build_backbone` returned, with its start weights.
        photos: uint8 [n, size, size, 3], on which what is saved is compared with what was trained.

    Raises:
        FlowersError: they differ (`flowers.bundle.save_bundle`).
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
    model = classifier.join(network, head)
    saved = BestModel(
        bundle=plan.run.bundle,
        weights_sha256=classifier.weights_sha256(model),
        epoch=best.epoch,
        validation=summarize(Counts.from_vector(arrays["validation"], len(classes)), classes),
        history=last.state["lines"],
        versions=_versions(),
        precision=plan.precision,
        pace=Pace(last.state.get("budget_s"), last.state.get("planned", {})),
        spent_s=last.state.get("spent_s", 0.0),
    )
    manifest = {
        "classes": list(classes),
        "image_size": plan.image_size,
        "backbone": backbone,
        "precision": plan.precision,
        "start_weights": plan.start_weights,
        "weights_sha256": saved.weights_sha256,
        "split_sha256": runs.split_sha256(ledger),
        "epoch": saved.epoch,
        "validation": saved.validation.to_json(),
        "config": plan.config.identity(),
        "versions": saved.versions,
    }
    usual = typicality_of(plan, list(classes), network, head, bool(tail))
    precision = bundle.save_bundle(model, manifest, saved.bundle, photos, usual)
    return dataclasses.replace(saved, precision=precision)


def _versions() -> dict[str, str]:
    names = ("ray", "tensorflow", "keras", "openvino", "pyarrow", "numpy", "pillow")
    return {"flowers": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
