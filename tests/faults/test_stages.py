"""Something unforeseen in any stage of a job: exit code 1, a line that says what, and the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SMALL, Job, draw

# In the order of the data flow; the first two run in threads of their own.
STAGES = [
    "flowers.pipelines.train.import_tensorflow",
    "flowers.model.backbones.build_backbone",
    "flowers.pipelines.train.list_source",
    "flowers.cluster.nodes.check_storage",
    "flowers.pipelines.train.make_plan",
    "flowers.features.extractor.FeatureExtractor.features",
    "flowers.pipelines.train.settle",
    "flowers.runs.Run.begin",
    "flowers.training.loop._epoch",
    "flowers.training.best.save_best",
    "flowers.pipelines.train.evaluate_bundle",
    "flowers.pipelines.train.build_report",
    "flowers.pipelines.train.write_report",
]
READ = STAGES[STAGES.index("flowers.features.extractor.FeatureExtractor.features") :]
BEGUN = STAGES[STAGES.index("flowers.training.loop._epoch") :]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("stages") / "data", classes=2, each=8)


def boom(*_: Any, **__: Any) -> None:
    raise RuntimeError("boom")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("stage", STAGES)
def test_it_says_what_happened(job: Job, data: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The features are cached from one stage to the next, but for the stage that computes them.
    storage = data.parent / ("cold" if "Extractor" in stage else "runs")
    words = ("--data", data, *SMALL, "--epochs", 1, *(["--verbose"] if len(stage) % 2 else []))
    name = stage.rpartition(".")[2].strip("_")
    with monkeypatch.context() as patch:
        patch.setattr(stage, boom)
        failed = job(storage, name, *words, code=1)
    assert failed.err.splitlines()[-1].startswith("error: ")
    assert "boom" in failed.err.splitlines()[-1]
    assert not (failed.run / "report.json").exists()
    if stage in READ:
        status = json.loads((failed.run / "status.json").read_text())
        assert status["state"] == "failed"
        assert "boom" in status["why"]
    if stage in (BEGUN[0], BEGUN[-1]):
        again = job(storage, name, *words)
        assert json.loads((again.run / "status.json").read_text())["state"] == "done"
        assert again.report["validation"]["n"] > 0
