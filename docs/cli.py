"""Makes docs/cli.md from the commands themselves: `make docs`, or `python -m docs.cli`. A test compares it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from flowers.cli import Command, Parameter
from flowers.options import Option, flag
from jobs.check import main as check
from jobs.clean import main as clean
from jobs.doctor import main as doctor
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.next import main as choose_next
from jobs.pack import main as pack
from jobs.predict import main as predict
from jobs.publish import main as publish
from jobs.suspects import main as suspects
from jobs.train import main as train
from serving.__main__ import main as serving

# A new command is added here.
COMMANDS = {
    "python -m jobs.train": train,
    "python -m jobs.evaluate": evaluate,
    "python -m jobs.predict": predict,
    "python -m jobs.check": check,
    "python -m jobs.pack": pack,
    "python -m jobs.suspects": suspects,
    "python -m jobs.next": choose_next,
    "python -m jobs.clean": clean,
    "python -m jobs.doctor": doctor,
    "python -m jobs.publish": publish,
    "python -m jobs.export": export,
    "python -m serving": serving,
}
FILE = Path(__file__).with_suffix(".md")
_HEAD = """# The options of each command

Made by `make docs` from the options in the code; do not edit. A wrong option ends the program with exit code 2 and one
line: `error: --epochs: received '0', required is 1 or more`.

Options that change the result are a run's identity: an unfinished run goes on with the same ones only, and an option
that is new since it began counts as its default there. The others may be given anew each time.
"""


def render() -> str:
    """The whole document."""
    return "\n".join([_HEAD, *(line for name, command in COMMANDS.items() for line in _command(name, command))])


def _command(name: str, command: Command) -> Iterator[str]:
    about, _, examples = (command.help or "").partition("\b\n")
    yield from (f"## `{name}`", "", " ".join(about.split()), "", *(f"    {line}" for line in examples.splitlines()), "")
    options = [parameter.described for parameter in command.params if isinstance(parameter, Parameter)]
    for title, members in groupby(options, lambda option: option.group):
        yield from (f"### {title}", "", *_table(list(members)), "")


def _table(options: list[Option]) -> Iterator[str]:
    result = any(option.result is not None for option in options)
    heads = ["option", "what it does", "default", "allowed", *(["changes the result"] if result else [])]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'-|' * len(heads)}"
    for option in options:
        cells = [option.help, option.default, option.allowed if option.metavar else "takes no value"]
        if result:
            cells.append("yes" if option.result else "no")
        yield f"| {' | '.join([f'`{flag(option.name)}`', *map(_plain, cells)])} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("<", "\\<").replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
