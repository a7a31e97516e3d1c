"""The middleware of Ray Serve's own HTTP proxy: what a client could command it by, and what it says without a replica.

Ray reads some headers as orders (a time-out of its own, not to notice a client that hangs up) and fails on bytes in
them that are no text. While a server ends, its proxies go on without it, and answer 404. `python -m serving` names this
module in the environment variable `CALLBACK`; on a cluster it is set for `ray start`.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.responses import error_response
from serving.service import ServingError

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.proxy:middlewares"}
MAX_HEAD_BYTES = 64 << 10
_CONTROL_HEADERS = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
}
_REQUEST_ID = b"x-request-id"
# How Ray's proxy begins when no application is at a path (2.60).
_UNKNOWN_PATH = b"Path '"


class HeadTooLarge(ServingError):
    """The lines above the body are too many."""

    status, code = 431, "head_too_large"


class NoApplication(ServingError):
    """The proxy runs, the application does not."""

    status, code = 503, "no_application"


class HeaderFilterMiddleware:
    """ASGI middleware of the proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        lines: list[tuple[bytes, bytes]] = scope.get("headers", [])
        size = sum(len(name) + len(value) for name, value in lines)
        if scope["type"] == "http" and size > MAX_HEAD_BYTES:
            error = HeadTooLarge(f"received {size} bytes of headers, at most {MAX_HEAD_BYTES} are taken")
            await error_response(scope["path"], error)(scope, receive, send)
            return
        await self._app({**scope, "headers": [line for line in lines if _passes(*line)]}, receive, send)


class NoApplicationMiddleware:
    """ASGI middleware of the proxy: where it knows no application, it is 503. Who gets 404 does not ask again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        start: Message | None = None

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] == 404:
                start = message  # whose it is, its body says
                return
            if start:
                if message.get("body", b"").startswith(_UNKNOWN_PATH):
                    error = NoApplication("the server is ending, or has not started yet; try again")
                    await error_response(scope["path"], error)(scope, receive, send)
                    return
                await send(start)
                start = None
            await send(message)

        await self._app(scope, receive, sending)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its proxy."""
    return [Middleware(HeaderFilterMiddleware), Middleware(NoApplicationMiddleware)]


def _passes(name: bytes, value: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")
    if name == _REQUEST_ID:
        return value.isascii()
    return name not in _CONTROL_HEADERS
