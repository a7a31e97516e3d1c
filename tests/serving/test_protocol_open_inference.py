"""The Open Inference Protocol over JSON and bytes; `test_tritonclient.py` asks with the real client."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowers
from flowers.data.images import decode
from serving.protocols.openapi import PHOTO
from serving.protocols.tensors import pack_bytes, unpack_bytes
from serving.service import Overloaded
from tests.serving.conftest import CLASSES, PACKED, SHOWN, SIZE, FakeService

MODEL = "/v2/models/flowers"
VERSIONED = "/v2/models/flowers/versions/3"
LENGTH = "Inference-Header-Content-Length"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


def image(*photos: bytes) -> dict[str, Any]:
    data = [base64.b64encode(photo).decode() for photo in photos]
    return {"name": "image", "datatype": "BYTES", "shape": [len(photos)], "data": data}


def pixels(data: Any, **rest: Any) -> dict[str, Any]:
    shape = list(PIXELS.shape)
    return {"name": "pixels", "datatype": "UINT8", "shape": shape, **({} if data is None else {"data": data}), **rest}


def expected(service: FakeService, *photos: bytes) -> dict[str, Any]:
    answers = [service.answer(photo) for photo in photos]
    labels = [SHOWN[CLASSES.index(str(answer.label))] for answer in answers]
    probabilities = [value for answer in answers for value in answer.probabilities.tolist()]
    count = len(answers)
    return {
        "model_name": "flowers",
        "model_version": "3",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [count, 5], "data": probabilities},
            {"name": "label", "datatype": "BYTES", "shape": [count], "data": labels},
            {"name": "score", "datatype": "FP32", "shape": [count], "data": [answer.score for answer in answers]},
        ],
    }


def test_the_server(client: TestClient) -> None:
    response = client.get("/v2")
    extensions = ["binary_tensor_data", "classification"]
    expected = {"name": "flowers", "version": flowers.__version__, "extensions": extensions}
    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(("is_ready", "status"), [(True, 200), (False, 503)])
def test_health(client: TestClient, service: FakeService, is_ready: bool, status: int) -> None:
    service.ready = is_ready
    response = client.get("/v2/health/ready")
    assert (response.status_code, response.json()) == (status, {"ready": is_ready})
    for url in (f"{MODEL}/ready", f"{VERSIONED}/ready"):
        response = client.get(url)
        assert (response.status_code, response.json()) == (status, {"name": "flowers", "ready": is_ready})
    response = client.get("/v2/health/live")
    assert (response.status_code, response.json()) == (200, {"live": True})


@pytest.mark.parametrize("url", [MODEL, VERSIONED])
def test_metadata(client: TestClient, url: str) -> None:
    response = client.get(url)
    assert (response.status_code, response.json()) == (
        200,
        {
            "name": "flowers",
            "versions": ["3"],
            "platform": "keras",
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]},
            ],
            "outputs": [
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 5]},
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "score", "datatype": "FP32", "shape": [-1]},
            ],
            "parameters": {
                "classes": list(SHOWN),
                "image_size": SIZE,
                "stored_versions": ["1", "2", "3"],
                "last_reload_error": "version 4 is damaged",
                "keeps_photos": False,
                "unknown": None,
            },
        },
    )


@pytest.mark.parametrize("end", ["", "/ready", "/infer"])
def test_unknown_models_and_versions(client: TestClient, end: str) -> None:
    def ask(url: str) -> tuple[int, Any]:
        response = client.post(url + end, content=b"not read") if end == "/infer" else client.get(url + end)
        return response.status_code, response.json()

    assert ask("/v2/models/other") == (404, {"error": 'there is no model "other" here, only "flowers"'})
    for version in ("2", "x", "03"):
        error = {"error": f'version "{version}" is not loaded; the one that is: 3'}
        assert ask(f"{MODEL}/versions/{version}") == (404, error)


@pytest.mark.parametrize(("url", "version"), [(MODEL, None), (VERSIONED, 3)])
def test_photos(client: TestClient, service: FakeService, url: str, version: int | None) -> None:
    response = client.post(f"{url}/infer", json={"inputs": [image(b"one", b"two")]})
    assert (response.status_code, response.json()) == (200, expected(service, b"one", b"two"))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    assert service.asked == [([b"one", b"two"], version)]


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.ravel().tolist()])
def test_pixels(client: TestClient, service: FakeService, data: list[Any]) -> None:
    response = client.post(f"{VERSIONED}/infer", json={"id": "7 ☃", "inputs": [pixels(data)]})
    photos = [photo.tobytes() for photo in PIXELS]
    assert (response.status_code, response.json()) == (200, {**expected(service, *photos), "id": "7 ☃"})
    assert service.asked == [(photos, 3)]


def test_an_id_of_a_lone_surrogate(client: TestClient) -> None:
    response = client.post(f"{MODEL}/infer", content=json.dumps({"id": "\ud800", "inputs": [image(b"one")]}))
    assert response.json()["id"] == "?"


def test_outputs_that_are_asked_for(client: TestClient, service: FakeService) -> None:
    call = {"inputs": [image(b"one")], "outputs": [{"name": "score"}, {"name": "label", "parameters": {}}]}
    response = client.post(f"{MODEL}/infer", json=call)
    whole = expected(service, b"one")
    assert response.json() == {**whole, "outputs": [whole["outputs"][2], whole["outputs"][1]]}


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (5, 5), (9, 5)])
def test_classification(client: TestClient, service: FakeService, count: int, shown: int) -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": count}}]
    response = client.post(f"{MODEL}/infer", json={"inputs": [image(b"one", b"two")], "outputs": outputs})
    lines = []
    for photo in (b"one", b"two"):
        values = service.answer(photo).probabilities
        order = sorted(range(5), key=lambda index: -values[index])[:shown]
        lines += [f"{values[index]:.6f}:{index}:{SHOWN[index]}" for index in order]
    assert response.json()["outputs"] == [
        {"name": "probabilities", "datatype": "BYTES", "shape": [2, shown], "data": lines}
    ]


def test_bytes_in_and_out(client: TestClient, service: FakeService) -> None:
    """With `binary_data_output` all that does not say otherwise follows the JSON."""
    packed = pack_bytes([b"one", b"two"])
    data = {k: v for k, v in image(b"", b"").items() if k != "data"}
    call = {
        "parameters": {"binary_data_output": True},
        "inputs": [{**data, "parameters": {"binary_data_size": len(packed)}}],
        "outputs": [
            {"name": "label"},
            {"name": "score", "parameters": {"binary_data": False}},
            {"name": "probabilities"},
        ],
    }
    text = json.dumps(call).encode()
    response = client.post(f"{MODEL}/infer", content=text + packed, headers={LENGTH: str(len(text))})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    answers = [service.answer(b"one"), service.answer(b"two")]
    labels = pack_bytes([PACKED[CLASSES.index(str(answer.label))] for answer in answers])
    numbers = np.stack([answer.probabilities for answer in answers]).astype("<f4").tobytes()
    assert json.loads(response.content[:length]) == {
        "model_name": "flowers",
        "model_version": "3",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(labels)}},
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [answer.score for answer in answers]},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 5], "parameters": {"binary_data_size": 40}},
        ],
    }
    assert response.content[length:] == labels + numbers


def test_pixels_as_bytes_and_classes_as_bytes(client: TestClient, service: FakeService) -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 1, "binary_data": True}}]
    given = pixels(None, parameters={"binary_data_size": PIXELS.nbytes})
    text = json.dumps({"inputs": [given], "outputs": outputs}).encode()
    headers = {LENGTH: str(len(text))}
    response = client.post(f"{MODEL}/infer", content=text + PIXELS.tobytes(), headers=headers)
    length = int(response.headers[LENGTH])
    lines = []
    for photo in PIXELS:
        values = service.answer(photo.tobytes()).probabilities
        index = int(values.argmax())
        lines.append(f"{values[index]:.6f}:{index}:".encode() + PACKED[index])
    assert json.loads(response.content[:length])["outputs"] == [
        {
            "name": "probabilities",
            "datatype": "BYTES",
            "shape": [2, 1],
            "parameters": {"binary_data_size": sum(4 + len(line) for line in lines)},
        }
    ]
    assert unpack_bytes(response.content[length:], 2) == lines


@pytest.mark.parametrize(
    ("photos", "error"),
    [
        ([b"one", b"bad"], "image 1: truncated: the data ends early"),
        ([b"", b"bad", b"bad"], "image 0: empty: the file has no bytes (2 more refused)"),
    ],
)
def test_a_bad_photo_fails_the_request(client: TestClient, photos: list[bytes], error: str) -> None:
    response = client.post(f"{MODEL}/infer", json={"inputs": [image(*photos)]})
    assert (response.status_code, response.json()) == (400, {"error": error})


GOOD = json.dumps({"inputs": [image(b"one")]}).encode()


@pytest.mark.parametrize(
    ("body", "length", "error"),
    [
        (b"", None, "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{}", None, "inputs must be a list of exactly one tensor: image or pixels"),
        (b"[[" * 50_000, None, "the body is JSON that is nested too deeply"),
        (
            GOOD,
            "1",
            "the body is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (GOOD, "0", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (GOOD, "9999", f"Inference-Header-Content-Length is 9999, but the body has {len(GOOD)} bytes"),
        (GOOD, "-2", 'Inference-Header-Content-Length is "-2", required is a number of bytes'),
        (
            GOOD + b"xyz",
            str(len(GOOD)),
            "3 bytes follow the JSON, which no input declares with binary_data_size",
        ),
        (b'{"id":1,"inputs":[]}', None, "id is 1, required is a string"),
        (b'{"parameters":1}', None, "parameters of the request are 1, required is an object"),
        (b'{"parameters":{"binary_data_output":0}}', None, "binary_data_output is 0, required is true or false"),
        (b'{"outputs":[{"name":"x"}]}', None, None),
    ],
)
def test_malformed_requests(
    client: TestClient, service: FakeService, body: bytes, length: str | None, error: str | None
) -> None:
    response = client.post(f"{MODEL}/infer", content=body, headers={LENGTH: length} if length else {})
    offered = "required is each at most once: probabilities, label, score"
    expected = {"error": error or f'output "x" is unknown or there twice, {offered}'}
    assert (response.status_code, response.json(), service.asked) == (400, expected, [])


def test_too_many(client: TestClient, service: FakeService) -> None:
    response = client.post(f"{MODEL}/infer", json={"inputs": [image(*[b"one"] * 5)]})
    expected = {"error": "5 items; a request may have at most 4"}
    assert (response.status_code, response.json(), service.asked) == (413, expected, [])


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body(client: TestClient, encoding: str) -> None:
    response = client.post(f"{MODEL}/infer", content=GOOD, headers={"content-encoding": encoding})
    expected = {"error": f'Content-Encoding is "{encoding}": send the body uncompressed'}
    assert (response.status_code, response.json()) == (415, expected)


def test_the_service_refuses(client: TestClient, service: FakeService) -> None:
    service.failing = Overloaded("full")
    for call in (GOOD, json.dumps({"inputs": [pixels(PIXELS.tolist())]}).encode()):
        response = client.post(f"{MODEL}/infer", content=call)
        assert (response.status_code, response.json()) == (503, {"error": "full"})
        assert response.headers["retry-after"] == "1"


leaves = st.none() | st.booleans() | st.integers(-1, 5) | st.floats() | st.sampled_from(["image", "label", "YWJj", "x"])
keys = st.sampled_from(["id", "inputs", "outputs", "name", "datatype", "shape", "data", "parameters"])
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner), max_leaves=12)
good = json.loads(GOOD)["inputs"]
calls = st.fixed_dictionaries(
    {"inputs": st.just(good) | anything},
    optional={
        "id": st.text(st.characters()) | anything,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("label")}, optional={"parameters": anything})),
        "parameters": anything,
    },
)


@given(calls, st.binary(max_size=20), st.none() | st.integers(-300, 20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_has_an_answer(client: TestClient, call: dict[str, Any], binary: bytes, off: int | None) -> None:
    text = json.dumps(call).encode()
    headers = {} if off is None else {LENGTH: str(len(text) + off)}
    response = client.post(f"{MODEL}/infer", content=text + binary, headers=headers)
    assert response.status_code in {200, 400, 413}
    assert list(response.json()) == ["error"] if response.status_code != 200 else response.json()["outputs"]


def test_openapi_names_every_status(app: FastAPI) -> None:
    """Of all protocols: what is documented, and that FastAPI's own validation is nowhere."""
    routes = {
        (url, method): operation for url, path in app.openapi()["paths"].items() for method, operation in path.items()
    }
    looked_up = {"200", "401", "404", "503"}
    posted = {"200", "400", "401", "408", "413", "415", "503"}
    versioned = ["/v1/models/{name}", "/v1/models/{name}/versions/{version}"]
    assert {route: set(operation["responses"]) for route, operation in routes.items()} == {
        ("/predict", "post"): posted,
        ("/api/ImageClassification/classifyImage", "post"): posted,
        **{(url, "get"): looked_up for url in versioned},
        **{(f"{url}/metadata", "get"): looked_up for url in versioned},
        **{(f"{url}:predict", "post"): posted | {"404"} for url in versioned},
        ("/v2", "get"): {"200", "401"},
        ("/v2/health/live", "get"): {"200"},
        ("/v2/health/ready", "get"): {"200", "503"},
        **{(url.replace("v1", "v2"), "get"): looked_up for url in versioned},
        **{(f"{url.replace('v1', 'v2')}/ready", "get"): looked_up for url in versioned},
        **{(f"{url.replace('v1', 'v2')}/infer", "post"): posted | {"404"} for url in versioned},
    }
    for (url, method), operation in routes.items():
        in_path = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert in_path == {part for part in ("name", "version") if f"{{{part}}}" in url}
        assert ("requestBody" in operation) == (method == "post")
        contents = {kind for kind in operation["responses"]["200"]["content"]}
        assert contents == {"application/json", *(["application/octet-stream"] if url.endswith("/infer") else [])}


def test_examples_of_openapi(app: FastAPI, client: TestClient, service: FakeService) -> None:
    paths = app.openapi()["paths"]
    for url, path in paths.items():
        example = (
            path.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        )
        if example:
            assert client.post(url.format(name="flowers", version="3"), json=example).status_code == 200
    photo = base64.b64decode(PHOTO)
    assert [asked[0] for asked in service.asked] == [[photo]] * 4
    assert decode(photo).tolist() == [[[0, 0, 0]]]
