"""Look at photos before training: `python -m jobs.check --data DIR`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from flowers import cli
from flowers.config import CheckOptions

_HELP = """Look at photos before training: what would be used, what not and why, what looks wrong. Trains nothing.

\b
On your photos:       python -m jobs.check --data DIR
Of a list of photos:  python -m jobs.check --data FILE.csv
"""


@cli.command(_HELP, CheckOptions)
def main(**values: Any) -> None:
    """Parses, looks, reports; exit code 2 where training would refuse the photos."""
    out = cli.console(bool(values["verbose"]))
    options = CheckOptions(**cli.given(values, CheckOptions))
    from flowers.errors import InputError
    from flowers.pipelines.check import check
    from flowers.report.check import render_check_text

    found = check(options, out, shlex.join(["python", "-m", "jobs.check", *sys.argv[1:]]))
    out.print(render_check_text(found))
    out.print(f"page      {options.page}", highlight=False, markup=False)
    if found.refusal:
        raise InputError(found.refusal)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.check")
