"""The listener: HTTP in the replica's own process, without Ray Serve's proxy in between.

A request that passes the proxy costs two processes more CPU than the answer itself (`docs/decisions.md` has the
figures). All replicas of a machine listen at one address: the kernel shares connections out among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.proxy import HeaderFilterMiddleware

# While a server ends, a client that was answered just before may have sent its next request already.
_LAST_REQUESTS_S = 0.5


class Listener:
    """Answers HTTP/1.1 in the running event loop, from now on.

    Args:
        app: answers.
        host: address to listen at, IPv4 or IPv6.
        port: to listen at.

    Raises:
        OSError: the address cannot be had.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._app = HeaderFilterMiddleware(app)
        self._ending = False
        family, address = resolve(host, port)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(address)
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http=_Protocol,
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve([self._socket]))

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return not self._task.done()

    async def end(self) -> None:
        """Takes no new connection, answers every request that has come, and returns."""
        self._ending = True
        for server in self._server.servers:
            server.close()
        await asyncio.sleep(_LAST_REQUESTS_S)
        self._server.should_exit = True
        await self._task

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = asyncio.Event()  # the request has been read to its end

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                whole.set()
            return message

        async def sending(message: Message) -> None:
            if self._ending and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        async def cancel_when_gone() -> None:
            await whole.wait()
            await receive()  # nothing comes any more but that the client has hung up
            answer.cancel()

        answer = asyncio.create_task(self._app(scope, receiving, sending))
        watch = asyncio.create_task(cancel_when_gone())
        try:
            await asyncio.wait([answer])
        finally:
            watch.cancel()
            answer.cancel()
        if not answer.cancelled():
            answer.result()


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 also for a client that offers HTTP/2, as curl --http2 and Java do: its parser would lose the body."""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if b"h2c" in data and _HEAD.match(data):
            head, end, body = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"", head + end) + body
        super().data_received(data)


# The first line of a request, and the offer of HTTP/2 in a line of its own.
_HEAD = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1\r\n")
_OFFER = re.compile(rb"(?i)\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)")


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Family and address to bind to of whatever names one: IPv4, IPv6 with or without a zone, or a host's name.

    Raises:
        OSError: it names none.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, address


class _Server(uvicorn.Server):
    """Leaves signals to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield
