"""What clients send a little differently from what the routes say: HEAD, a slash at the end of a path, no prefix."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LenientMiddleware:
    """ASGI middleware: answers HEAD as GET without the body, and a path with a slash at its end as the one without.

    A path is that of ASGI: it begins with the root path also where a proxy has taken that off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, root = scope["path"], scope.get("root_path", "")
        if path != root and not path.startswith(f"{root}/"):
            path = root + path  # a proxy in front has taken it off
        if path.endswith("/") and path.rstrip("/") != root:
            path = path.rstrip("/")
        scope = {**scope, "path": path}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, sending)
