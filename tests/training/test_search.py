"""The search: one option after the other, chosen by validation photos, and a trial that is done stays."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from flowers.config import TrainConfig
from flowers.data.ledger import ROW, settle
from flowers.pipelines import fit
from flowers.plan import Plan
from flowers.progress import Stopwatch
from flowers.runs import Run
from flowers.training import trainer
from flowers.training.inner import Outcome, read_outcome, write_outcome
from flowers.training.search import Trial, best_of, changed, changes, most_trials, others, searched

HEAD, DEEPER = TrainConfig(), TrainConfig(trainable="stage5")


def values(config: TrainConfig, name: str) -> list[float]:
    return [getattr(other, name) for other in others(config, name)]


def test_what_is_tried() -> None:
    assert [values(HEAD, name) for name in searched(HEAD)] == [[0.000333, 0.003], [0.0, 0.1], [0.0, 0.5], [0.02, 0.1]]
    assert (searched(DEEPER)[0], values(DEEPER, "label_smoothing")) == ("tail_learning_rate", [0.0, 0.1])
    assert "weight_decay" not in searched(HEAD.replace(optimizer="sgd"))
    assert values(HEAD.replace(dropout=0.3, weight_decay=0.0), "dropout") == [0.0, 0.2, 0.5]
    assert values(HEAD.replace(weight_decay=0.0), "weight_decay") == [0.1]
    assert (most_trials(HEAD), most_trials(DEEPER)) == (9, 9)
    assert changes(HEAD, HEAD.replace(dropout=0.5, learning_rate=0.003)) == "--learning-rate 0.003 --dropout 0.5"
    assert changed(HEAD, HEAD) == {}


@pytest.mark.parametrize(("monitor", "best"), [("log_loss", 1), ("accuracy", 2), ("macro_accuracy", 0)])
def test_the_best_is_that_of_the_monitored_metric_and_of_equals_the_first(monitor: str, best: int) -> None:
    trials = [Trial(HEAD, 1, *numbers) for numbers in ((0.7, 0.9, 0.5), (0.7, 0.8, 0.4), (0.8, 0.9, 0.4))]
    assert best_of(trials, monitor) is trials[best]


def test_it_goes_from_option_to_option_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a training whose log-loss is known: least at a rate of 0.003 with no decay and a dropout of 0.5."""
    trained: list[tuple[str, dict[str, Any]]] = []
    rows = [{"path": f"/{n}", "label": "ab"[n % 2], "sha256": n.to_bytes(32, "big")} for n in range(40)]
    ledger = settle(pa.Table.from_pylist(rows, schema=ROW), (0.5, 0.25, 0.25), 0, 0.0)

    def pretend(plan: Plan, classes: Sequence[str], say: Callable[[str], None], inner: list[Plan], pace: Any) -> None:
        del plan, classes, say, pace
        for training in inner:
            if read_outcome(training.run) is None:
                config, split = training.config, pq.read_table(training.run.split)
                assert set(split["split"].to_pylist()) == {"train", "validation"}, "test photos choose nothing"
                trained.append((training.run.name, changed(HEAD, config)))
                loss = abs(config.learning_rate - 0.003) + config.weight_decay + (config.dropout != 0.5)
                line = {"epoch": 5, "val_accuracy": 0.5, "val_macro_accuracy": 0.5, "val_log_loss": loss}
                write_outcome(training.run, Outcome(line, []))

    monkeypatch.setattr(trainer, "fit", pretend)
    plan = Plan(
        config=HEAD, run=Run(str(tmp_path)), image_size=8, weights="random", start_weights="r", precision="float32"
    )
    out = io.StringIO()

    def searching() -> tuple[Plan, list[Trial]]:
        return fit.search(plan, ledger, None, Stopwatch(time.monotonic()), Console(file=out, width=200))

    chosen, trials = searching()
    assert changed(HEAD, chosen.config) == {"learning_rate": 0.003, "weight_decay": 0.0, "dropout": 0.5}
    assert chosen.run == plan.run
    assert [name for name, _ in trained] == [str(number) for number in range(1, 10)]
    tried = [options for _, options in trained]
    assert tried[:4] == [{}, {"learning_rate": 0.000333}, {"learning_rate": 0.003}, tried[3]]
    assert tried[3] == {"learning_rate": 0.003, "weight_decay": 0.0}
    assert all(options.items() >= chosen_of(chosen, "learning_rate").items() for options in tried[3:])
    assert "--learning-rate 0.003 --weight-decay 0 --dropout 0.5" in out.getvalue()

    Path(Run(str(tmp_path)).trial(4).outcome).write_text("torn")
    assert searching() == (chosen, trials)
    assert [name for name, _ in trained[9:]] == ["4"]


def chosen_of(plan: Plan, name: str) -> dict[str, Any]:
    return {name: getattr(plan.config, name)}
