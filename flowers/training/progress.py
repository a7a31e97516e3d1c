"""Progress of training, from metrics.jsonl, wherever it is trained: one line an epoch, and TensorBoard."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from flowers import storage
from flowers.progress import polled, warn
from flowers.runs import Run
from flowers.training.choice import takes_over


@contextmanager
def follow(run: Run, out: Console, monitor: str | None) -> Iterator[None]:
    """Prints the epochs that are new and writes all of them to the run's `tensorboard/` folder.

    Args:
        run: its folder.
        out: where the lines are printed.
        monitor: the metric that was asked for, by which an epoch is called the best so far.
    """
    follower = _Follower(run, out, monitor)
    follower.look(show=False)
    if follower.lines:
        out.print(f"going on after epoch {len(follower.lines)}")
    try:
        with polled(follower.look, "follow metrics"):
            yield
    finally:
        follower.close()


class _Follower:
    def __init__(self, run: Run, out: Console, monitor: str | None) -> None:
        self._run, self._out = run, out
        self._monitor = monitor
        self._best: dict[str, Any] | None = None
        self._rival: dict[str, Any] | None = None
        self.lines: list[dict[str, Any]] = []
        self._target = run.tensorboard
        storage.delete(self._target)
        self._folder = tempfile.mkdtemp(prefix="flowers-") if storage.is_remote(run.uri) else self._target
        # Not its SummaryWriter: that writes in a thread, for which everybody waits when it has ended on a full disk.
        self._board: EventsWriter | None = None
        with self._optional():
            os.makedirs(self._folder, exist_ok=True)
            self._board = EventsWriter(os.path.join(self._folder, "events"))

    def look(self, show: bool = True) -> None:
        """Takes in the lines that have come since the last look."""
        try:
            text = storage.read(self._run.metrics).decode()
        except OSError:
            return
        for raw in text.splitlines()[len(self.lines) :]:
            line = json.loads(raw)
            if self.lines and line["phase"] != self.lines[-1]["phase"]:
                self._rival = self._best
            self.lines.append(line)
            if better := takes_over(line, self._best, self._rival, self._monitor):
                self._best = line
            with self._optional():
                self._note(line)
            if show:
                self._out.print(
                    f"epoch {line['epoch']:3d}   {line['phase']}   loss {line['loss']:.4f}   validation: accuracy "
                    f"{line['val_accuracy']:.4f}  log-loss {line['val_log_loss']:.4f}   "
                    f"learning rate {line['learning_rate']:.2e}   {line['seconds']:.2f} s{'   best' if better else ''}",
                    highlight=False,
                )

    def _note(self, line: dict[str, Any]) -> None:
        """Writes a line of metrics for TensorBoard."""
        if self._board is None:
            return
        for name, value in line.items():
            if name not in ("epoch", "phase", "seconds"):
                group = "validation" if name.startswith("val_") else "training"
                summary = scalar(f"{group}/{name.removeprefix('val_')}", value)
                self._board.write_event(Event(wall_time=time.time(), step=line["epoch"], summary=summary))
        self._board.flush()

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """Goes on without TensorBoard where it cannot be written: metrics.jsonl says the same."""
        try:
            yield
        except OSError as error:
            self._board = None
            warn(f"nothing more for TensorBoard: {error.strerror or error}", self._out)

    def close(self) -> None:
        """Ends the TensorBoard file and puts it where the run is."""
        with self._optional():
            if self._board is not None:
                self._board.close()
            if self._folder != self._target:
                storage.publish(self._folder, self._target, last="")
        if self._folder != self._target:
            shutil.rmtree(self._folder, ignore_errors=True)
