"""What stands around Ray Serve's own proxy."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient

from serving.http.proxy import middlewares

MISSING = "Path '/predict' not found. Ping http://.../-/routes for available routes."  # Ray's own words (2.60)


def answered(response: Response, path: str) -> Any:
    app = Starlette(middleware=middlewares())
    app.mount("/", response)
    return TestClient(app).post(path, content=b"photo")


@pytest.mark.parametrize("path", ["/predict", "/v2/models/flowers/infer"])
def test_an_application_that_is_not_there_is_no_missing_path(path: str) -> None:
    found = answered(PlainTextResponse(MISSING, 404), path)
    assert found.status_code == 503
    assert int(found.headers["Retry-After"]) > 0
    assert found.headers["Connection"] == "close"
    assert f"no application answers '{path}' here" in found.text
    assert found.headers["Content-Type"] == "application/json"
    assert isinstance(found.json()["error"], str if path.startswith("/v2") else dict)


@pytest.mark.parametrize(
    "response",
    [JSONResponse({"error": "unknown"}, 404), PlainTextResponse("metric 1"), PlainTextResponse("no", 405)],
    ids=["our own 404", "a text", "another status"],
)
def test_other_answers_pass(response: Response) -> None:
    found = answered(response, "/predict")
    assert (found.status_code, found.content) == (response.status_code, response.body)
