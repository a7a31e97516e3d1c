"""Admission: photos are taken that will be answered soon, and no more bytes than fit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.options import COPIES, ServeOptions
from serving.service import Overloaded

# Each batch changes the known pace by its share of so many photos: a slow one alone refuses nobody.
_REMEMBERED = 128
# A refusal waits so long, and longer from so many a second on, up to a little more than clients are told to wait. Those
# that come back at once, hundreds of them, would else keep a core busy with refusals alone; waiting costs nothing.
_REFUSAL_S, _MANY_REFUSALS, _LONGEST_REFUSAL_S = 0.025, 1000, 2.0


class Refusals:
    """How long a refusal waits: the more there are, the longer."""

    def __init__(self) -> None:
        self._rate = self._last = 0.0

    def wait_s(self) -> float:
        """Seconds for one that is to be sent now."""
        now = time.monotonic()
        self._rate = 1 + self._rate * math.exp(self._last - now)  # in the last second, more or less
        self._last = now
        return min(_LONGEST_REFUSAL_S, _REFUSAL_S * max(1.0, self._rate / _MANY_REFUSALS) ** 4)


class Admission:
    """Counts what is on its way through a replica, and refuses what would have to wait too long.

    Args:
        options: the limits.
        pace: seconds that the network takes for a photo when many travel together.

    Attributes:
        waiting: photos that are taken and not answered yet.
        held: memory that requests take.
        refusals: how long they wait.
        pace: seconds after which the next photo is answered while others wait, decoding included; it follows the
            batches that are run.
    """

    def __init__(self, options: ServeOptions, pace: float) -> None:
        self._options = options
        self.waiting = self.held = 0
        self.refusals = Refusals()
        self.pace = pace
        self._busy_since = math.nan  # the end of the last batch, if photos waited then

    def check(self, photos: int = 1, size: int = 0) -> None:
        """Whether so many photos, and requests of so many bytes, may come now.

        Raises:
            Overloaded: they may not.
        """
        wait_s = self.waiting * self.pace
        if wait_s > self._options.max_wait_s:
            raise Overloaded(f"a photo would wait {wait_s:.1f} s, at most {self._options.max_wait_s:g} s; try again")
        if self.waiting + photos > self._options.max_waiting:
            raise Overloaded(f"{self.waiting} photos are waiting, at most {self._options.max_waiting} may; try again")
        self._check_memory(size)

    def hold(self, size: int) -> None:
        """Counts memory for bytes of a request that have come, until `release`; raises as `check`."""
        self._check_memory(size)
        self.held += COPIES * size

    def release(self, size: int) -> None:
        """The bytes are gone."""
        self.held -= COPIES * size

    def _check_memory(self, size: int) -> None:
        most = self._options.max_held_bytes
        if self.held + COPIES * size > most:
            raise Overloaded(f"requests take {self.held} bytes of memory, at most {most} may; try again")

    @contextmanager
    def take(self, photos: int) -> Iterator[None]:
        """Counts photos until they are answered; raises as `check`."""
        self.check(photos)
        self.waiting += photos
        try:
            yield
        finally:
            self.waiting -= photos

    def learn(self, photos: int, seconds: float) -> None:
        """Takes in a batch that has just ended, and is not answered yet.

        Args:
            photos: in it.
            seconds: that the network took. What counts is the time since the batch before it, if photos waited all
                the while: then the network waited for its photos to be decoded.
        """
        now = time.perf_counter()
        if not math.isnan(self._busy_since):
            seconds = now - self._busy_since
        self._busy_since = now if self.waiting > photos else math.nan
        self.pace += (seconds / photos - self.pace) * min(1.0, photos / _REMEMBERED)
