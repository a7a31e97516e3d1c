"""The edge of a program: what it says and how it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest

PROGRAM = """
import atexit, click, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from flowers import cli
from flowers.errors import FlowersError, InputError

@click.command()
@click.option("--number", type=int)
@click.option("--verbose", is_flag=True)
def main(number, verbose):
    out = cli.console(verbose)
    atexit.register(print, "cleaned up")
    {body}
    out.print("done")

cli.run_command(main, "program", "Go on.")
"""


def program(body: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    text = PROGRAM.replace("{body}", body)
    words = [sys.executable, "-c", text, *arguments]
    return subprocess.run(words, **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options})  # type: ignore[call-overload]


def test_exit_functions_run_though_the_process_ends_at_once() -> None:
    done = program("pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\ncleaned up\n", "")


def test_a_wrong_option_is_one_line_and_exit_code_2() -> None:
    done = program("pass", "--number", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "--help" in done.stderr


def test_help_is_no_error() -> None:
    done = program("pass", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--number" in done.stdout


FORESEEN = {
    "input": ("raise InputError('give less')", 2, "error: give less\n"),
    "ours": ("raise FlowersError('no room')", 1, "error: no room\n"),
    "ctrl-c": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, "Stopped. Go on.\n"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 143, "Stopped. Go on.\n"),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)", 143, "Stopped. Go on.\n"),
    "in a thread": ("ThreadPoolExecutor(1).submit(lambda: exec('raise InputError(1)')).result()", 2, "error: 1\n"),
}
UNFORESEEN = {
    "exception": ("1 / 0", "ZeroDivisionError"),
    "no text": ("raise AssertionError", "AssertionError"),
    "a library exits": ("sys.exit(1)", "SystemExit: 1"),
    "a library exits as if all were well": ("sys.exit(0)", "SystemExit: 0"),
    "pipe": ("raise BrokenPipeError(32, 'Broken pipe')", "BrokenPipeError"),
    "in a thread": ("ThreadPoolExecutor(1).submit(lambda: 1 / 0).result()", "ZeroDivisionError"),
    "in a task group": ("raise BaseExceptionGroup('two', [SystemExit(1), KeyError(2)])", "BaseExceptionGroup"),
}
# No line of Python runs any more: another process has to speak.
SUDDEN = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "native code ends it": ("os._exit(1)", 1),
    "at exit": ("atexit.register(os._exit, 1)", 1),
    "in a thread": ("threading.Thread(target=os._exit, args=(7,)).start(); time.sleep(9)", 7),
    "crash": ("os.abort()", -signal.SIGABRT),
}


@pytest.mark.parametrize("verbose", [[], ["--verbose"]], ids=["quiet", "verbose"])
@pytest.mark.parametrize(("body", "code", "said"), FORESEEN.values(), ids=FORESEEN)
def test_a_foreseen_end_is_one_line(body: str, code: int, said: str, verbose: list[str]) -> None:
    done = program(body, *verbose)
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", said)


def test_a_closed_terminal_stops_it_as_ctrl_c_does() -> None:
    """What it says then goes nowhere, and is no error."""
    # Short sleeps: a signal just before a long one begins is heard after it.
    wait = "for _ in range(1200): time.sleep(0.05)"
    body = f"out.print('ready')\n    try:\n        {wait}\n    finally: out.print('cleaning'); print('up', flush=True)"
    terminal, inside = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{body}", body)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert job.wait(60) == 143


@pytest.mark.parametrize("verbose", [[], ["--verbose"]], ids=["quiet", "verbose"])
@pytest.mark.parametrize(("body", "said"), UNFORESEEN.values(), ids=UNFORESEEN)
def test_an_unforeseen_end_says_where_and_then_why(body: str, said: str, verbose: list[str]) -> None:
    done = program(f"os.write(2, b'hidden ' + b'words'); {body}", *verbose)
    assert done.returncode == 1
    assert done.stdout == "cleaned up\n"
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert last.endswith("Go on.")
    assert "Traceback" in "".join(before)
    assert done.stderr.count("hidden words") == 1, "what a library said is shown now, and only once"


def test_a_head_that_is_lost_is_named() -> None:
    done = program("os.write(2, b'rpc_client.h:204: Failed to connect to GCS within 60 seconds.\\n'); os._exit(1)")
    assert (done.returncode, done.stderr) == (
        1,
        "error: the head of Ray's cluster has not answered for a minute. Go on.\n",
    )


@pytest.mark.parametrize("verbose", [[], ["--verbose"]], ids=["quiet", "verbose"])
@pytest.mark.parametrize(("body", "code"), SUDDEN.values(), ids=SUDDEN)
def test_a_sudden_end_is_told_by_another_process(body: str, code: int, verbose: list[str]) -> None:
    done = program(f"os.write(2, b'hidden ' + b'words\\n'); {body}", *verbose)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith("error: the program was killed, ")
    assert done.stderr.endswith("Go on.\n")
    assert "hidden words" in done.stderr


def test_sigterm_in_a_long_call_is_answered_at_once() -> None:
    """`ray job stop` kills after 3 s, which a call of a library may take."""
    body = (
        "cli._PATIENCE_S = 0; threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start(); "
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2_000_000)"
    )
    done = program(body)
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")
    assert done.stderr == "Stopping. Go on.\nStopped. Go on.\n"


def test_who_answers_sigterm_in_its_own_way_is_not_spoken_for() -> None:
    body = (
        "cli._PATIENCE_S = 0; signal.signal(signal.SIGTERM, lambda *_: out.print('my way')); "
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.2)"
    )
    done = program(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "my way\ndone\ncleaned up\n", "")


def test_a_stopped_program_that_was_killed_was_stopped() -> None:
    """As `ray job stop` does it: SIGTERM to a program and its children, and then SIGKILL."""
    body = (
        "children = open(f'/proc/self/task/{os.getpid()}/children').read().split(); "
        "[os.kill(int(pid), signal.SIGTERM) for pid in children]; "
        "time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = program(body)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "Stopped. Go on.\n")


def test_a_closed_pipe_does_not_stop_the_program() -> None:
    read, write = os.pipe()
    os.close(read)
    body = "[out.print(number) for number in range(3)]; cli.say('went on')"
    done = program(body, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == "warning: nobody reads the output any more; the program goes on without it\nwent on\n"


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = program("print('x')", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]


def test_nothing_is_left_when_stderr_is_gone_too() -> None:
    read, write = os.pipe()
    os.close(read)
    done = program("raise FlowersError('no room')", capture_output=False, stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 1


def test_no_library_is_taken_apart_while_a_thread_may_be_in_it() -> None:
    """Such as the one that reads weights when Ctrl-C comes: h5py's exit function made it crash."""
    body = (
        "import h5py, PIL.Image, pyarrow.fs; gone = lambda: print('taken apart'); atexit.register(gone); "
        "h5py._unregister_converters, PIL.Image.core.clear_cache, pyarrow.fs.ensure_s3_finalized; "
        "h5py._unregister_converters = PIL.Image.core.clear_cache = pyarrow.fs.ensure_s3_finalized = gone"
    )
    done = program(body)
    assert (done.returncode, done.stdout) == (0, "done\ncleaned up\n")
