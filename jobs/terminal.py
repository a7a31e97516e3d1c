"""What every job does at its edge: options from a dataclass, quiet libraries, one line for an error, an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import logging
import os
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console

from flowers.config import flag
from flowers.errors import FlowersError, InputError

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def options(config: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes each field of a config dataclass an option; one that is not given is None."""
    hints = typing.get_type_hints(config)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(config)):
            function = _option(field, hints[field.name])(function)
        return function

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[..., Any]:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    parameters: dict[str, Any] = {"help": f"{field.metadata['help']}  [default: {_shown(field.default)}]"}
    if hint is bool:
        parameters |= {"is_flag": True, "default": None}
    elif typing.get_origin(hint) is tuple:
        parameters |= {"type": float, "nargs": len(typing.get_args(hint))}
    elif field.metadata["choices"]:
        parameters["type"] = click.Choice(field.metadata["choices"])
    else:
        parameters["type"] = hint
    return click.option(flag(field.name), field.name, **parameters)


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return {None: "none", False: "off"}.get(default, str(default))


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
        problem, code = f"stopped. {resume}", 130
    except Exception:
        if log is not None:
            _replay(log)
        raise
    if problem:
        Console(stderr=True, soft_wrap=True).print(f"error: {problem}", highlight=False, markup=False)
    if code != DONE:
        sys.stdout.flush()
        raise SystemExit(code)


def _quiet() -> str:
    """Sends what C++ code writes to file descriptor 2 to a file; Python's own stderr stays on the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
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
