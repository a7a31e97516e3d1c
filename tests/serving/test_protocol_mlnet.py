"""The protocol of ML.NET's sample."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.service import Overloaded
from tests.serving.conftest import CLASSES, SHOWN, FakeService

URL = "/api/ImageClassification/classifyImage"


def error(code: str, detail: str) -> dict[str, Any]:
    return {"error": {"code": code, "detail": detail}}


@pytest.mark.parametrize("url", [URL, "/api/ImageClassification/classifyimage"])
def test_a_photo(client: TestClient, service: FakeService, url: str) -> None:
    files = [("other", ("b.jpg", b"other")), ("imageFile", ("rosé.jpg", b"photo"))]
    response = client.post(url, files=files)
    answer = service.answer(b"photo")
    assert (response.status_code, response.json()) == (
        200,
        {
            "imageId": "rosé.jpg",
            "predictedLabel": SHOWN[CLASSES.index(str(answer.label))],
            "probability": round(answer.score, 6),
            "predictionExecutionTime": 12,
        },
    )
    assert isinstance(response.json()["predictionExecutionTime"], int)
    assert service.asked == [([b"photo"], None)]


@pytest.mark.parametrize(("code", "status"), [("corrupt", 400), ("not_a_photo", 415), ("unsupported_format", 415)])
def test_a_refused_photo(client: TestClient, code: str, status: int) -> None:
    response = client.post(URL, files={"imageFile": ("a.jpg", b"bad " + code.encode())})
    assert (response.status_code, response.json()) == (status, error(code, "the data ends early"))


def test_an_empty_photo(client: TestClient, service: FakeService) -> None:
    response = client.post(URL, files={"imageFile": ("a.jpg", b"")})
    expected = error("empty", "the file in the field imageFile has no bytes")
    assert (response.status_code, response.json(), service.asked) == (400, expected, [])


@pytest.mark.parametrize(("fields", "found"), [(["other"], 0), (["imagefile"], 0), (["imageFile", "imageFile"], 2)])
def test_not_one_photo(client: TestClient, fields: list[str], found: int) -> None:
    response = client.post(URL, files=[(field, ("a.jpg", b"photo")) for field in fields])
    expected = error("bad_request", f"the form has {found} files in the field imageFile, required is one")
    assert (response.status_code, response.json()) == (400, expected)


def test_text_is_no_file(client: TestClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="imageFile"\r\n\r\nphoto\r\n--b--'
    response = client.post(URL, content=form, headers={"content-type": "multipart/form-data; boundary=b"})
    expected = error("bad_request", "the form has 0 files in the field imageFile, required is one")
    assert (response.status_code, response.json()) == (400, expected)


def test_no_form(client: TestClient) -> None:
    response = client.post(URL, content=b"photo", headers={"content-type": "image/jpeg"})
    expected = error("unsupported_media_type", 'Content-Type is "image/jpeg", required is multipart/form-data')
    assert (response.status_code, response.json()) == (415, expected)


def test_the_service_refuses(client: TestClient, service: FakeService) -> None:
    service.failing = Overloaded("full")
    response = client.post(URL, files={"imageFile": ("a.jpg", b"photo")})
    assert (response.status_code, response.json()) == (503, error("overloaded", "full"))
    assert response.headers["retry-after"] == "1"
