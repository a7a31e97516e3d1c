"""What a long stage shows while it runs, and where the time of a run went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from flowers.errors import StoreFailed
from flowers.text import plain

_POLL_S = 0.25


class _Speed(TextColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """See `TextColumn`."""
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


def warn(text: str, out: Console) -> None:
    """Prints a warning."""
    out.print(f"[yellow]warning[/]: {escape(plain(text))}", highlight=False)


@contextmanager
def progress_bar(out: Console, what: str, total: int, speed: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, nothing elsewhere; yields the function that moves it on.

    Args:
        out: the terminal.
        what: stands before the bar.
        total: steps to the end.
        speed: whether it says how many images a second it moves.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    columns += [_Speed("")] if speed else []
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)


@contextmanager
def polled(look: Callable[[], None], name: str) -> Iterator[None]:
    """Calls `look` four times a second in a thread of that name, and once more at the end."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(_POLL_S):
            with suppress(StoreFailed):  # whoever needs the store will say so
                look()

    thread = threading.Thread(target=poll, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()


class Stopwatch:
    """Seconds of wall time by stage; every moment belongs to exactly one, so they add up to the total.

    Args:
        began: `time.monotonic()` at the start of the job: no clock that somebody may set.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._last = began
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> float:
        """Books the time since the last lap to `stage` and returns it."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        return spent

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the job."""
        return time.monotonic() - self._began

    def move(self, seconds: float, source: str, target: str) -> None:
        """Books `seconds` of stage `source`, at most all of them, to `target` instead."""
        seconds = min(seconds, self.seconds[source])
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def report(self) -> dict[str, float]:
        """Seconds of each stage and their `total`, rounded to 10 ms."""
        rounded = {stage: round(seconds, 2) for stage, seconds in self.seconds.items()}
        return {"total": round(self._last - self._began, 2), **rounded}
