"""Find labels that are probably wrong: `python -m jobs.suspects RUN`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import SuspectsOptions
from flowers.errors import InputError

_HELP = """Find photos of a finished run whose labels are probably wrong: what was learned from the others contradicts
them. Writes suspects.csv, and suspects.html to look at each of them beside its nearest photos and decide: keep, relabel
or drop. Training and jobs.check take the decisions with --relabel; nothing is done to the photos themselves.

\b
Find them:                 python -m jobs.suspects runs/NAME
Train with the decisions:  python -m jobs.train --data DIR --relabel suspects.csv
"""


@cli.command(_HELP, SuspectsOptions, argument="run")
def main(**values: Any) -> None:
    """Parses, looks for suspects, says how many."""
    out = cli.console(bool(values["verbose"]))
    options, run = SuspectsOptions(**cli.given(values, SuspectsOptions)), values["run"]
    if not run:
        raise InputError("RUN is missing: give the folder of a finished run, runs/NAME")
    from flowers.pipelines.suspects import suspects
    from flowers.report.suspects import render_suspects_text

    found, place, command = suspects(run, options, out)
    out.print(render_suspects_text(found))
    lines = [f"page      {place.suspects_page}", f"file      {place.suspects}", f"then      {command}"]
    out.print("\n".join(lines), highlight=False, markup=False)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.suspects")
