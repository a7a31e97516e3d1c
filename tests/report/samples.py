"""Reports with all that a page can show, on one photo that stands for all: no network is needed for them."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from flowers.data import reading
from flowers.evaluation import ranking
from flowers.evaluation.answers import Answers
from flowers.evaluation.gallery import small_pictures, worth_a_look
from flowers.evaluation.unknown import Unknown
from flowers.predictor import Predictor
from flowers.report import findings
from flowers.report.evaluation import EvaluationReport, Rows, compare

HOSTILE = ["<script>alert(1)</script>", "=1+1", "\x1b[31mred"]


def photo(folder: Path) -> Path:
    """A file of a hostile name."""
    path = folder / "<b>bold"
    path.mkdir(parents=True, exist_ok=True)
    path /= "flower.jpg"
    across, down = np.meshgrid(np.linspace(-1, 1, 120), np.linspace(-1, 1, 90))
    petals = (np.hypot(across, down) < 0.6 + 0.3 * np.cos(6 * np.arctan2(down, across)))[:, :, None]
    Image.fromarray(np.where(petals, [230, 120, 150], [60, 110, 70]).astype(np.uint8)).save(path, quality=90)
    return path


def answers(folder: Path, classes: list[str], n: int = 60) -> Answers:
    path = photo(folder)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += 1
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    digest = reading.read_block(listing(path))["sha256"][0]
    rows = pa.table(
        {
            "path": [str(path)] * n, "label": [classes[label] for label in labels], "sha256": [digest.as_py()] * n,
            "width": [120] * n, "height": [90] * n, "brightness": rng.uniform(0, 255, n), "split": [None] * n,
            "group": [f"<i>{index % 3}" for index in range(n)],
        }
    )  # fmt: skip
    return Answers(rows, p, classes)


def listing(path: Path) -> pa.Table:
    names = ("label", "split", "group", "code", "detail")
    return pa.table({"path": [str(path)], **{name: pa.nulls(1, pa.string()) for name in names}})


def looks(made: Answers, folder: Path) -> dict[str, Any]:
    """What both kinds of reports have of answers besides their metrics."""

    def run(pixels: npt.NDArray[np.uint8]) -> tuple[None, npt.NDArray[np.float32]]:
        return None, np.tile(np.eye(7, dtype=np.float32), (len(pixels), 1, 1))

    stand_in = SimpleNamespace(bundle=SimpleNamespace(image_size=64), max_pixels=1 << 20, run=run)
    galleries, cells = worth_a_look(made, str(folder), cast(Predictor, stand_in))
    return {"galleries": galleries, "cells": cells, "slices": made.slices(str(folder))}


def left_out(folder: Path) -> list[findings.Finding]:
    path = str(photo(folder))
    table = pa.table(
        {
            "path": [path, f"{folder}/<i>.jpg"],
            "reason": ["duplicate", "not_a_photo"],
            "detail": ["same bytes as <b>another", None],
        }
    )
    return findings.left_out(table, 1 << 20, str(folder))


def evaluation(folder: Path, classes: list[str], n: int = 60, temperature: float | None = 1.5) -> EvaluationReport:
    made = answers(folder, classes, n)
    areas, mean = ranking.one_vs_rest(made.labels, made.scores, classes)
    pictures = functools.partial(small_pictures, made, predictor=cast(Predictor, SimpleNamespace(max_pixels=1 << 20)))
    return EvaluationReport(
        created="2026-11-26T10:00:00+00:00", command="x", bundle="<b>", bundle_sha256="0", source=str(folder),
        image_size=8, rows=Rows(found=n + 4, evaluated=n, training=1, unknown=1, unusable=2),
        unknown_labels={HOSTILE[0]: 1}, reasons={"duplicate": 1, "not_a_photo": 1}, warnings=[HOSTILE[0]], seconds=1.0,
        summary=made.summary(), auc=areas, macro_auc=mean,
        calibration=made.calibration(temperature, 5, "" if temperature else "gone"),
        coverage=ranking.coverage(made.score, made.right),
        coverage_curve=ranking.coverage_curve(made.score, made.right),
        comparison=compare(
            made, [classes[0]] * n, "<b>", source=str(folder), training=1, unknown=1, training_known=False,
            pictures=pictures,
        ),
        unknown=Unknown.of(0.05, made.score, made.right, {HOSTILE[0]: [0.01, 0.3]}),
        left_out=left_out(folder), **looks(made, folder),
    )  # fmt: skip
