"""The record: its JSON form stays, it reads what earlier and later versions write, and it is built of a run's parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from flowers.config import TrainConfig
from flowers.data.ledger import ROW, settle
from flowers.data.listing import LISTING, Listing
from flowers.data.near_duplicates import BYTES
from flowers.errors import DamagedFile, InputError
from flowers.evaluation.evaluate import Evaluation
from flowers.evaluation.examples import ClassScore, Example
from flowers.evaluation.metrics import Counts, summarize
from flowers.evaluation.unknown import Unknown
from flowers.features.extraction import Extraction
from flowers.plan import Plan
from flowers.report.build import build_report
from flowers.report.files import read_report, write_report
from flowers.report.record import Report
from flowers.runs import Run
from flowers.training.best import BestModel
from flowers.training.inner import FoldCounts
from flowers.training.pace import Pace
from flowers.training.search import Trial

FOLDED = ("accuracy", "macro_accuracy", "log_loss")


def metric(value: float | None, n: int, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "n": n, "low": low, "high": high}


def class_metrics(n: int) -> dict[str, Any]:
    share = metric(0.5, 2, 0.1, 0.9)
    return {"n": n, "precision": share, "recall": metric(None, 0), "f1": share, "log_loss": metric(0.25, 1)}


def scores(n: int) -> dict[str, Any]:
    share = metric(0.5, n, 0.1, 0.9)
    return {
        "n": n, "accuracy": share, "macro_accuracy": share, "macro_f1": share, "log_loss": metric(0.25, 1),
        "log_loss_reduction": metric(None, n), "top_k": {"2": metric(1.0, n, 0.5, 1.0)},
        "per_class": {"daisy": class_metrics(2), "roses": class_metrics(1), "tulips": class_metrics(0)},
        "classes": ["daisy", "roses", "tulips"], "confusion_matrix": [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
        "most_confused": [{"true": "daisy", "predicted": "roses", "count": 1}],
    }  # fmt: skip


def written() -> dict[str, Any]:
    """A report.json as version 0.1.0 wrote it, the numbers rounded."""
    return {
        "created": "2026-11-25T18:17:05+00:00", "command": "python -m jobs.train --data photos", "schema": 1,
        "name": "one", "sample": False,
        "data": {
            "source": "/photos", "listed": 9, "found": 9, "used": 8, "quarantined": 1, "reasons": {"empty": 1},
            "classes": ["daisy", "roses", "tulips"], "per_class": {"daisy": 4, "roses": 3, "tulips": 1},
            "notes": ["a split on disk"], "near_duplicates": 2, "near_groups": 1, "near_examples": [["a.jpg", "b.jpg"]],
            "left_out": [
                {
                    "name": "empty", "meaning": "no bytes", "files": 1,
                    "shown": [{"path": "daisy/0.jpg", "note": "no bytes"}],
                }
            ],
            "near": {
                "name": "near-duplicates", "meaning": "the same picture", "files": 2,
                "shown": [{"path": "a.jpg", "note": "group 1: train"}],
            },
            "decisions": {"relabel": 2, "keep": 1},
        },
        "split": {
            "train": 4, "validation": 3, "test": 1,
            "per_class": {
                "daisy": {"train": 2, "validation": 2, "test": 0}, "roses": {"train": 1, "validation": 1, "test": 1},
                "tulips": {"train": 1, "validation": 0, "test": 0},
            },
            "sha256": "b0fd",
        },
        "monitor": "log_loss",
        "timing_s": {
            "total": 45.81, "start": 32.49, "read": 0.3, "features": 7.53, "search": 0.0,
            "train": 1.88, "save": 0.68, "evaluate": 2.93,
            "folds": 9.5,
        },
        "images_per_s": {"read": 12.8, "features": None},
        "features": {"hits": 0, "computed": 8, "cache": "/runs/cache/features/7485"},
        "trainable": "head", "augment": "none", "cut": "pool", "streamed": False, "workers": 1,
        "backbone": "mobilenetv2", "weights": "imagenet", "image_size": 224, "precision": "float32",
        "precision_reason": "the CPU has neither avx512_bf16 nor amx_bf16", "seed": 0,
        "warnings": ["no test photo of: daisy"],
        "config": {"data": "photos", "split": [0.7, 0.27, 0.03], "per_class": None, "epochs": 5},
        "versions": {"flowers": "0.1.0", "keras": "3.15.1"},
        "validation": scores(3), "best_epoch": 1,
        "history": [
            {
                "epoch": 1, "phase": "head", "loss": 1.58, "val_accuracy": 0.5, "val_macro_accuracy": 0.5,
                "val_log_loss": 0.25, "learning_rate": 0.00075, "seconds": 1.479,
            }
        ],
        "phases": [{"name": "head", "epochs": 1, "val_accuracy": 0.5, "val_log_loss": 0.25, "kept": True}],
        "advice": "",
        "weights_sha256": "1e4c", "bundle": "/runs/one/best", "test": scores(1),
        "predictions": [shown()],
        "calibration": {
            "bins": [{"low": 0.0, "high": 1.0, "n": 1, "score": 0.75, "accuracy": 1.0}], "error": 0.25,
            "temperature": None, "fitted_on": 0, "why_not": "", "bins_after": [], "error_after": None,
            "log_loss_after": None,
        },
        "slices": [
            {"name": "class", "slices": [{"value": "roses", "accuracy": metric(1.0, 1, 0.2, 1.0)}], "more": 0}
        ],
        "galleries": [
            {"name": "Least certain right answers", "meaning": "right", "n": 1, "above": 0, "photos": [shown()]}
        ],
        "cells": [{"true": "roses", "predicted": "roses", "n": 1, "photos": [shown()]}],
        "cross_validation": {
            "folds": [
                {
                    "train": 3, "validation": 2, "held_out": 2, "best_epoch": 7, "accuracy": 0.5,
                    "macro_accuracy": 0.5, "log_loss": 0.7,
                }
            ],
            **{name: {"mean": 0.5, "sd": 0.1, "low": 0.4, "high": 0.6} for name in FOLDED}, "held_out": scores(7),
        },
        "search": [
            {"options": {"dropout": 0.5}, "best_epoch": 3, "val_accuracy": 0.5, "val_log_loss": 0.7, "chosen": True}
        ],
        "time_limit": {
            "limit": 60.0, "training": 12.5, "used": 11.0, "phases": [{"name": "head", "most": 60, "fit": 9}],
        },
        "unknown": {
            "allowed": 0.05, "rejected": metric(0.5, 2, 0.1, 0.9), "accuracy": metric(1.0, 1, 0.2, 1.0),
            "detected": {"drawings": metric(0.5, 2, 0.1, 0.9)},
        },
    }  # fmt: skip


def shown() -> dict[str, Any]:
    return {
        "path": "roses/1.jpg", "label": "roses", "predicted": "roses", "score": 0.75, "label_score": 0.75,
        "top": [{"label": "roses", "score": 0.75}, {"label": "daisy", "score": 0.25}],
    }  # fmt: skip


def test_the_json_form_is_kept_to_the_byte() -> None:
    text = json.dumps(written(), indent=2)
    report = Report.from_json(text)
    assert report.to_json() == text
    assert Report.from_json(report.to_json()) == report
    assert report.test.top_k[2].value == 1
    assert report.history[0].monitored(report.monitor) == 0.25


def test_what_the_first_version_did_not_write_may_be_absent() -> None:
    earlier = written()
    for key in (
        *("trainable", "augment", "cut", "streamed", "workers", "phases", "advice"),
        *("calibration", "slices", "galleries", "cells", "cross_validation", "time_limit", "unknown"),
    ):
        del earlier[key]
    for key in ("notes", "near_duplicates", "near_groups", "near_examples", "left_out", "near", "decisions"):
        del earlier["data"][key]
    del earlier["timing_s"]["folds"], earlier["timing_s"]["search"]
    del earlier["history"][0]["phase"]
    del earlier["predictions"][0]["label_score"]
    report = Report.from_json(json.dumps(earlier))
    assert (report.data.notes, report.data.near_duplicates) == ([], 0)
    assert (report.trainable, report.augment, report.workers, report.history[0].phase) == ("head", "none", 1, None)


def test_what_later_versions_add_is_ignored() -> None:
    later = written()
    for part in (later, later["data"], later["test"], later["test"]["accuracy"], later["predictions"][0]):
        part["new"] = {"a": 1}
    assert Report.from_json(json.dumps(later)).to_json() == json.dumps(written(), indent=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no JSON"),
        ("\xff", "it is no JSON"),
        ("[]", "Input should be"),
        ("{}", "created: Field required"),
        (json.dumps(written() | {"schema": 2}), "schema: Input should be 1"),
        (
            json.dumps(written() | {"features": {"hits": 0, "computed": 8, "key": "x"}}),
            "features.cache: Field required",
        ),
    ],
)
def test_a_damaged_report(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile, match=rf"report\.json is damaged \({says}") as caught:
        read_report(Run(str(tmp_path)))
    assert len(str(caught.value).splitlines()) == 1


def test_no_report(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in ("missing", "file"):
        with pytest.raises(InputError, match=rf"there is no finished run at '.*{place}': report.json is missing"):
            read_report(Run(str(tmp_path / place)))


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    report = Report.from_json(json.dumps(written() | {"command": "--data \udcff"}))
    write_report(Run(str(tmp_path)), report)
    assert read_report(Run(str(tmp_path))) == report


def build(tmp_path: Path, **seconds: float) -> Report:
    rows: list[dict[str, Any]] = [
        {"path": f"/photos/{label}/{n}.jpg", "label": label, "sha256": hashlib.sha256(f"{label}{n}".encode()).digest()}
        for label in ("daisy", "roses")
        for n in range(20)
    ]
    rows[0]["phash"] = rows[1]["phash"] = rows[0]["sha256"][:BYTES]  # the same picture
    table = pa.Table.from_pylist([*rows, {**rows[0], "path": "/photos/daisy/copy.jpg"}], schema=ROW)
    config = TrainConfig(storage=str(tmp_path), name="one", data="/photos", weights="random", time_limit="1m")
    plan = Plan(
        config=config, run=Run(str(tmp_path / "one")), image_size=64, weights="random", start_weights="random-0",
        precision="float32", precision_reason="of a test",
    )  # fmt: skip
    ledger = settle(table, config.split, config.seed, config.max_bad_fraction, near="group")
    line = written()["history"][0]
    measured = summarize(Counts.of([0, 1], [[0.75, 0.25], [0.75, 0.25]]), ledger.classes)
    known = Report.from_json(json.dumps(written()))
    looked = {name: getattr(known, name) for name in ("calibration", "slices", "galleries", "cells")}
    example = Example(
        path="roses/1.jpg", label="roses", predicted="daisy", score=0.75, label_score=0.25,
        thumbnail="data:image/jpeg;base64,x",
        top=[ClassScore(label="daisy", score=0.75), ClassScore(label="roses", score=0.25)],
    )  # fmt: skip
    return build_report(
        command="python -m jobs.train",
        plan=plan,
        listing=Listing("/photos", table.select(LISTING.names), listed=50),
        extraction=Extraction(ledger, hits=10, computed=30, features_s=6.0, waited_s=1.0),
        best=BestModel(
            str(tmp_path / "one" / "best"), "ab", 1, measured, [line], {"flowers": "0.1.0"}, "float32", Pace(9.0)
        ),
        evaluation=Evaluation(
            measured,
            [example],
            unknown=Unknown.of(0.05, [0.02, 0.5], [True, True], {"drawings": [0.01, 0.3]}),
            **looked,
        ),
        seconds=written()["timing_s"] | {"read": 2.0, "features": 6.0} | seconds,
        trials=[Trial(config.replace(dropout=0.5), 3, 0.5, 0.5, 0.7)],
        folds=[FoldCounts(3, 2, 7, Counts.of([0, 1], [[0.75, 0.25], [0.75, 0.25]]))] * 2,
    )


def keys(tree: object, prefix: str = "") -> list[str]:
    """The keys of a report.json, but for those that the user's data make."""
    if isinstance(tree, list):
        return keys(tree[0], prefix) if tree else []
    if not isinstance(tree, dict) or prefix.endswith(
        ("config.", "versions.", "reasons.", "decisions.", "top_k.", "per_class.")
    ):
        return []
    return [path for key, entry in tree.items() for path in (prefix + key, *keys(entry, f"{prefix}{key}."))]


def test_a_report_is_built_and_kept(tmp_path: Path) -> None:
    report = build(tmp_path)
    assert keys(json.loads(report.to_json())) == keys(written())
    assert (report.data.listed, report.data.found, report.data.used, report.data.quarantined) == (50, 41, 40, 1)
    assert report.data.reasons == {"duplicate": 1}
    assert [(one.name, one.files, [file.path for file in one.shown]) for one in report.data.left_out] == [
        ("duplicate", 1, ["daisy/copy.jpg"])
    ]
    assert report.data.near is not None
    assert [file.path for file in report.data.near.shown] == ["daisy/0.jpg", "daisy/1.jpg"]
    assert report.data.per_class == {"daisy": 20, "roses": 20}
    assert report.split.total == sum(subsets.total for subsets in report.split.per_class.values()) == 40
    assert (report.images_per_s.read, report.images_per_s.features) == (5.1, 3.8)
    assert report.features.cache.startswith(f"{tmp_path}/cache/features/")
    write_report(Run(str(tmp_path)), report)
    assert "thumbnail" not in Path(Run(str(tmp_path)).report).read_text()
    assert "data:image/jpeg;base64,x" in (tmp_path / "report.html").read_text()
    shown = [example.model_copy(update={"thumbnail": ""}) for example in report.predictions]
    assert read_report(Run(str(tmp_path))) == report.model_copy(update={"predictions": shown})


def test_a_stage_that_the_report_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="another"):
        build(tmp_path, another=1.0)
