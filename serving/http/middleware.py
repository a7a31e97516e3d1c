"""The middleware of a replica, which every request passes first: its token, its size, its time."""

from __future__ import annotations

import asyncio
import ctypes
import hmac
import ipaddress
import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowers import storage
from flowers.errors import InputError
from serving.http.responses import error_response, route_path, set_error_code
from serving.inference.admission import Admission
from serving.options import ServeOptions
from serving.service import Overloaded, ServingError, TooLarge

# Requests of these methods bring photos.
PHOTO_METHODS = ("POST", "PUT")
# What is open to all, tokens or not: probes, and the page, which asks for the token itself.
_OPEN = ("/page/", "/v2/health/")


# When a request of so many bytes is answered, what it took is given back to the system.
_LARGE = 4 << 20


class Unauthorized(ServingError):
    """No token, or not one that is known."""

    status, code = 401, "unauthorized"


class WrongHost(ServingError):
    """The request is for a host that this is not."""

    status, code = 421, "wrong_host"


class NoWebSocket(ServingError):
    """A handshake that nobody answers."""

    status, code = 404, "no_websocket"


class TooSlow(ServingError):
    """The request did not arrive in time."""

    status, code = 408, "too_slow"


def read_tokens(path: str | None) -> tuple[bytes, ...]:
    """The tokens in a file, one a line; blank lines and those that begin with # do not count.

    Raises:
        InputError: the file cannot be read, has none, or more than one in a line.
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in storage.read(path).splitlines()]
    except OSError as error:
        raise InputError(f"the file of tokens {path!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1 and not line.startswith(b"#"):
            raise InputError(f"line {number} of the file of tokens {path!r} has blanks; required is one token a line")
    tokens = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not tokens:
        raise InputError(f"the file of tokens {path!r} has none; required is one a line")
    return tokens


class RequestLimitsMiddleware:
    """ASGI middleware: refuses what is too large, too slow, too much or has no token.

    Args:
        app: what answers the rest.
        options: the limits.
        service: `serving.replica.Classifier`.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, service: Any) -> None:
        self._app, self._options, self._service = app, options, service
        self._tokens = read_tokens(options.tokens_file)
        self._admin = read_tokens(options.admin_token_file)
        self._hosts = options.hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "websocket":
            await error_response(route_path(scope), NoWebSocket("there is no WebSocket here"))(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, started = route_path(scope), False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        with self._service.metrics.request(scope) as seen:
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    self._check(scope)
                    with _LimitedBody(receive, self._options, self._service.admission) as body:
                        await self._app(scope, body, seen(sending))
            except ClientDisconnect:
                pass  # nobody is there to be told anything
            except (ServingError, TimeoutError) as error:
                if started:
                    raise
                if isinstance(error, TimeoutError):
                    error = Overloaded(f"no answer within {self._options.timeout_s:g} s; try again")
                await refuse(self._service, path, error, scope, receive, seen(send))

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), route_path(scope)
        if self._hosts is not None:
            _check_host(headers.get("host", ""), self._hosts)
        if path.startswith("/admin/"):
            if not self._admin:
                raise Unauthorized("the server was started without --admin-token-file, so nobody may do this")
            _check_token(headers, self._admin)
        elif self._tokens and path != "/" and not path.startswith(_OPEN):
            _check_token(headers, (*self._tokens, *self._admin))
        size = content_length(headers)
        if size > self._options.max_request_bytes:
            raise TooLarge(f"received {size} bytes, at most {self._options.max_request_bytes} are taken")
        if scope["method"] in PHOTO_METHODS and not path.startswith("/admin/"):
            self._service.admission.check(size=size)  # before the body is read


async def refuse(service: Any, path: str, error: ServingError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request with an error in the shape of its protocol, and not at once where that is for load."""
    if isinstance(error, Overloaded):
        await asyncio.sleep(service.admission.refusals.wait_s())
    set_error_code(scope, error)
    response = error_response(path, error)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    await response(scope, receive, send)


def content_length(headers: Headers) -> int:
    """Bytes of the body that the head of a request announces; 0 if it does not, or no number."""
    length = headers.get("content-length", "0")
    return int(length[:20]) if length.isdecimal() else 0


def give_back_memory() -> None:
    """Returns memory that is free to the system: the C library keeps the many small parts that a body comes in."""
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _check_host(value: str, known: Collection[str]) -> None:
    """Refuses a name that is not known. A foreign page may give its own name our address, but not make it a number."""
    host = value.lower()
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if not name or name.rstrip(".") in {"localhost", *known}:
        return
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        raise WrongHost(f"host {name[:100]!r} is not served here; --allowed-hosts names those that are") from None


def _check_token(headers: Headers, known: Sequence[bytes]) -> None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip().encode("utf-8", "surrogateescape")
    # All are compared, each in the same time: how long it takes tells nothing.
    fits = [hmac.compare_digest(given, one) for one in known]
    if scheme.lower() != "bearer" or not any(fits):
        raise Unauthorized("a token is required: Authorization: Bearer TOKEN")


class _LimitedBody:
    """Counts the bytes of a request while they come, and the time they take; they are held until it is answered."""

    def __init__(self, receive: Receive, options: ServeOptions, admission: Admission) -> None:
        self._receive, self._options, self._admission = receive, options, admission
        self._held = 0
        self._until: float = math.nan
        self._whole = False

    def __enter__(self) -> _LimitedBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.release(self._held)
        if self._held > _LARGE:
            give_back_memory()

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is only that the client has gone
            return await self._receive()
        loop = asyncio.get_running_loop()
        if math.isnan(self._until):
            self._until = loop.time() + self._options.body_timeout_s
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            raise TooSlow(f"the request did not arrive within {self._options.body_timeout_s:g} s") from error
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._held + size > self._options.max_request_bytes:
                raise TooLarge(f"at most {self._options.max_request_bytes} bytes are taken in a request")
            self._admission.hold(size)
            self._held += size
        return message
