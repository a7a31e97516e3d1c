"""Responses: compact JSON, and errors in the shape of a protocol."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serving.service import RETRY_AFTER_S, ServingError

Endpoint = Callable[[Request], Awaitable[Response]]

_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(value: Any) -> bytes:
    """A value as JSON; in names of classes, what UTF-8 cannot hold is a question mark.

    JSON could escape it, but many parsers refuse the whole text then, that of Triton's client among them.
    """
    return _encoder.encode(value).encode("utf-8", "replace")


def json_response(value: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(encode(value), status, media_type="application/json")


def coded_error(error: ServingError) -> Response:
    """The response for an error: `{"error": {"code", "detail"}}`."""
    return _failure(error, {"code": error.code, "detail": error.detail})


def text_error(error: ServingError) -> Response:
    """The response for an error: `{"error": text}`."""
    return _failure(error, error.detail)


def route_path(scope: Scope) -> str:
    """The path of a request below the prefix that the application is served under: what Starlette's routes match."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    below = path.removeprefix(prefix)
    return below if not below or below.startswith("/") else path


def error_response(path: str, error: ServingError) -> Response:
    """An error in the shape of the protocol that lives below a path."""
    shape = text_error if path.startswith(("/v1/", "/v2/")) or path == "/v2" else coded_error
    return shape(error)


def _failure(error: ServingError, what: Any) -> Response:
    response = json_response({"error": what}, error.status)
    if error.status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def set_error_code(scope: Scope, error: ServingError) -> None:
    """Leaves with the request why it was refused, for the metrics; `error_code` reads it."""
    scope.setdefault("state", {})["error"] = error.code


def error_code(scope: Scope) -> str | None:
    """The code of the error that a request was refused for, if it was."""
    code: str | None = scope.get("state", {}).get("error")
    return code


def errors_as(shape: Callable[[ServingError], Response]) -> Callable[[Endpoint], Endpoint]:
    """Makes an endpoint answer a ServingError with what `shape` makes of it."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ServingError as error:
                set_error_code(request.scope, error)
                return shape(error)

        return guarded

    return decorate
