"""What stands around Ray Serve's own proxy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.proxy import HTTPProxy
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.proxy import middlewares


async def missing(scope: Scope, receive: Receive, send: Send) -> None:
    """What the proxy answers where no application is: 404, after which nobody asks again."""
    async for message in HTTPProxy.not_found_response(None, SimpleNamespace(path=scope["path"])):
        if isinstance(message, dict):
            await send(message)


def answered(app: ASGIApp, path: str) -> Any:
    around = Starlette(middleware=middlewares())
    around.mount("/", app)
    return TestClient(around).post(path, content=b"photo")


@pytest.mark.parametrize("path", ["/predict", "/v2/models/flowers/infer"])
def test_an_application_that_is_not_there_is_no_missing_path(path: str) -> None:
    found = answered(missing, path)
    assert (found.status_code, found.headers["Content-Type"]) == (503, "application/json")
    assert int(found.headers["Retry-After"]) > 0
    assert found.headers["Connection"] == "close"
    assert f"no application answers '{path}' here" in found.text
    assert isinstance(found.json()["error"], str if path.startswith("/v2") else dict)


@pytest.mark.parametrize(
    "response",
    [JSONResponse({"error": "unknown"}, 404), PlainTextResponse("metric 1"), PlainTextResponse("no", 405)],
    ids=["our own 404", "a text", "another status"],
)
def test_other_answers_pass(response: Response) -> None:
    found = answered(response, "/predict")
    assert (found.status_code, found.content) == (response.status_code, response.body)
