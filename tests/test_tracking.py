"""MLflow: what is published is logged, registered, and answers when MLflow loads it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from flowers.bundle import load_bundle
from flowers.config import PublishOptions
from flowers.errors import FlowersError, InputError
from flowers.pipelines.publish import publish
from flowers.predictor import Predictor
from flowers.report.files import read_report
from flowers.runs import Run
from flowers.tracking import Tracker
from tests.pipelines.test_publish import bad as bad
from tests.pipelines.test_publish import good as good
from tests.pipelines.test_publish import patched
from tests.pipelines.test_publish import photos as photos


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A tracking store in a file."""
    return f"sqlite:///{tmp_path / 'store.db'}"


def published(run: Run, folder: Path, store: str) -> list[str]:
    """What the command prints."""
    printed: list[str] = []
    publish(run.uri, PublishOptions(to=str(folder), mlflow=store), patched(printed))
    return printed


def test_what_is_published_is_logged_registered_and_answers(
    tmp_path: Path, store: str, good: Run, bad: Run, photos: dict[Path, tuple[str, str]]
) -> None:
    model = tmp_path / "models" / "colours"
    assert published(good, model, store)[-2:] == [f"published {model}/1", f"logged    {store}: models:/colours/1"]
    assert published(bad, model, store)[-1] == f"logged    {store}: models:/colours/2"

    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(store, store)
    first, second = (client.get_model_version("colours", number) for number in ("1", "2"))
    assert first.tags == {"flowers.version": "1", "flowers.published": str(model / "1")}
    logged = client.get_run(first.run_id)
    assert logged.info.status == "FINISHED"
    assert client.get_experiment(logged.info.experiment_id).name == "colours"
    report = read_report(good)
    assert logged.data.metrics["best_test_accuracy"] == report.test.accuracy.value
    assert logged.data.metrics["best_test_accuracy_low"] == report.test.accuracy.low
    assert logged.data.metrics["val_accuracy"] == report.history[-1].val_accuracy
    assert len(client.get_metric_history(first.run_id, "loss")) == len(report.history)
    assert logged.data.params.items() >= {name: str(value) for name, value in report.config.items()}.items()
    assert Path(logged.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlruns"), "not beside it"
    names = {file.path for file in client.list_artifacts(first.run_id)}
    assert {"report.json", "report.html", "split.parquet", "config.json", "model"} >= names >= {"report.json", "model"}

    mlflow.set_tracking_uri(store)
    chosen = sorted(photos)[:4]
    content = [path.read_bytes() for path in chosen]
    for version, run in ((first, good), (second, bad)):
        answers = mlflow.pyfunc.load_model(version.source).predict([*content, b"no photo"])
        expected: list[Any] = Predictor(load_bundle(run.bundle)).predict(content)
        assert [one["label"] for one in answers[:-1]] == [one.label for one in expected]
        assert answers[0]["scores"] == dict(zip(expected_classes(run), expected[0].probabilities.tolist(), strict=True))
        assert answers[-1]["error"].startswith("not_a_photo")


def expected_classes(run: Run) -> tuple[str, ...]:
    return load_bundle(run.bundle).classes


def test_a_store_that_cannot_be_used_is_told_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: Run
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for store in ("http://127.0.0.1:9", "sqlite:////dev/null/store.db", "pigeon://post"):
        with pytest.raises(InputError, match=r"^--mlflow: the store \S+ cannot be used: .* such as http://") as caught:
            published(good, tmp_path / "models" / "colours", store)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="with a user or a password"):
        published(good, tmp_path / "models" / "colours", "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is not installed: pip install '.\[mlflow\]'"):
        published(good, tmp_path / "models" / "colours", "sqlite:///x.db")
    assert not (tmp_path / "models").exists()


def test_a_store_that_fails_meanwhile(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, good: Run) -> None:
    def failing(*_: object) -> None:
        raise OSError("the disk of the store is full")

    monkeypatch.setattr(Tracker, "_model", failing)
    with pytest.raises(FlowersError, match=r"version 1 is published, and answers, but the store .* is full$"):
        published(good, tmp_path / "models" / "colours", store)
    assert load_bundle(str(tmp_path / "models" / "colours" / "1"))
    client = importlib.import_module("mlflow").MlflowClient(store, store)
    (run,) = client.search_runs([client.get_experiment_by_name("colours").experiment_id])
    assert run.info.status == "FAILED"
