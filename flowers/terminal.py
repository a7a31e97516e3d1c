"""What every job does at its edge: quiet libraries, one line for an error, an exit code."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

import click
from rich.console import Console

from flowers.errors import FlowersError, InputError

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130


def run_command(command: click.Command, name: str) -> None:
    """Runs a job as a program; a wrong option is one line and exit code 2."""
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        _say(f"error: {error.format_message()} See {name} --help.")
        raise SystemExit(WRONG_INPUT) from None
    atexit._run_exitfuncs()  # TensorFlow removes its temporary files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(DONE)  # all is written; TensorFlow would take another second to take itself apart


@contextlib.contextmanager
def edge(verbose: bool, resume: str) -> Iterator[Console]:
    """Runs a job's body: errors made on purpose become one line and an exit code, native log noise goes to a file.

    Args:
        verbose: show everything that libraries log.
        resume: what to say to somebody who pressed Ctrl-C.
    """
    out = Console(soft_wrap=True)
    log = None if verbose else _quiet()
    problem, code = "", DONE
    try:
        yield out
    except FlowersError as error:
        problem, code = str(error), WRONG_INPUT if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        problem, code = f"Stopped. {resume}", STOPPED
    except Exception:
        if log is not None:
            _replay(log)
        raise
    finally:
        if log is not None:
            os.unlink(log)  # file descriptor 2 keeps what is still written until the process ends
    if problem:
        _say(f"error: {problem}" if code != STOPPED else problem)
    if code != DONE:
        sys.stdout.flush()
        raise SystemExit(code)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


def _quiet() -> str:
    """Sends what C++ code writes to file descriptor 2 to a file; Python's own stderr stays on the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what a lost worker means, the job says itself
    handle, path = tempfile.mkstemp(prefix="flowers-", suffix=".log")
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable(file=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)
    return path


def _replay(path: str) -> None:
    """Shows the end of the hidden log: something unforeseen happened."""
    with open(path, encoding="utf-8", errors="replace") as file:
        sys.stderr.writelines(file.readlines()[-30:])
