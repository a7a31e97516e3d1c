"""Locks: what has a name is used by one process at a time, on a disk and in a bucket.

On a disk the kernel holds the lock (`flock`), and frees it when its process ends, however that ends. A network disk has
to pass it on to its server: NFS does, unless it is mounted with `nolock` or `local_lock`; the lock holds on one machine
only then.

Where there is no `flock`, in object stores above all, a process puts a claim of its own beside the others, then lists
all of them, and has the lock if it is alone. Whoever lists has put its claim before, so no two of them can be alone, if
the store lists at once what was put (S3, Google Cloud Storage and Azure do). A claim is put again every `BEAT_S`. One
that is `LEASE_S` older than a claim that was put just now, both by the store's clock, is of a dead process.

What is left: a process that was asleep or cut off for longer than that loses its claim, and may still write until it
finds out, at its next beat; then it ends.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flowers import storage
from flowers.errors import FlowersError, StoreFailed

BEAT_S, LEASE_S = 15.0, 60.0
# Somebody who looks whether a file is locked has its lock for a moment; two who ask at once see each other.
_TRIES, _PAUSE_S = 5, 0.2
# Of file systems that have no flock.
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: its machine.
        pid: its id there.
        since: when it took the lock by its own clock, UTC, ISO 8601.
        silent: seconds since it was last heard of; None where the kernel knows that it lives.
    """

    host: str
    pid: int
    since: str
    silent: float | None = None

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        text = f"process {self.pid} on {self.host} since {self.since}"
        if self.silent is None:
            return text
        left = max(0.0, LEASE_S - self.silent)
        return f"{text}, last heard of {self.silent:.0f} s ago (if it is dead, this ends in {left:.0f} s)"


_UNKNOWN = Holder("", 0, "")


class InUse(FlowersError):
    """Another process holds the lock; the text says which."""


def beside(uri: str) -> str:
    """Where the lock of a folder lies: it outlives the folder."""
    return storage.join(storage.parent(uri), f".{storage.name(uri)}.lock")


@contextmanager
def hold(uri: str) -> Iterator[None]:
    """Holds the lock at `uri`, a file that is there as long as it is held.

    Raises:
        InUse: another process holds it.
        FlowersError: on leaving: the lock was lost, as this process gave no sign of life for too long.
        OSError: it cannot be written.
    """
    with _flock_of(uri) as descriptor:
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _self(), 0)
            yield
            return
    with _claim(uri):
        yield


def holder(uri: str) -> Holder | None:
    """Who holds the lock at `uri` now. Locks of dead processes are removed."""
    if not storage.is_remote(uri):
        try:
            with _flock_of(uri, make=False, tries=1):
                pass
        except FileNotFoundError:
            pass
        except InUse:
            return _read(uri) or _UNKNOWN
    probe = storage.join(storage.parent(uri), f".probe-{uuid.uuid4().hex}")
    found = [name for name in storage.names(storage.parent(uri)) if _is_claim(uri, name)]
    if not found:
        return None
    storage.write(probe, b"")
    try:
        return next(iter(_claims(uri, probe).values()), None)
    finally:
        storage.delete_file(probe)


def _self() -> bytes:
    body = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    return json.dumps(body).encode()


def _read(uri: str, silent: float | None = None) -> Holder | None:
    """Whom a lock names; None if it was just taken or just freed."""
    try:
        body = json.loads(storage.read(uri))
        return Holder(str(body["host"]), int(body["pid"]), str(body["since"]), silent)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _flock_of(uri: str, make: bool = True, tries: int = _TRIES) -> Iterator[int | None]:
    """A descriptor of the locked file `uri`, which is removed afterwards; None where there is no flock."""
    if storage.is_remote(uri):
        yield None
        return
    path = storage.absolute(uri)
    descriptor = None
    for attempt in range(tries):
        try:
            descriptor = _flock(path, make)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            os.unlink(path)
            yield None
            return
        if descriptor is not None:
            break
        if attempt < tries - 1:
            time.sleep(_PAUSE_S)
    if descriptor is None:
        raise InUse(str(_read(uri) or _UNKNOWN))
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.unlink(path)  # while it is locked: nobody else's file can go
        os.close(descriptor)


def _flock(path: str, make: bool = True) -> int | None:
    """A descriptor of a file that this process has locked now; None if another one has."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who had it has just removed the file


def _is_claim(uri: str, name: str) -> bool:
    return bool(re.fullmatch(re.escape(storage.name(uri)) + r"\.[0-9a-f]{32}", name))


def _claims(uri: str, fresh: str) -> dict[str, Holder]:
    """The processes that claim the lock at `uri`, by the names of their claims; those of dead ones are removed.

    Args:
        uri: the lock.
        fresh: a file beside it that was written just now: its time is the store's.
    """
    folder = storage.parent(uri)
    found = {entry.name: entry for entry in storage.entries(folder)}
    now = found[storage.name(fresh)].changed if storage.name(fresh) in found else None
    alive = {}
    for name, entry in found.items():
        if not _is_claim(uri, name) or name == storage.name(fresh):
            continue
        silent = max(0.0, now - entry.changed) if now is not None and entry.changed is not None else 0.0
        claim = storage.join(folder, name)
        if silent > LEASE_S or _died_here(name[-32:]):
            storage.delete_file(claim)
        elif (known := _read(claim, silent)) or storage.exists(claim):  # one that cannot be read is one
            alive[name] = known or _UNKNOWN
    return alive


def _mark(token: str) -> str:
    """A file of this machine that is locked as long as the process lives that claims with `token`."""
    return os.path.join(tempfile.gettempdir(), f"flowers-{token}.lock")


def _died_here(token: str) -> bool:
    """Whether the process of a claim ran on this machine and is dead."""
    try:
        with _flock_of(_mark(token), make=False, tries=1) as descriptor:
            return descriptor is not None
    except (InUse, OSError):
        return False


@contextmanager
def _claim(uri: str) -> Iterator[None]:
    token = uuid.uuid4().hex
    mine = storage.join(storage.parent(uri), f"{storage.name(uri)}.{token}")
    body = _self()
    done, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            with suppress(OSError, StoreFailed):  # the store does not answer: the claim grows older meanwhile
                before = storage.entry(mine)
                if before is not None:
                    storage.write(mine, body)
                after = storage.entry(mine)
                if before is None or after is None or (after.changed or 0) - (before.changed or 0) > LEASE_S:
                    lost.set()
                    _thread.interrupt_main()
                    return

    thread = threading.Thread(target=beat, name=f"claim {mine}", daemon=True)
    left = False
    try:
        with _flock_of(_mark(token)):
            try:
                _ask(uri, mine, body)
                thread.start()
                yield
            except KeyboardInterrupt as error:
                if not lost.is_set():
                    raise
                raise FlowersError(
                    f"{uri} was lost: this process gave no sign of life for more than {LEASE_S:.0f} s, so another one "
                    "may have gone on; run the same command again"
                ) from error
            finally:
                done.set()
                if thread.is_alive():
                    thread.join(BEAT_S)  # it must not put the claim again
                try:
                    storage.delete_file(mine)
                except (OSError, StoreFailed):  # the claim ends by itself; here, the mark says so at once
                    left = True
    finally:
        if left:
            Path(_mark(token)).touch()


def _ask(uri: str, mine: str, body: bytes) -> None:
    """Puts a claim; of two that only just see each other, the one with the smaller name stays and asks again.

    Raises:
        InUse: another process has one.
    """
    storage.write(mine, body)
    for _ in range(_TRIES):
        others = _claims(uri, mine)
        if not others:
            return
        if min(others) < storage.name(mine):
            break
        time.sleep(_PAUSE_S)
    raise InUse(str(next(iter(others.values()))))
