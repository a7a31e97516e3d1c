"""Predict many photos: `python -m jobs.predict --bundle RUN --data DIR --out DIR`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import PredictOptions
from flowers.text import several

_HELP = """Run a trained bundle on any number of photos, and write a row for each file: label (the class that the
bundle gives it; in predictions.parquet of jobs.evaluate that is predicted), its score, the likeliest classes, or why it
is no usable photo.

\b
A folder of photos:      python -m jobs.predict --bundle runs/NAME --data photos --out predictions
What is new or changed:  python -m jobs.predict --bundle runs/NAME --data photos --out predictions --update
Not flowers at all:      python -m jobs.predict --bundle runs/NAME --data photos --out predictions --unknown
Into folders by class:   python -m jobs.predict --bundle runs/NAME --data photos --out predictions --sort-into sorted
"""
_RESUME = "What was written is whole: the same command goes on from there."


@cli.command(_HELP, PredictOptions)
def main(**values: Any) -> None:
    """Parses, predicts, says how much."""
    out = cli.console(bool(values["verbose"]))
    options = PredictOptions(**cli.given(values, PredictOptions))
    from flowers.errors import InputError
    from flowers.pipelines.predict import predict

    found = predict(options, out)
    speed = f", {found.looked / found.seconds:.1f} images/s" if found.looked and found.seconds else ""
    strangers = "" if found.unknown is None else f", {found.unknown} none of the classes"
    counts = f"{several(found.looked, 'photo')}, {several(found.errors, 'error')}{strangers}"
    again = f"{several(found.again, 'file')} looked at again, {several(found.renewed, 'row')} renewed"
    line = f"{counts}, {found.seconds:.1f} s{speed}, in {options.out}{f'; {again}' if found.again else ''}"
    if not found.looked:
        line = f"nothing to do: {several(found.files, 'file')}, each with its row in {options.out}"
        line = f"{again}, in {options.out}" if found.again else line
    if found.waiting:
        added = several(found.waiting, "file was", "files were")
        line = f"{options.out} was complete; {added} added since: see --update"
    out.print(line, highlight=False, markup=False)
    if found.looked and found.errors == found.looked:
        raise InputError(f"none of {several(found.looked, 'file')} is a usable photo: {found.example}")


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.predict", _RESUME)
