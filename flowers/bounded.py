"""A process that runs functions within a budget of CPU time and memory, and is ended and started again beyond it.

For work on bytes of strangers, which may take for ever, ask for gigabytes or crash a library: a thread cannot be ended.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# For a process that gets no CPU at all: nobody waits for ever.
_PATIENCE_S = 120
# Not `-m`: what this module defines would then be pickled as that of another one.
_MAIN = f"from {__name__} import work; work()"


class Exhausted(Exception):
    """The function needed more CPU time or memory than it may."""


class Crashed(Exception):
    """A signal ended the process, which the text names."""


class BoundedProcess:
    """A process that runs one function after the other; started when it is first needed. Threads take turns.

    Args:
        cpu_s: seconds of CPU time for each call.
        memory: bytes that each call may add to what the process holds, with its arguments and its result.
        niceness: added to that of this process.
    """

    def __init__(self, cpu_s: float, memory: int, niceness: int = 0) -> None:
        self._limits = str(cpu_s), str(memory), str(niceness)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns; it, its arguments and its result have to be known to pickle.

        Raises:
            Exhausted: it needed too much.
            Crashed: it ended the process.
            RuntimeError: the process cannot be started.
            Exception: what it raised.
        """
        with self._turn:
            connection = self._start()
            try:
                connection.send((function, arguments))
                if not connection.poll(_PATIENCE_S):
                    raise EOFError
                result, error = connection.recv()
            except (EOFError, OSError) as ended:
                raise self._why_it_ended() from ended
            except BaseException:
                self._end()  # an answer that nobody reads would be taken for the next one
                raise
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends the process."""
        with self._turn:
            self._end()

    def _start(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection:
            return self._connection
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), *self._limits],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._connection = Connection(ours.detach())
        return self._connection

    def _why_it_ended(self) -> Exception:
        process = self._process
        self._end()
        code = process.returncode if process else 0
        if code in (-signal.SIGPROF, -signal.SIGKILL):
            return Exhausted()
        if code < 0:
            return Crashed(signal.Signals(-code).name)
        return RuntimeError(f"a process for bounded work ended with exit code {code}; its error is above")

    def _end(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection:
            connection.close()
        if process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)  # it may just be ending, and how it ends says why
            process.kill()
            process.wait()


def work() -> None:
    """Runs what comes, until nobody is at the other end: what the process does."""
    connection, (cpu_s, memory, niceness) = Connection(int(sys.argv[1])), map(float, sys.argv[2:])
    os.nice(int(niceness))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that asks
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # ends this process by SIGPROF
        result: Any = None
        error: Exception | None = None
        try:
            with limited_memory(int(memory)):
                result = function(*arguments)
        except MemoryError:
            error = Exhausted()
        except Exception as raised:
            error = raised
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            connection.send((result, error))
        except OSError:
            return
        del function, arguments, result, error


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Lets this process take `more` bytes of memory and no more, in all of its threads; beyond, MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _held_bytes() + more
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held_bytes() -> int:
    """Memory that counts against RLIMIT_DATA now; 0 where the system does not tell, nor limit it."""
    with suppress(OSError):
        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) << 10 if found else 0
    return 0
