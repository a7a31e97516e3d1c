"""The ASGI app: routes of the protocols, of the page, of the metrics, and to reload."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from flowers import __version__
from flowers.errors import InputError
from serving.http.lenient import LenientMiddleware
from serving.http.middleware import RequestLimitsMiddleware
from serving.http.responses import coded_error, error_response, errors_as, json_response, route_path, set_error_code
from serving.protocols import mlnet, native, open_inference, tensorflow_serving
from serving.protocols.body import json_object
from serving.service import BadRequest, ServingError

_PAGE = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class NoRoute(ServingError):
    """There is nothing at a path."""

    status, code = 404, "not_found"

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path[:100]!r} here; /docs says what there is")


class WrongMethod(ServingError):
    """A path is asked with a method that it does not take."""

    status, code = 405, "method_not_allowed"


def build(service: Any) -> FastAPI:
    """The ASGI app of a replica.

    Args:
        service: `serving.replica.Classifier`.
    """
    # Its /docs needs no outside address.
    app = FastAPIOffline(
        redoc_url=None,
        root_path=service.options.root_path,
        redirect_slashes=False,  # it would send people to whatever host their request names
        title="flowers",
        version=__version__,
        description="Image classification.",
    )
    for protocol in (native, tensorflow_serving, open_inference, mlnet):
        app.include_router(protocol.router(service))
    _add_page(app, service.options.name)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Counts of all replicas on this machine, for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/admin/reload", tags=["operation"], responses={400: {}, 401: {}})
    @errors_as(coded_error)
    async def reload(request: Request) -> Response:
        """Looks for a new version now, trying again one that was refused.

        With a body `{"version": 3}` all servers of these versions take that one and keep it, with `{"version": null}`
        the newest again.
        """
        await _pin(service, await request.body())
        changed = await asyncio.to_thread(service.versions.refresh, True)
        now = service.describe()
        answer = {"version": str(now.version), "changed": changed, "last_reload_error": now.last_reload_error}
        return json_response(answer, 200 if now.last_reload_error is None else 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        """What the router itself refuses: an unknown path, another method."""
        path, headers = route_path(request.scope), dict(error.headers or {})
        methods = headers.get("Allow")
        refused = WrongMethod(f"{request.method} is not taken here, only {methods}") if methods else NoRoute(path)
        set_error_code(request.scope, refused)
        response = error_response(path, refused)
        response.headers.update(headers)
        return response

    app.add_middleware(RequestLimitsMiddleware, options=service.options, service=service)
    if origins := service.options.origins():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["Authorization", "Content-Type"],
            max_age=3600,
        )
    app.add_middleware(LenientMiddleware)
    return app


async def _pin(service: Any, body: bytes) -> None:
    if not body.strip():
        return
    command = json_object(body)
    if set(command) != {"version"}:
        raise BadRequest('required is {"version": NUMBER} or {"version": null}')
    number = command["version"]
    if isinstance(number, bool) or not isinstance(number, int | None):
        raise BadRequest(f"version: received {number!r}, required is a whole number or null")
    try:
        await asyncio.to_thread(service.versions.pin, number)
    except (InputError, OSError) as error:
        raise BadRequest(str(error)) from error


def _add_page(app: FastAPI, model: str) -> None:
    folder = resources.files("serving") / "page"
    for name, kind in _PAGE.items():
        content = (folder / name).read_bytes().replace(b'data-model="flowers"', f'data-model="{model}"'.encode())

        def answer(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=_POLICY)

        path = "/" if name == "index.html" else f"/page/{name}"
        app.add_api_route(path, answer, include_in_schema=False, response_class=Response)
