"""The edge of a job: what it says and how it ends."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, click, sys
from flowers.terminal import edge, run_command

@click.command()
@click.option("--number", type=int)
def main(number):
    with edge(False, "Go on."):
        atexit.register(print, "cleaned up")
        print("done")

run_command(main, "program")
"""


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_exit_functions_run_though_the_process_ends_at_once() -> None:
    done = program()
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\ncleaned up\n", "")


def test_a_wrong_option_is_one_line_and_exit_code_2() -> None:
    done = program("--number", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "--help" in done.stderr
