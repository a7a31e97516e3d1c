"""Evaluate a bundle: `python -m jobs.evaluate --bundle RUN --data DIR`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from flowers import cli
from flowers.config import EvaluateOptions

_HELP = """Measure a trained bundle on labelled photos: everything of a training's report, calibration, slices, a row
a photo, and what got better and worse than with another bundle. The rows, in predictions.parquet, have in label what
the photo is labelled, and in predicted what the bundle says.

\b
On the run's test photos:    python -m jobs.evaluate --bundle runs/NAME
On other labelled photos:    python -m jobs.evaluate --bundle runs/NAME --data DIR
Against an earlier bundle:   python -m jobs.evaluate --bundle runs/NAME --data DIR --baseline runs/EARLIER
"""


@cli.command(_HELP, EvaluateOptions)
def main(**values: Any) -> None:
    """Parses, evaluates, reports."""
    out = cli.console(bool(values["verbose"]))
    options = EvaluateOptions(**cli.given(values, EvaluateOptions))
    from flowers.pipelines.evaluate import evaluate
    from flowers.report.evaluation_text import render_evaluation_text
    from flowers.runs import Run

    report, folder = evaluate(options, out, shlex.join(["python", "-m", "jobs.evaluate", *sys.argv[1:]]))
    out.print(render_evaluation_text(report))
    out.print(f"report    {Run(folder).page}", highlight=False, markup=False)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.evaluate")
