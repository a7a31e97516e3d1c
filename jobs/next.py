"""Choose what to label next: `python -m jobs.next --bundle RUN --data UNLABELLED --out DIR`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import NextOptions

_HELP = """Choose which photos without labels to label next: those of which a trained bundle is unsure, and that differ
from each other. Writes next.csv, a manifest with an empty column label, and for Label Studio tasks.json, with the
bundle's answers as predictions, and labels.xml, the labeling interface.

\b
The next 100:  python -m jobs.next --bundle runs/NAME --data photos --out next
"""


@cli.command(_HELP, NextOptions)
def main(**values: Any) -> None:
    """Parses, chooses, says what."""
    out = cli.console(bool(values["verbose"]))
    options = NextOptions(**cli.given(values, NextOptions))
    from flowers.pipelines.next import choose_next
    from flowers.text import plain, several

    found = choose_next(options, out)
    left = {"known to the run": found.known, "copied": found.repeats, "unusable": found.unusable.total()}
    more = "".join(f", {number} {words}" for words, number in left.items() if number)
    lines = [f"{len(found.rows)} of {several(found.files, 'file')} chosen{more}, in {options.out}"]
    lines += [f"{one.uncertainty:.3f}  {one.predicted} or {one.second}?  {one.path}" for one in found.rows[:5]]
    lines += [f"warning: {text}" for text in found.warnings]
    out.print("\n".join(map(plain, lines)), highlight=False, markup=False)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.next")
