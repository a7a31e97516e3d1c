"""The errors a caller may meet.

FlowersError            base: its text is one line for the user
├── InputError          the user's data or options are wrong          (exit code 2)
│   ├── DownloadError   a source could not be fetched                 (exit code 2)
│   ├── AccessDenied    a cluster does not take the token             (exit code 2)
│   └── NoRoom          a cluster has too few or too small machines   (exit code 2)
├── BadImage            one file is not a usable photo                (goes to the ledger)
├── DamagedFile         a cache part, checkpoint or bundle fails its hash
├── ProcessLost         a process that computed for this one has gone (exit code 1)
├── StoreFailed         an object store fails however often it is asked (exit code 1)
├── GateNotMet          a bundle, or a cluster, is not as was asked for (exit code 3)
├── TrainingDiverged    the loss is no longer a finite number         (exit code 1)
└── OutOfMemory         the network does not fit into memory          (exit code 1)

Every class can be pickled, so it survives the way from a Ray worker to the driver.
"""

from __future__ import annotations

from collections.abc import Sequence


class FlowersError(Exception):
    """Base of every error raised on purpose; its text is one line meant for the user."""


class InputError(FlowersError):
    """The data or the options are wrong: says what was received, what is required, what to do."""


class DownloadError(InputError):
    """A source could not be fetched."""


class AccessDenied(InputError):
    """A cluster does not let this process in: the token is missing or wrong, or cannot be read."""


class NoRoom(InputError):
    """What was asked for does not fit on the machines of the cluster; it may when there are more."""


class BadImage(FlowersError):
    """A file that is not a usable photo.

    Attributes:
        code: one of the reason codes of `flowers.data.ledger`, e.g. ``"truncated"``.
        detail: one line for a person.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class DamagedFile(FlowersError):
    """A stored file does not match its recorded hash or cannot be read."""


class ProcessLost(FlowersError):
    """A process that computed for this one, or its node, has gone; what it did can be done again by others."""


class StoreFailed(FlowersError):
    """An object store fails, or does not answer, however often it is asked; no file is to blame."""


class GateNotMet(FlowersError):
    """A bundle, or a cluster, is not as was asked for: says what was measured and what was required."""


class TrainingDiverged(FlowersError):
    """The training loss is not finite; the text names the epoch, and the step if one is to blame."""


class OutOfMemory(FlowersError):
    """The network did not fit into memory; `retry` says that another attempt will take fewer photos at a time."""

    def __init__(self, message: str, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names of many, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
