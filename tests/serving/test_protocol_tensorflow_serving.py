"""TensorFlow Serving's REST API: status, metadata, predict in rows and columns, and its errors."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.service import Overloaded
from tests.serving.conftest import CLASSES, SHOWN, FakeService

MODEL = "/v1/models/flowers"
VERSIONED = "/v1/models/flowers/versions/3"


def b64(photo: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(photo).decode()}


def row(service: FakeService, photo: bytes) -> dict[str, Any]:
    answer = service.answer(photo)
    return {
        "scores": answer.probabilities.tolist(),
        "classes": list(SHOWN),
        "label": SHOWN[CLASSES.index(str(answer.label))],
        "score": answer.score,
    }


@pytest.mark.parametrize("url", [MODEL, VERSIONED])
@pytest.mark.parametrize(("ready", "state"), [(True, "AVAILABLE"), (False, "LOADING")])
def test_status(client: TestClient, service: FakeService, url: str, ready: bool, state: str) -> None:
    service.ready = ready
    response = client.get(url)
    status = {"version": "3", "state": state, "status": {"error_code": "OK", "error_message": ""}}
    assert (response.status_code, response.json()) == (200, {"model_version_status": [status]})


@pytest.mark.parametrize("url", [f"{MODEL}/metadata", f"{VERSIONED}/metadata"])
def test_metadata(client: TestClient, url: str) -> None:
    def tensor(name: str, dtype: str, *sizes: int) -> dict[str, Any]:
        dim = [{"size": str(size), "name": ""} for size in sizes]
        return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": f"{name}:0"}

    response = client.get(url)
    signature = {
        "inputs": {"image_bytes": tensor("image_bytes", "DT_STRING", -1)},
        "outputs": {
            "scores": tensor("scores", "DT_FLOAT", -1, 5),
            "classes": tensor("classes", "DT_STRING", -1, 5),
            "label": tensor("label", "DT_STRING", -1),
            "score": tensor("score", "DT_FLOAT", -1),
        },
        "method_name": "tensorflow/serving/predict",
    }
    assert (response.status_code, response.json()) == (
        200,
        {
            "model_spec": {"name": "flowers", "signature_name": "", "version": "3"},
            "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
        },
    )


@pytest.mark.parametrize(("url", "version"), [(f"{MODEL}:predict", None), (f"{VERSIONED}:predict", 3)])
@pytest.mark.parametrize("extra", [{}, {"signature_name": ""}, {"signature_name": "serving_default"}])
def test_rows(client: TestClient, service: FakeService, url: str, version: int | None, extra: dict[str, str]) -> None:
    call = {"instances": [b64(b"one"), {"image_bytes": b64(b"two")}], **extra}
    response = client.post(url, json=call)
    assert response.status_code == 200
    assert response.json() == {"predictions": [row(service, b"one"), row(service, b"two")]}
    assert service.asked == [([b"one", b"two"], version)]


@pytest.mark.parametrize("named", [False, True])
def test_columns(client: TestClient, service: FakeService, named: bool) -> None:
    photos = [b64(b"one"), b64(b"two")]
    response = client.post(f"{MODEL}:predict", json={"inputs": {"image_bytes": photos} if named else photos})
    rows = [row(service, b"one"), row(service, b"two")]
    columns = {name: [rows[0][name], rows[1][name]] for name in ("scores", "classes", "label", "score")}
    assert (response.status_code, response.json()) == (200, {"outputs": columns})


def test_base64_in_lines_and_any_content_type(client: TestClient, service: FakeService) -> None:
    photo = bytes(range(256))
    call = {"instances": [{"b64": base64.encodebytes(photo).decode()}]}
    headers = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says
    response = client.post(f"{MODEL}:predict", content=json.dumps(call), headers=headers)
    assert response.json() == {"predictions": [row(service, photo)]}


@pytest.mark.parametrize(
    ("photos", "error"),
    [
        ([b"one", b"bad", b"three"], "instance 1: truncated: the data ends early"),
        ([b"bad not_a_photo", b"bad", b""], "instance 0: not_a_photo: the data ends early (2 more refused)"),
    ],
)
def test_a_bad_photo_fails_the_request(client: TestClient, photos: list[bytes], error: str) -> None:
    response = client.post(f"{MODEL}:predict", json={"instances": [b64(photo) for photo in photos]})
    assert (response.status_code, response.json()) == (400, {"error": error})
    response = client.post(f"{MODEL}:predict", json={"inputs": [b64(photo) for photo in photos]})
    assert (response.status_code, response.json()) == (400, {"error": error.replace("instance", "input")})


FORM = 'instance 0 must be {"b64": "..."} with the base64 of a photo'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "the body is not UTF-8: byte 0"),
        (b"[" * 100_000, "the body is JSON that is nested too deeply"),
        (b'{"instances":[NaN]}', "the body is not JSON: NaN is not JSON"),
        (b'{"instances":[-Infinity]}', "the body is not JSON: -Infinity is not JSON"),
        (b"[]", "the body is a list, required is a JSON object"),
        (b"1e999", "the body is Infinity, required is a JSON object"),
        (b'"' + b"x" * 99 + b'"', f'the body is "{"x" * 50}", required is a JSON object'),
        (b"1" * 99, f"the body is {'1' * 60}..., required is a JSON object"),
        (b"{}", "the request has no photos, required is instances or inputs"),
        (b'{"instances":[],"inputs":[]}', "the request has instances and inputs, required is instances or inputs"),
        (b'{"instances":[]}', "instances must be a list of one or more photos"),
        (b'{"instances":{"b64":""}}', "instances must be a list of one or more photos"),
        (b'{"instances":null}', "instances must be a list of one or more photos"),
        (b'{"inputs":{"b64":""}}', "inputs must be a list of one or more photos"),
        (b'{"inputs":{"image_bytes":{"b64":""}}}', "inputs must be a list of one or more photos"),
        (b'{"instances":["cGhvdG8="]}', FORM),
        (b'{"instances":[{}]}', FORM),
        (b'{"instances":[{"b64":"","x":1}]}', FORM),
        (b'{"instances":[{"image_bytes":{"image_bytes":{"b64":""}}}]}', FORM),
        (b'{"instances":[{"image_bytes":""}]}', FORM),
        (b'{"instances":[{"b64":1e999}]}', "b64 of instance 0 is Infinity, required is a string of base64"),
        (b'{"instances":[{"b64":[[]]}]}', "b64 of instance 0 is a list, required is a string of base64"),
        (
            b'{"instances":[{"b64":"abcde"}]}',
            "b64 of instance 0 is not base64: invalid base64-encoded string: number of data characters (5) cannot be 1 "
            "more than a multiple of 4",
        ),
        (b'{"instances":[{"b64":"ab=c"}]}', "b64 of instance 0 is not base64: discontinuous padding not allowed"),
        (b'{"instances":[{"b64":"YQ=="},{"b64":"!"}]}', "b64 of instance 1 is not base64: only base64 data is allowed"),
        (
            b'{"instances":[{"b64":"\\ud800"}]}',
            "b64 of instance 0 is not base64: string argument should contain only ascii characters",
        ),
        (b'{"instances":[{"b64":""}],"signature_name":"x"}', None),
        (b'{"instances":[{"b64":""}],"signature_name":null}', None),
        (b'{"instances":[{"b64":""}],"signature_name":[{}]}', None),
    ],
)
def test_malformed_requests(client: TestClient, service: FakeService, body: bytes, error: str | None) -> None:
    response = client.post(f"{MODEL}:predict", content=body)
    given = {b'"x"}': '"x"', b"null}": "null", b"[{}]}": "a list"}.get(body.rpartition(b":")[2], "")
    error = error or f"signature_name is {given}, required is 'serving_default' or none"
    assert (response.status_code, response.json()) == (400, {"error": error})
    assert service.asked == []


def test_a_huge_integer(client: TestClient) -> None:
    response = client.post(f"{MODEL}:predict", content=b'{"instances":' + b"1" * 5000 + b"}")
    assert response.status_code == 400
    assert response.json()["error"].startswith("the body is not JSON: Exceeds the limit")


def test_too_many(client: TestClient, service: FakeService) -> None:
    response = client.post(f"{MODEL}:predict", json={"instances": [{"b64": "!"}] * 5})
    expected = {"error": "5 items; a request may have at most 4"}
    assert (response.status_code, response.json(), service.asked) == (413, expected, [])


@pytest.mark.parametrize("end", ["", "/metadata", ":predict"])
def test_unknown_models_and_versions(client: TestClient, end: str) -> None:
    def ask(url: str) -> tuple[int, Any]:
        response = client.post(url + end, json={"instances": [b64(b"one")]}) if end == ":predict" else client.get(url)
        return response.status_code, response.json()

    assert ask("/v1/models/fl%E2%98%83") == (404, {"error": 'there is no model "fl\\u2603" here, only "flowers"'})
    for version in ("2", "x", "03", "9" * 20):
        expected = {"error": f'version "{version}" is not loaded; the one that is: 3'}
        assert ask(f"{MODEL}/versions/{version}") == (404, expected)


def test_predict_is_only_posted(client: TestClient) -> None:
    assert client.post(MODEL).headers["allow"] == "GET"
    assert client.put(f"{MODEL}:predict").headers["allow"] == "POST"
    assert client.get(f"{MODEL}:predict").status_code == 404  # a model of that name


def test_a_compressed_body(client: TestClient) -> None:
    response = client.post(f"{MODEL}:predict", content=b"{}", headers={"content-encoding": "gzip"})
    expected = {"error": 'Content-Encoding is "gzip": send the body uncompressed'}
    assert (response.status_code, response.json()) == (415, expected)


def test_the_service_refuses(client: TestClient, service: FakeService) -> None:
    service.failing = Overloaded("full")
    response = client.post(f"{MODEL}:predict", json={"instances": [b64(b"one")]})
    assert (response.status_code, response.json()) == (503, {"error": "full"})
    assert response.headers["retry-after"] == "1"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("YWJj")
keys = st.sampled_from(["b64", "image_bytes", "x"])
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner), max_leaves=12)


@given(st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), anything))
@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_has_an_answer(client: TestClient, call: dict[str, Any]) -> None:
    response = client.post(f"{MODEL}:predict", content=json.dumps(call))
    assert response.status_code in {200, 400, 413}
    answer = response.json()
    if response.status_code == 200:
        assert len(answer.get("predictions", answer.get("outputs", {}).get("label"))) >= 1
    else:
        assert list(answer) == ["error"]
        assert len(answer["error"]) < 300
