"""Writing replies: compact JSON, and errors in the shape of a protocol."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.answers import RETRY_AFTER_S, ServingError

Endpoint = Callable[[Request], Awaitable[Response]]

# Escapes everything beyond ASCII: names of classes may hold what UTF-8 cannot encode.
encode = json.JSONEncoder(separators=(",", ":")).encode


def reply(value: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(encode(value), status, media_type="application/json")


def failure(error: ServingError, value: Any) -> Response:
    """The response for an error; `value` is its JSON."""
    response = reply(value, error.status)
    if error.status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def errors_as(error_response: Callable[[ServingError], Response]) -> Callable[[Endpoint], Endpoint]:
    """Makes an endpoint answer a ServingError with what `error_response` makes of it."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ServingError as error:
                return error_response(error)

        return guarded

    return decorate
