"""How far a run is: its epochs, its best one, its phases, and when it ends."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flowers import storage
from flowers.config import TrainConfig
from flowers.runs import Run
from flowers.training import checkpoints
from flowers.training.choice import gain, monitored, takes_over
from flowers.training.pace import Pace, epochs_that_fit, share_of
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
        budget_s: seconds for the training; None without --time-limit.
        spent_s: seconds that it took so far; what a killed process did after its last checkpoint is not among them.
        planned: epochs of phases, by name, where the time decided: as many as fit by the speed so far.
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
    budget_s: float | None = None
    spent_s: float = 0.0
    planned: dict[str, int] = field(default_factory=dict)

    @classmethod
    def resume(
        cls, run: Run, config: TrainConfig, pace: Pace | None = None
    ) -> tuple[History, checkpoints.Checkpoint | None, list[str]]:
        """The record in the newest complete checkpoint or a new one, that checkpoint, a line for each skipped.

        Args:
            run: its folder.
            config: of the run.
            pace: of a new record; one that goes on keeps its own.
        """
        found, skipped = checkpoints.newest(run.checkpoints)
        if found:
            return cls(run, config, **({"rival": None} | found.state)), found, skipped
        pace = pace or Pace()
        return cls(run, config, budget_s=pace.budget_s, planned=dict(pace.planned)), found, skipped

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.lines)

    def phase(self) -> Phase | None:
        """The phase to go on with, of as many epochs as planned now; None when the run is finished."""
        wanted = phases(self.config)
        while self.place < len(wanted):
            phase = wanted[self.place]
            phase = dataclasses.replace(phase, epochs=self.planned.get(phase.name, phase.epochs))
            over = self.epoch - self.began >= phase.epochs
            if not over and not 0 < self.config.patience <= self.waited:
                return phase
            self.place, self.began, self.mark, self.waited = self.place + 1, self.epoch, None, 0
            self.rival = None if self.rival is None else self.best
        return None

    def add(self, line: dict[str, Any]) -> None:
        """Takes in the metrics of one more epoch."""
        self.lines.append(line)
        self.best_before = self.best
        best, rival = (self.lines[number - 1] if number else None for number in (self.best, self.rival))
        if takes_over(line, best, rival, self.config.monitor):
            self.best = self.epoch
        name = monitored(self.config.monitor, rival is not None)
        value = line[f"val_{name}"]
        if self.mark is None or gain(name, value, self.mark) > self.config.min_delta:
            self.mark, self.waited = value, 0
        else:
            self.waited += 1

    def keep_pace(self, spent_s: float, epoch_s: float) -> None:
        """Plans the epochs of this phase anew, after one of them: the next checkpoint holds the plan.

        Args:
            spent_s: seconds that the training took so far.
            epoch_s: seconds that an epoch takes; 0.0 if that is not known: then the plan stays while there is time.
        """
        if self.budget_s is None:
            return
        self.spent_s = spent_s
        wanted = phases(self.config)
        phase, later = wanted[self.place], wanted[self.place + 1 :]
        left = share_of(self.place, len(wanted), self.budget_s) - spent_s
        if epoch_s or left <= 0:
            self.planned[phase.name] = epochs_that_fit(self.epoch - self.began, phase.epochs, epoch_s, left)
        if spent_s >= self.budget_s:
            self.planned |= {phase.name: 0 for phase in later}

    def give_up(self, phase: Phase) -> None:
        """Ends a phase after the epochs that it has, as no other one fits; each worker calls it."""
        self.planned[phase.name] = self.epoch - self.began

    def amend(self) -> None:
        """Writes what was decided since the newest checkpoint into it."""
        found, _ = checkpoints.newest(self.run.checkpoints)
        if found is not None:
            self.commit(found.arrays)

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
