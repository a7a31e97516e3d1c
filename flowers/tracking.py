"""MLflow: a published bundle, with the run it came from, in a tracking store and its model registry.

What is logged is a model of MLflow's own kind as well: `mlflow.pyfunc.load_model("models:/NAME/1").predict(photos)`
answers with the bundle's predictions, where this project is installed. MLflow is an extra.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowers import storage
from flowers.bundle import MANIFEST, Bundle, load_bundle
from flowers.errors import BadImage, FlowersError, InputError, first_line
from flowers.evaluation.metrics import Summary
from flowers.predictor import Predictor
from flowers.report.record import Report
from flowers.runs import Run

MODEL, BUNDLE = "model", "bundle"
# A store that is not there is told in seconds; MLflow's own defaults wait for many minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# It would tell its maker of each use, and the terminal of each table of its database.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}


class Tracker:
    """A tracking store that answers.

    Args:
        uri: of the store, as MLflow takes it: http://HOST:PORT, sqlite:///FILE. A user and a password are MLflow's
            MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
        name: of the experiment and of the registered model; made when something is logged.

    Raises:
        InputError: MLflow is not installed, or the store does not answer or refuses.
    """

    def __init__(self, uri: str, name: str) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise InputError("--mlflow: the package mlflow-skinny is not installed: pip install '.[mlflow]'")
        for variable, value in (_PATIENCE | _QUIET).items():
            os.environ.setdefault(variable, value)
        self._mlflow = importlib.import_module("mlflow")
        self.uri, self._name = uri, name
        try:
            self._client = self._mlflow.MlflowClient(uri, uri)
            self._client.search_registered_models(max_results=1)
        except Exception as error:  # of MLflow, its database's driver or the network: all of them its own
            raise InputError(
                f"--mlflow: the store {self.uri} cannot be used: {first_line(error)}; required is a tracking store "
                "with a model registry, such as http://HOST:5000 or sqlite:///FILE.db"
            ) from error

    def log(self, bundle: Bundle, number: int, published: str, run: Run | None, report: Report | None) -> str:
        """Logs what was published and registers it as the next version of the model.

        Args:
            bundle: the bundle.
            number: that it was published under.
            published: where.
            run: that it came from, if that is known; its pages and tables are logged.
            report: on it, if there is one: options, metrics and their intervals, every epoch.

        Returns:
            What it is called there, `models:/NAME/VERSION`.

        Raises:
            FlowersError: the store failed meanwhile; what was published stays.
        """
        try:
            return self._log(bundle, number, published, run, report)
        except FlowersError:
            raise
        except Exception as error:
            raise FlowersError(
                f"--mlflow: version {number} is published, and answers, but the store {self.uri} failed: "
                f"{first_line(error)}"
            ) from error

    def _log(self, bundle: Bundle, number: int, published: str, run: Run | None, report: Report | None) -> str:
        client = self._client
        known = client.get_experiment_by_name(self._name)
        experiment = known.experiment_id if known else client.create_experiment(self._name, _beside(self.uri))
        tags = {"flowers.version": str(number), "flowers.published": published}
        logged = client.create_run(experiment, run_name=run.name if run else f"{self._name}-{number}", tags=tags)
        identity = logged.info.run_id
        try:
            if report:
                self._numbers(identity, report)
            with tempfile.TemporaryDirectory(prefix="flowers-") as scratch:
                self._model(identity, bundle, Path(scratch, MODEL))
                client.log_artifacts(identity, scratch)
                for uri in (run.report, run.page, run.split, run.config) if run else ():
                    if storage.exists(uri):
                        copy = Path(scratch, storage.name(uri))
                        copy.write_bytes(storage.read(uri))
                        client.log_artifact(identity, str(copy))
            if not client.search_registered_models(f"name = '{self._name}'"):
                client.create_registered_model(self._name)
            source = f"{logged.info.artifact_uri}/{MODEL}"
            version = client.create_model_version(self._name, source, identity, tags=tags, await_creation_for=None)
        except BaseException:
            client.set_terminated(identity, "FAILED")
            raise
        client.set_terminated(identity)
        return f"models:/{self._name}/{version.version}"

    def _numbers(self, identity: str, report: Report) -> None:
        entities = importlib.import_module("mlflow.entities")
        params = {**report.config, "trained_photos": report.split.train, "classes": len(report.data.classes)}
        metrics = [(f"{name}_{key}", value, 0) for name, key, value in _final(report)]
        for epoch in report.history:
            values = epoch.model_dump(exclude={"epoch", "phase"}, exclude_none=True)
            metrics += [(key, value, epoch.epoch) for key, value in values.items()]
        self._client.log_batch(
            identity,
            metrics=[entities.Metric(key, value, 0, step) for key, value, step in metrics],
            params=[entities.Param(key, str(value)[:6000]) for key, value in params.items()],
        )

    def _model(self, identity: str, bundle: Bundle, folder: Path) -> None:
        """Lays a bundle as a model of MLflow's."""
        (folder / BUNDLE).mkdir(parents=True)
        names = tuple(bundle.manifest["files"])
        with bundle.local_files(*names) as files:
            for name in names:
                (folder / BUNDLE / name).write_bytes(Path(files, name).read_bytes())
        manifest = storage.read(storage.join(bundle.uri, MANIFEST))
        (folder / BUNDLE / MANIFEST).write_bytes(manifest)
        pyfunc = importlib.import_module("mlflow.pyfunc")
        model = importlib.import_module("mlflow.models").Model(run_id=identity)
        pyfunc.add_to_model(model, loader_module=__name__, data=BUNDLE)
        model.save(str(folder / "MLmodel"))


def _beside(uri: str) -> str | None:
    """Where files are logged that belong to a database in a file: beside it, not, as MLflow would, where the job was
    started. None for a store that knows itself.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return str(Path(uri.removeprefix("sqlite:///")).resolve().with_name("mlruns"))


def _final(report: Report) -> Iterable[tuple[str, str, float]]:
    """Metrics of the bundle with their intervals: of which photos, name, value."""
    summaries: dict[str, Summary] = {"test": report.test, "validation": report.validation}
    for name, summary in summaries.items():
        for metric in ("accuracy", "macro_accuracy", "log_loss"):
            estimate = getattr(summary, metric)
            for end in ("value", "low", "high"):
                if (value := getattr(estimate, end)) is not None:
                    yield f"best_{name}", metric if end == "value" else f"{metric}_{end}", value


class PhotoModel:
    """What MLflow makes of a logged model: photos in, predictions out.

    Args:
        predictor: of the bundle.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, photos: Sequence[bytes], params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The label, the score and all scores of each photo; of a file that is no usable photo, why.

        Args:
            photos: the bytes of n files.
            params: none are known.
        """
        classes, rows = self._predictor.bundle.classes, list[dict[str, Any]]()
        for found in self._predictor.predict(list(photos)):
            if isinstance(found, BadImage):
                rows.append({"error": str(found)})
            else:
                scores = dict(zip(classes, found.probabilities.tolist(), strict=True))
                rows.append({"label": found.label, "score": found.score, "scores": scores})
        return rows


def _load_pyfunc(path: str) -> PhotoModel:
    """MLflow calls it with the folder of a logged bundle."""
    return PhotoModel(Predictor(load_bundle(path)))
