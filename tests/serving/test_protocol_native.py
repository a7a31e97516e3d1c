"""POST /predict: photos as bodies and in forms, options, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from serving.service import Overloaded, TooLarge, UnknownVersion
from tests.data.test_images import SAMPLES
from tests.serving.conftest import CLASSES, SHOWN, FakeService

JPEG = {"content-type": "image/jpeg"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\n\r\nphoto\r\n'


def shown(label: str | None) -> str:
    return SHOWN[CLASSES.index(label)] if label in CLASSES else str(label)


def predicted(service: FakeService, photo: bytes, top: int = 5) -> dict[str, Any]:
    answer = service.answer(photo)
    order = sorted(range(len(service.classes)), key=lambda index: (-answer.probabilities[index], index))
    return {
        "label": shown(answer.label),
        "score": round(answer.score, 6),
        "top": [
            {"label": shown(service.classes[index]), "score": round(float(answer.probabilities[index]), 6)}
            for index in order[:top]
        ],
        "model_version": "3",
        "timing": {"queue_ms": 0.123, "decode_ms": 1.5, "infer_ms": 10.0},
    }


def error(code: str, detail: str) -> dict[str, Any]:
    return {"error": {"code": code, "detail": detail}}


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "IMAGE/WebP; q=1", "application/octet-stream"])
def test_a_photo_as_the_body(client: TestClient, service: FakeService, kind: str) -> None:
    response = client.post("/predict", content=b"photo", headers={"content-type": kind})
    assert (response.status_code, response.json()) == (200, predicted(service, b"photo"))
    assert response.headers["content-type"] == "application/json"
    assert b": " not in response.content
    assert service.asked == [([b"photo"], None)]


@pytest.mark.parametrize(("query", "top"), [("", 5), ("?top=1", 1), ("?top=3&heatmap=0", 3), ("?top=1000", 5)])
def test_top(client: TestClient, service: FakeService, query: str, top: int) -> None:
    response = client.post(f"/predict{query}", content=b"photo", headers=JPEG)
    assert response.json() == predicted(service, b"photo", top)


def test_names_of_classes_that_no_utf8_can_hold(client: TestClient) -> None:
    response = client.post("/predict", content=b"photo", headers=JPEG)
    assert {label["label"] for label in json.loads(response.content.decode())["top"]} == set(SHOWN)


def test_equal_scores_are_in_the_order_of_the_classes(client: TestClient, service: FakeService) -> None:
    service.classes = tuple(f"c{index}" for index in range(32))
    expected = predicted(service, b"photo 1", 32)
    assert len({label["score"] for label in expected["top"]}) < 32
    assert client.post("/predict?top=32", content=b"photo 1", headers=JPEG).json() == expected


@pytest.mark.parametrize("value", ["true", "1"])
def test_heatmap(client: TestClient, service: FakeService, value: str) -> None:
    response = client.post(f"/predict?heatmap={value}", content=b"photo", headers=JPEG)
    assert response.json() == {**predicted(service, b"photo"), "heatmap": [[0.1235, -1.0], [0.0, 2.0]]}


@pytest.mark.parametrize("value", ["0", "1001", "-1", "1.0", "", "x", "٣", "1e1", "9" * 5000, "%00", "%ff", "+5"])
def test_wrong_top(client: TestClient, service: FakeService, value: str) -> None:
    response = client.post(f"/predict?top={value}", content=b"photo", headers=JPEG)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_request"
    assert "required is a whole number from 1 to 1000" in response.json()["error"]["detail"]
    assert len(response.content) < 250
    assert service.asked == []


def test_wrong_heatmap(client: TestClient) -> None:
    response = client.post("/predict?heatmap=yes", content=b"photo", headers=JPEG)
    expected = error("bad_request", 'heatmap is "yes", required is one of true, 1, false, 0')
    assert (response.status_code, response.json()) == (400, expected)


@pytest.mark.parametrize(
    ("code", "status"), [("truncated", 400), ("corrupt", 400), ("unsupported_format", 415), ("not_a_photo", 415)]
)
def test_a_refused_photo(client: TestClient, code: str, status: int) -> None:
    response = client.post("/predict", content=b"bad " + code.encode(), headers=JPEG)
    assert (response.status_code, response.json()) == (status, error(code, "the data ends early"))


def test_no_body(client: TestClient, service: FakeService) -> None:
    response = client.post("/predict", headers=JPEG)
    expected = error("empty", "the body is empty, required are the bytes of a photo")
    assert (response.status_code, response.json(), service.asked) == (400, expected, [])


def test_any_type_of_what_is_a_photo(client: TestClient) -> None:
    for kind in ("", "text/plain", "application/json"):
        assert client.post("/predict", content=SAMPLES["jpeg"], headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "imagejpeg", "multipart/mixed; boundary=b"])
def test_other_types(client: TestClient, service: FakeService, kind: str) -> None:
    response = client.post("/predict", content=b"photo", headers={"content-type": kind} if kind else {})
    detail = (
        f'Content-Type is "{kind.partition(";")[0]}", '
        "required is image/*, application/octet-stream or multipart/form-data"
    )
    assert (response.status_code, response.json()) == (415, error("unsupported_media_type", detail))
    assert service.asked == []


def test_a_compressed_body(client: TestClient) -> None:
    response = client.post("/predict", content=b"photo", headers={**JPEG, "content-encoding": "gzip"})
    expected = error("unsupported_media_type", 'Content-Encoding is "gzip": send the body uncompressed')
    assert (response.status_code, response.json()) == (415, expected)


def test_files_of_a_form(client: TestClient, service: FakeService) -> None:
    files = [
        ("a", ("one ☃.jpg", b"photo 1")),
        ("a", ("two.jpg", b"bad corrupt")),
        ("b", ("a/../3", b"photo 3")),
        ("c", ("empty.jpg", b"")),
    ]
    response = client.post("/predict?top=2&heatmap=1", files=files, data={"text": "no file"})
    heat = {"heatmap": [[0.1235, -1.0], [0.0, 2.0]]}
    assert response.status_code == 200
    assert response.json() == {
        "items": [
            {"filename": "one ☃.jpg", **predicted(service, b"photo 1", 2), **heat},
            {"filename": "two.jpg", "error": {"code": "corrupt", "detail": "the data ends early"}},
            {"filename": "a/../3", **predicted(service, b"photo 3", 2), **heat},
            {"filename": "empty.jpg", "error": {"code": "empty", "detail": "the file has no bytes"}},
        ]
    }
    assert service.asked == [([b"photo 1", b"bad corrupt", b"photo 3", b""], None)]


def test_one_file_has_the_same_shape(client: TestClient, service: FakeService) -> None:
    large = bytes(range(256)) * 8192  # 2 MB, which starlette would put on disk
    response = client.post("/predict", files={"file": ("a.jpg", large)})
    assert response.json() == {"items": [{"filename": "a.jpg", **predicted(service, large)}]}


def test_a_file_without_a_name(client: TestClient, service: FakeService) -> None:
    response = client.post("/predict", content=PART.replace(b"a.jpg", b"") + b"--b--", headers=FORM)
    assert response.json() == {"items": [{"filename": "", **predicted(service, b"photo")}]}


def test_more_files_than_a_request_may_have(client: TestClient, service: FakeService) -> None:
    response = client.post("/predict", files=[("a", ("a.jpg", b"photo"))] * 5)
    expected = error("too_large", "more than 4 files; a request may have at most 4")
    assert (response.status_code, response.json(), service.asked) == (413, expected, [])


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        (b"", "; boundary=b", "the form ends before its closing boundary"),
        (b"--b--\r\n", "; boundary=b", "the form holds no file: send one or more photos, in fields of any name"),
        (PART, "; boundary=b", "the form ends before its closing boundary"),
        (PART + b"--b", "; boundary=b", "the form ends before its closing boundary"),
        (PART + b"--b--", "; boundary=other", "the form is malformed: Invalid multipart data."),
        (PART + b"--b--", "", "the form is malformed: Missing boundary in multipart."),
        (b"photo", "; boundary=b", "the form is malformed: Invalid multipart data."),
        (
            PART + b"--b--",
            "; boundary=b; charset=undefined",
            "the form has a field name that its charset cannot decode",
        ),
        (
            b"--b\r\n\r\nphoto\r\n--b--",
            "; boundary=b",
            'the form is malformed: The Content-Disposition header field "name" must be provided.',
        ),
        (
            PART.replace(b'; filename="a.jpg"', b"") + b"--b--",
            "; boundary=b",
            "the form holds no file: send one or more photos, in fields of any name",
        ),
    ],
)
def test_malformed_forms(client: TestClient, service: FakeService, body: bytes, kind: str, detail: str) -> None:
    response = client.post("/predict", content=body, headers={"content-type": f"multipart/form-data{kind}"})
    assert (response.status_code, response.json()) == (400, error("bad_request", detail))
    assert service.asked == []


@pytest.mark.parametrize("failing", [Overloaded("9 photos are waiting"), UnknownVersion("gone")])
def test_the_service_refuses(client: TestClient, service: FakeService, failing: Overloaded | UnknownVersion) -> None:
    service.failing = failing
    response = client.post("/predict", content=b"photo", headers=JPEG)
    assert (response.status_code, response.json()) == (failing.status, error(failing.code, failing.detail))
    assert response.headers.get("retry-after") == ("1" if failing.status == 503 else None)


@pytest.mark.parametrize("headers", [JPEG, FORM])
def test_reading_the_body_is_refused(app: FastAPI, headers: dict[str, str]) -> None:
    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        async def refusing() -> Message:
            raise TooLarge("at most 2 bytes")

        await app(scope, refusing if scope["type"] == "http" else receive, send)

    response = TestClient(limited).post("/predict", content=b"photo", headers=headers)
    assert (response.status_code, response.json()) == (413, error("too_large", "at most 2 bytes"))


@pytest.mark.parametrize("headers", [JPEG, FORM])
def test_a_client_that_has_gone(app: FastAPI, headers: dict[str, str]) -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def nowhere(message: Message) -> None:
        pass

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": pairs}
    with pytest.raises(ClientDisconnect):
        asyncio.run(app(scope, gone, nowhere))


def test_the_labels_are_those_of_the_model_that_answered(client: TestClient, service: FakeService) -> None:
    """Whichever is described by then: it may have been replaced."""
    now, expected = service.describe, predicted(service, b"photo")
    taken = service._taken

    def replaced_after(photos: Sequence[bytes], version: int | None = None) -> list[bytes]:
        service.describe = now  # type: ignore[method-assign]
        return taken(photos, version)

    service._taken = replaced_after  # type: ignore[method-assign]
    service.describe = lambda: replace(now(), version=9, classes=("other",))  # type: ignore[method-assign]
    assert client.post("/predict", content=b"photo", headers=JPEG).json() == expected
