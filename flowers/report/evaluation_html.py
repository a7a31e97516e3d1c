"""The page of an evaluation: self-contained, as a run's report."""

from __future__ import annotations

from flowers.report.charts import coverage_plot, reliability_curve
from flowers.report.evaluation import EvaluationReport
from flowers.report.formatting import LARGE, summary_rows
from flowers.report.html import matrix_rows, template


def render_evaluation(report: EvaluationReport) -> str:
    """The evaluation as one page."""
    calibration = report.calibration
    page = template("evaluation.html").render(
        r=report,
        held=report.summary,
        metrics=summary_rows(report.summary),
        matrix=matrix_rows(report.summary),
        large=len(report.summary.classes) > LARGE,
        most=LARGE,
        reliability=reliability_curve(calibration.bins, calibration.bins_after),
        covered=coverage_plot(report.coverage_curve),
    )
    return page.encode("utf-8", "replace").decode()
