"""Pack photos into a few large files: `python -m jobs.pack --data DIR --out DIR`."""

from __future__ import annotations

import shlex
from typing import Any

from flowers import cli
from flowers.config import PackOptions
from flowers.text import several

_HELP = """Pack photos, with their labels, sides and groups, into Parquet shards: a few large files in place of many
small ones. Whatever takes --data takes them, with the same results, and lists a million of them in seconds.

\b
A folder of photos:  python -m jobs.pack --data photos --out packed
Into a bucket:       python -m jobs.pack --data photos --out s3://bucket/packed
Then:                python -m jobs.train --data packed
"""
_RESUME = "The shards that are written are whole: the same command goes on from there."


@cli.command(_HELP, PackOptions)
def main(**values: Any) -> None:
    """Parses, packs, says how much."""
    out = cli.console(bool(values["verbose"]))
    options = PackOptions(**cli.given(values, PackOptions))
    from flowers.pipelines.pack import pack

    found = pack(options, out)
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    left_out = f"; {found.left_out} left out ({reasons}), each in {found.list_of_left_out}" if reasons else ""
    done = "packed" if found.new else "nothing to do: all is packed,"
    out.print(
        f"{done} {several(found.photos, 'photo')} of {several(found.files, 'file')}, {found.size / 1e6:.1f} MB in "
        f"{several(found.shards, 'shard')}, in {options.out}{left_out}",
        highlight=False,
        markup=False,
    )
    out.print(f"next      python -m jobs.train --data {shlex.quote(options.out)}", highlight=False, markup=False)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.pack", _RESUME)
