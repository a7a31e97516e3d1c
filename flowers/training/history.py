"""How far a run is: its epochs, its best one, its phases, and when it ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers import storage
from flowers.config import TrainConfig
from flowers.runs import Run
from flowers.training import checkpoints
from flowers.training.choice import gain, takes_over
from flowers.training.schedule import Phase, phases


@dataclass
class History:
    """The record of a run; all of it is in each checkpoint.

    Attributes:
        run: its folder.
        config: of the run.
        lines: one line of metrics an epoch.
        best: number of the best epoch, 0 before the first.
        best_before: what `best` was an epoch earlier: its checkpoint is still needed should the newest be damaged.
        place: number of the current phase.
        began: epochs done before it.
        rival: number of the best epoch before it, 0 in the first phase: what a deeper one has to beat; None in a run
            that began when there was no such rule.
        mark: the monitored metric when it last got better in this phase by more than `min_delta`.
        waited: epochs since then.
    """

    run: Run
    config: TrainConfig
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    best_before: int = 0
    place: int = 0
    began: int = 0
    rival: int | None = 0
    mark: float | None = None
    waited: int = 0

    @classmethod
    def resume(cls, run: Run, config: TrainConfig) -> tuple[History, checkpoints.Checkpoint | None, list[str]]:
        """The record in the newest complete checkpoint or a new one, that checkpoint, a line for each skipped."""
        found, skipped = checkpoints.newest(run.checkpoints)
        return cls(run, config, **({"rival": None} | found.state if found else {})), found, skipped

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.lines)

    def phase(self) -> Phase | None:
        """The phase to go on with; None when the run is finished."""
        planned = phases(self.config)
        while self.place < len(planned):
            over = self.epoch - self.began >= planned[self.place].epochs
            if not over and not 0 < self.config.patience <= self.waited:
                return planned[self.place]
            self.place, self.began, self.mark, self.waited = self.place + 1, self.epoch, None, 0
            self.rival = None if self.rival is None else self.best
        return None

    def add(self, line: dict[str, Any]) -> None:
        """Takes in the metrics of one more epoch."""
        value = line[f"val_{self.config.monitor}"]
        self.lines.append(line)
        self.best_before = self.best
        best, rival = (self.lines[number - 1] if number else None for number in (self.best, self.rival))
        if takes_over(line, best, rival, self.config.monitor):
            self.best = self.epoch
        if self.mark is None or gain(self.config.monitor, value, self.mark) > self.config.min_delta:
            self.mark, self.waited = value, 0
        else:
            self.waited += 1

    def commit(self, arrays: dict[str, npt.NDArray[np.generic]]) -> str:
        """Writes the checkpoint and the line of metrics of this epoch; returns the checkpoint's URI.

        Raises:
            FlowersError: the disk is full; the earlier checkpoints are whole.
        """
        state = {name: value for name, value in vars(self).items() if name not in ("run", "config")}
        folder = self.run.checkpoints
        uri = checkpoints.save(folder, checkpoints.Checkpoint(self.epoch, arrays, state))
        checkpoints.prune(folder, {self.epoch - 1, self.epoch, self.best, self.best_before})
        self.rewrite()
        return uri

    def rewrite(self) -> None:
        """Makes metrics.jsonl what the newest checkpoint says: a killed epoch leaves no line behind."""
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        with storage.enough_space(self.run.metrics):
            storage.write(self.run.metrics, lines.encode())
