"""Photos of none of the classes: what each protocol says of them, with --unknown and without."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import generate_latest

from flowers.bundle import load_bundle
from flowers.errors import InputError
from flowers.predictor import Prediction, Predictor
from serving.protocols import mlnet, native, open_inference, tensorflow_serving
from serving.service import Answer
from tests.serving.conftest import SHOWN, FakeService
from tests.serving.server import publish
from tests.toys import saved_by_colour

OTHER, KNOWN = b"other photo", b"photo"
REASON = "none of these: 1.2 % of photos of these classes are as unusual, the limit is 5 %"


@pytest.fixture
def telling(service: FakeService) -> TestClient:
    """A client of a server with --unknown 0.05."""
    service.unknown = 0.05
    app = FastAPI()
    for protocol in (native, tensorflow_serving, open_inference, mlnet):
        app.include_router(protocol.router(service))
    return TestClient(app)


def test_native(telling: TestClient, service: FakeService) -> None:
    photos = [("a", ("a.jpg", OTHER)), ("b", ("b.jpg", KNOWN))]
    other, known = telling.post("/predict?top=2&heatmap=1", files=photos).json()["items"]
    assert (other["label"], other["typicality"], other["reason"]) == (None, 0.012346, REASON)
    assert other["score"] == other["top"][0]["score"] == round(service.answer(OTHER).score, 6)
    assert len(other["heatmap"]) == 2
    assert (known["label"], known["typicality"]) == (known["top"][0]["label"], 0.5)
    assert "reason" not in known
    assert list(other)[1:5] == ["label", "score", "typicality", "reason"]


def test_tensorflow_serving(telling: TestClient) -> None:
    photos = [{"b64": base64.b64encode(photo).decode()} for photo in (OTHER, KNOWN)]
    other, known = telling.post("/v1/models/flowers:predict", json={"instances": photos}).json()["predictions"]
    assert (other["label"], round(other["typicality"], 6), known["typicality"]) == ("", 0.012346, 0.5)
    assert known["label"] in SHOWN
    columns = telling.post("/v1/models/flowers:predict", json={"inputs": photos}).json()["outputs"]
    assert columns["label"] == ["", known["label"]]
    assert columns["typicality"] == [other["typicality"], 0.5]
    described = telling.get("/v1/models/flowers/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert described["serving_default"]["outputs"]["typicality"]["dtype"] == "DT_FLOAT"


def test_open_inference(telling: TestClient) -> None:
    metadata = telling.get("/v2/models/flowers").json()
    assert metadata["parameters"]["unknown"] == 0.05
    assert metadata["outputs"][-1] == {"name": "typicality", "datatype": "FP32", "shape": [-1]}
    data = [base64.b64encode(photo).decode() for photo in (OTHER, KNOWN)]
    call: dict[str, Any] = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": data}]}
    outputs = {
        one["name"]: one["data"] for one in telling.post("/v2/models/flowers/infer", json=call).json()["outputs"]
    }
    assert outputs["label"][0] == ""
    assert outputs["label"][1] in SHOWN
    np.testing.assert_allclose(outputs["typicality"], [0.0123456789, 0.5])
    call["outputs"] = [{"name": "typicality"}]
    assert [one["name"] for one in telling.post("/v2/models/flowers/infer", json=call).json()["outputs"]] == [
        "typicality"
    ]


def test_mlnet(telling: TestClient) -> None:
    for photo, labels in ((OTHER, (None,)), (KNOWN, SHOWN)):
        answer = telling.post("/api/ImageClassification/classifyImage", files={"imageFile": ("a.jpg", photo)}).json()
        assert answer["predictedLabel"] in labels
        assert list(answer) == ["imageId", "predictedLabel", "probability", "predictionExecutionTime"]


def test_nothing_is_said_without_it(client: TestClient) -> None:
    assert not {"typicality", "reason"} & set(client.post("/predict", content=OTHER).json())
    photos = {"instances": [{"b64": base64.b64encode(OTHER).decode()}]}
    (row,) = client.post("/v1/models/flowers:predict", json=photos).json()["predictions"]
    assert list(row) == ["scores", "classes", "label", "score"]
    data = [base64.b64encode(OTHER).decode()]
    call = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}
    response = client.post("/v2/models/flowers/infer", json={**call, "outputs": [{"name": "typicality"}]})
    assert response.status_code == 400
    assert len(client.post("/v2/models/flowers/infer", json=call).json()["outputs"]) == 3


def png(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes replicas."""
    from serving import replica
    from serving.metrics import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    return lambda bundle, **options: replica.Classifier({"bundle": str(bundle), "watch_s": 0, **options})


def test_a_replica_says_what_the_predictor_says_and_counts(replica: Callable[..., Any], tmp_path: Path) -> None:
    bundle = saved_by_colour(tmp_path / "best", ["daisy", "rose", "tulip"])
    photos = [png(220, 20, 20), png(90, 90, 90), png(10, 20, 230), png(0, 0, 0)]
    for unknown, labels in ((None, ["daisy", "daisy", "tulip", "daisy"]), (0.1, ["daisy", None, "tulip", None])):
        classifier = replica(bundle, unknown=unknown)
        model, answers = asyncio.run(classifier.classify(photos))
        assert (model.unknown, [answer.label for answer in answers]) == (unknown, labels)
        expected = Predictor(load_bundle(str(bundle)), unknown=unknown).predict(photos)
        for answer, wanted in zip(answers, expected, strict=True):
            assert isinstance(answer, Answer)
            assert isinstance(wanted, Prediction)
            assert (answer.typicality, answer.reason) == (wanted.typicality, wanted.reason)
        classifier.metrics.update_gauges()
        lines = generate_latest(classifier.metrics._own).decode().splitlines()
        counted = sum(float(line.split()[-1]) for line in lines if line.startswith("flowers_predictions_total"))
        strangers = sum(label is None for label in labels)
        assert counted == 4 - strangers
        assert f"flowers_unknown_total {float(strangers)}" in lines
        allowed = [line for line in lines if line.startswith("flowers_validation_unknown_share")]
        assert allowed[0].endswith(f" {float(unknown or 0)}")


def test_a_version_that_cannot_tell_is_not_served(replica: Callable[..., Any], tmp_path: Path) -> None:
    """At the start it ends the server; later the old version answers on."""
    models = tmp_path / "models"
    publish(models, 2)
    with pytest.raises(InputError, match=r"version 2 is refused: --unknown: the bundle .* train it again"):
        replica(models, unknown=0.05)
    saved_by_colour(models / "flowers" / "1", ["daisy", "rose", "tulip"])
    classifier = replica(models, unknown=0.05)
    assert (classifier.describe().version, classifier.ready) == (1, True)
    assert "version 2 is refused: --unknown" in classifier.describe().last_reload_error
