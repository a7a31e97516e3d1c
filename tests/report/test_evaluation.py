"""The page of an evaluation: rendered of hostile names, and reading only what the record has."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from jinja2 import meta
from rich.console import Console

from flowers.report.evaluation import EvaluationReport, confusion_csv
from flowers.report.evaluation_html import render_evaluation
from flowers.report.evaluation_text import render_evaluation_text
from flowers.report.html import template
from flowers.report.parts import HeldParts
from tests.report.samples import HOSTILE, evaluation
from tests.report.templates import followed


@pytest.mark.parametrize("classes", [HOSTILE, [f"class {index}" for index in range(40)]])
@pytest.mark.parametrize("temperature", [None, 1.5])
def test_hostile_names_are_text(classes: list[str], temperature: float | None, tmp_path: Path) -> None:
    made = evaluation(tmp_path, classes, temperature=temperature)
    page = render_evaluation(made)
    assert not {one for one in ("<script", "<b>bold", "<i>0", "<i>.") if one in page}
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
    given = {"r", "name", "facts", "metrics", "areas", "unknown", "reliability", "covered"}
    assert meta.find_undeclared_variables(tree) - set(HeldParts.__dataclass_fields__) == given
    assert followed(tree, {"r": EvaluationReport}) > 20
