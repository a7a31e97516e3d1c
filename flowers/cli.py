"""Programs on the command line: one line for an error, an exit code, quiet libraries, and never an end without a word.

Exit codes: 0 done; 2 the user's input is wrong; 3 a quality gate is not met, or a cluster is not fit for a run; 130
stopped by Ctrl-C, 143 by SIGTERM or a closed terminal; 1 anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import functools
import logging
import operator
import os
import signal
import sys
import tempfile
import termios
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

import click
from rich.console import Console

from flowers.errors import FlowersError, GateNotMet, InputError, StoreFailed, first_line
from flowers.options import Option, OptionSet, check_path, check_paths, described, flag
from flowers.text import plain

DONE, FAILED, WRONG_INPUT, NOT_MET, STOPPED, TERMINATED = 0, 1, 2, 3, 130, 143


_terminated: list[int] = []


def _terminate(number: int, _: object) -> None:
    """SIGTERM, as `ray job stop`, a container's end and a batch system send it, or SIGHUP, as a closed terminal does.

    It stops a program as Ctrl-C does.
    """
    _terminated.append(number)  # what is raised here, Ray's C++ code replaces by a KeyboardInterrupt of its own
    raise KeyboardInterrupt


def _hang_up(number: int, frame: object) -> None:
    leave_terminal()
    _terminate(number, frame)


def leave_terminal() -> None:
    """Sends output nowhere from now on if it goes to a terminal that was closed, where each word would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:  # another one says that it is no terminal
            if error.args[0] == errno.EIO:
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


# Exit functions, by the modules that have registered them.
_TAKE_APART = {
    "h5py": "_unregister_converters",
    "pyarrow.fs": "ensure_s3_finalized",
    "PIL.Image": "core.clear_cache",
}
_PATIENCE_S = 1.5
_SHOWN_LINES = 30
_HEAD_LOST = "Failed to connect to GCS"  # Ray's C++ code says so and ends the process (2.60)
_CHATTER = ("I0000", "W0000", "WARNING: All log messages before absl")


class _Output(Console):
    """The console of a program, which goes on when nobody reads it any more: a closed pipe must not cost a training."""

    def on_broken_pipe(self) -> None:
        """Sends all further output nowhere."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        say("warning: nobody reads the output any more; the program goes on without it")


class Parameter(click.Option):
    """An option of a command; what is given for it stays a text, for its model reads and checks it.

    Attributes:
        described: what its help and its documentation are made from.
    """

    def __init__(self, option: Option) -> None:
        kind: dict[str, Any] = {"type": str, "nargs": option.count, "metavar": option.metavar}
        if option.metavar is None:
            kind = {"is_flag": True, "default": None}
        if option.alone:
            kind |= {"is_flag": False, "flag_value": option.alone}
        limits = f"; {option.required}" if option.ranged else ""
        text = f"{option.help}  [default: {option.default}{limits}]"
        super().__init__([flag(option.name), option.name], help=text, **kind)
        self.described = option


class Command(click.Command):
    """A command whose help lists the options by their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command`."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            title = parameter.described.group if isinstance(parameter, Parameter) else "Other"
            if record := parameter.get_help_record(ctx):
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(help: str, *models: type[OptionSet], argument: str = "") -> Callable[[Callable[..., None]], Command]:
    """Makes a function a command with the options of all `models`, whose paths it checks; one not given is None.

    Args:
        help: what the command does, and examples.
        models: of its options.
        argument: name of a path that may be given without an option's name.
    """
    parameters: list[click.Parameter] = [click.Argument([argument], required=False)] if argument else []
    parameters += [Parameter(option) for model in models for option in described(model).values()]
    settings = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}

    def decorate(function: Callable[..., None]) -> Command:
        @functools.wraps(function)
        def checked(**values: Any) -> None:
            if argument and values[argument]:
                check_path(argument.upper(), values[argument])
            for model in models:
                check_paths(model, values)
            function(**values)

        return Command(
            function.__name__, callback=checked, params=list(parameters), help=help, context_settings=settings
        )

    return decorate


def given(values: Mapping[str, Any], model: type[OptionSet]) -> dict[str, Any]:
    """The options of `model` that were given."""
    return {name: values[name] for name in described(model) if values.get(name) is not None}


def console(verbose: bool) -> Console:
    """Where a program prints from now on.

    Args:
        verbose: show what libraries log; otherwise it is hidden, and its end is shown if the program fails unforeseen.
    """
    if not verbose:
        _hide_logs()
    return _Output(soft_wrap=True)


def run_command(command: click.Command, name: str, resume: str = "") -> NoReturn:
    """Runs a command as a program and ends the process, however the command ends.

    Args:
        command: what to run on the words of the command line.
        name: how it was called, for its help.
        resume: what to say to somebody whose program was stopped.
    """
    lifeline = _start_watchdog(resume)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _hang_up)
    _answer_at_once(resume)
    code, text = outcome(command, name, sys.argv[1:], resume)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _keep_whole()
    atexit._run_exitfuncs()  # TensorFlow removes its temporary files
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code, text = code or FAILED, text or f"error: the output could not be written: {first_line(error)}"
    if text:
        say(text)
    os.write(lifeline, b"\n")
    os._exit(code)  # all is written; TensorFlow would take another second to take itself apart


def _keep_whole() -> None:
    """Leaves out exit functions that take a library apart: a thread may still be in it, and the process would crash.

    As it did when Ctrl-C came while weights were read. The end of the process gives everything back anyway.
    """
    for module, name in _TAKE_APART.items():
        if module in sys.modules:
            atexit.unregister(operator.attrgetter(name)(sys.modules[module]))


def _answer_at_once(resume: str) -> None:
    """Lets a thread say that SIGTERM has come, where it takes long to act on it, as in a library's long call.

    `ray job stop` waits 3 s before it kills.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def answer() -> None:
        while os.read(read, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(_PATIENCE_S)
        if signal.getsignal(signal.SIGTERM) is _terminate:  # nobody else's, who has said it
            say(f"Stopping. {resume}".rstrip())

    threading.Thread(target=answer, name="answer SIGTERM", daemon=True).start()


def outcome(command: click.Command, name: str, words: list[str], resume: str = "") -> tuple[int, str]:
    """Runs a command on some words.

    Returns:
        The exit code, and the line that says why it is not 0.
    """
    try:
        # Not `command.main`, which ends without a word when a pipe breaks.
        with command.make_context(name, words) as context:
            command.invoke(context)
    except BaseException as error:
        return _explained(error, name, resume)
    return DONE, ""


def say(text: str) -> None:
    """Prints a line on stderr, if there is somebody to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _explained(error: BaseException, name: str, resume: str) -> tuple[int, str]:
    """The exit code for what ended a command, and the line that says why."""
    if isinstance(error, click.exceptions.Exit):  # after --help
        return error.exit_code, "" if error.exit_code == DONE else f"error: {name} ended with {error.exit_code}"
    if isinstance(error, click.ClickException):
        return WRONG_INPUT, f"error: {error.format_message()} See {name} --help."
    if isinstance(error, FlowersError):
        codes = {InputError: WRONG_INPUT, GateNotMet: NOT_MET}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)
        return code, plain(f"error: {_first(error)}")
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return TERMINATED if _terminated else STOPPED, f"Stopped. {resume}".rstrip()
    for line in (*_log_lines(), *traceback.format_exception(error)):
        say(line.rstrip("\n"))
    what = plain(f"{type(error).__name__}: {first_line(error)}").rstrip(".")
    return FAILED, f"error: {what}. This was not foreseen: the lines above say where. {resume}".rstrip()


def _first(error: FlowersError) -> FlowersError:
    """Where an object store failed first: it fails again at what is cleaned up then, which hides that."""
    found, before = error, error.__context__ if isinstance(error, StoreFailed) else None
    while before is not None:
        found = before if type(before) is StoreFailed else found
        before = before.__context__
    return found


@functools.cache
def _log() -> IO[bytes]:
    """What libraries write to file descriptor 2: a file without a name, gone with the last process that holds it."""
    return tempfile.TemporaryFile(prefix="flowers-", suffix=".log")


def _hide_logs() -> None:
    """Sends what C++ code writes to file descriptor 2 to a file; Python's own stderr stays where it was."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what a lost worker means, the job says itself
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(_log().fileno(), 2)
    faulthandler.enable(file=sys.stderr)
    for name in ("absl", "tensorflow", "tf2onnx", "nncf"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _log_lines() -> list[str]:
    """The end of the hidden log, without what libraries always say."""
    size = os.fstat(_log().fileno()).st_size
    text = os.pread(_log().fileno(), 1 << 16, max(0, size - (1 << 16))).decode(errors="replace")
    return [line for line in text.splitlines() if not line.startswith(_CHATTER)][-_SHOWN_LINES:]


def _start_watchdog(resume: str) -> int:
    """Starts a second process that speaks if this one ends without a word: killed, or ended by native code.

    Returns:
        A file descriptor: a byte written to it says that the last word has been spoken.
    """
    _log()  # both processes have to hold the same file
    end, lifeline = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the second process can take it
    if os.fork():
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(end)
        return lifeline
    os.close(lifeline)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))  # `ray job stop` sends it to both
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for descriptor in (0, 1):
        os.close(descriptor)
    spoken = os.read(end, 1)
    if not spoken and told:
        say(f"Stopped. {resume}".rstrip())
    elif not spoken:
        lines, why = _log_lines(), "the program was killed, perhaps because memory ran out, or a library ended it"
        if any(_HEAD_LOST in line for line in lines):
            lines, why = [], "the head of Ray's cluster has not answered for a minute"
        for line in [*lines, f"error: {why}. {resume}".rstrip()]:
            say(line)
    os._exit(0)
