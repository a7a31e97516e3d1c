"""The page of an evaluation: self-contained, as a run's report."""

from __future__ import annotations

from flowers import storage
from flowers.report.charts import coverage_plot, reliability_curve
from flowers.report.evaluation import EvaluationReport
from flowers.report.formatting import summary_rows
from flowers.report.html import encodable, moment, seconds, template
from flowers.report.parts import HeldParts, first_rows


def render_evaluation(report: EvaluationReport) -> str:
    """The evaluation as one page."""
    calibration, parts = report.calibration, HeldParts.of(report.summary, report.cells)
    page = template("evaluation.html").render(
        **vars(parts),
        r=report,
        name=_name(report.bundle),
        facts=[
            ("Bundle", report.bundle),
            ("Photos", report.source),
            ("Made", f"{moment(report.created)}, at {report.image_size} px, in {seconds(report.seconds)}"),
        ],
        unknown=first_rows(report.unknown_labels),
        metrics=summary_rows(report.summary),
        areas=[(name, report.auc[name]) for name, _ in parts.classes.rows],
        reliability=reliability_curve(calibration.bins, calibration.bins_after),
        covered=coverage_plot(report.coverage_curve),
    )
    return encodable(page)


def _name(bundle: str) -> str:
    """The last two names of its path: of a run and its bundle, or of a model and its version."""
    return "/".join(filter(None, (storage.name(storage.parent(bundle)), storage.name(bundle))))
