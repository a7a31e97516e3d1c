"""Overload: what would be refused anyway is refused at the head of its request.

On the usual way it would pass tasks, middlewares and routes that do nothing for it; at 5 times the capacity there are
four refusals for each answer (`docs/decisions.md` has the figures).
"""

from __future__ import annotations

import functools
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.middleware import PHOTO_METHODS, content_length, refuse
from serving.service import Overloaded


class EarlyRefusal:
    """Finds by the head of a request that its photos would have to wait too long.

    Args:
        service: `serving.replica.Classifier`.
    """

    def __init__(self, service: Any) -> None:
        self._service = service

    def __call__(self, scope: Scope) -> ASGIApp | None:
        """The app that refuses a request; None if its photos may come, or the usual way knows more about it."""
        if scope.get("method") not in PHOTO_METHODS or "/admin/" in scope["path"]:
            return None
        headers = Headers(scope=scope)
        size = content_length(headers)
        if "origin" in headers or size > self._service.options.max_request_bytes:
            return None
        try:
            self._service.admission.check(size=size)
        except Overloaded as error:
            return functools.partial(self._refuse, error)
        return None

    async def _refuse(self, error: Overloaded, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.metrics.request(scope) as seen:
            path = scope["path"].removeprefix(self._service.options.root_path)
            await refuse(self._service, path, error, scope, receive, seen(send))
