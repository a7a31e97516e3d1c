"""The page of an evaluation: rendered of hostile names, and reading only what the record has."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from jinja2 import meta
from rich.console import Console

from flowers.evaluation import ranking
from flowers.report.evaluation import Answers, EvaluationReport, Rows, compare, confusion_csv
from flowers.report.evaluation_html import render_evaluation
from flowers.report.evaluation_text import render_evaluation_text
from flowers.report.html import template
from tests.report.templates import followed

HOSTILE = ["<script>alert(1)</script>", "=1+1", "\x1b[31mred"]


def report(classes: list[str], n: int = 60, temperature: float | None = 1.5) -> EvaluationReport:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += 1
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    rows = pa.table(
        {
            "path": [f"/p/<b>{index}.jpg" for index in range(n)], "label": [classes[label] for label in labels],
            "width": [100] * n, "height": [100] * n, "brightness": [1.0] * n, "split": [None] * n,
            "group": [f"<i>{index % 3}" for index in range(n)],
        }
    )  # fmt: skip
    answers = Answers(rows, p, classes)
    areas, mean = ranking.one_vs_rest(answers.labels, p, classes)
    old = [classes[0]] * n
    return EvaluationReport(
        created="2026-11-26T10:00:00+00:00", command="x", bundle="<b>", bundle_sha256="0", source="/p", image_size=8,
        rows=Rows(found=n + 3, evaluated=n, training=1, unknown=1, unusable=1), unknown_labels={HOSTILE[0]: 1},
        reasons={"empty": 1}, warnings=[HOSTILE[0]], seconds=1.0, summary=answers.summary(5), auc=areas, macro_auc=mean,
        calibration=answers.calibration(temperature, 5, "" if temperature else "gone"),
        coverage=ranking.coverage(answers.score, answers.right),
        coverage_curve=ranking.coverage_curve(answers.score, answers.right), slices=answers.slices("/p"),
        comparison=compare(answers, old, "<b>", source="/p", training=1, unknown=1, training_known=False),
        mistakes=answers.mistakes("/p", 100),
    )  # fmt: skip


@pytest.mark.parametrize("classes", [HOSTILE, [f"class {index}" for index in range(40)]])
@pytest.mark.parametrize("temperature", [None, 1.5])
def test_hostile_names_are_text(classes: list[str], temperature: float | None) -> None:
    made = report(classes, temperature=temperature)
    page = render_evaluation(made)
    assert not {one for one in ("<script", "<b>0", "<i>0") if one in page}
    assert page.count("<svg") == 2
    console = Console(file=io.StringIO(), width=100)
    console.print(render_evaluation_text(made))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert "lowest 12 of 40" in text or len(classes) == 3
    assert EvaluationReport.model_validate_json(made.to_json()).to_json() == made.to_json()
    assert b"\n'=1+1," in confusion_csv(made.summary).replace(b"\r", b"") or len(classes) == 40


def test_the_page_reads_what_the_record_has() -> None:
    page = template("evaluation.html")
    tree = page.environment.parse(Path(page.filename or "").read_text(encoding="utf-8"))
    given = {"r", "held", "metrics", "matrix", "large", "most", "reliability", "covered"}
    assert meta.find_undeclared_variables(tree) == given
    assert followed(tree, {"r": EvaluationReport}) > 20
