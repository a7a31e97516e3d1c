"""Make room beside the runs: `python -m jobs.clean --storage runs`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import CleanOptions

_HELP = """Show what may be removed beside the runs, and with --delete remove it: caches and data sets that were not
used for long, which are made again when they are needed, and what killed jobs left. Runs stay, and so does whatever a
run in progress uses.

\b
What there is, and what may go:      python -m jobs.clean --storage runs
Remove that:                         python -m jobs.clean --storage runs --delete
Keep the 20 GB that were used last:  python -m jobs.clean --storage runs --max-size 20 --delete
"""


@cli.command(_HELP, CleanOptions)
def main(**values: Any) -> None:
    """Parses, cleans."""
    out = cli.console(verbose=False)
    options = CleanOptions(**cli.given(values, CleanOptions))
    from flowers.pipelines.clean import clean

    clean(options, out)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.clean", "What is not removed yet is whole: the same command goes on.")
