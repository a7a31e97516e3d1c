"""The listener: HTTP in the replica's own process, without Ray Serve's proxy in between.

A request that passes the proxy costs two processes more CPU than the answer itself (`docs/decisions.md` has the
figures). All replicas of a machine listen at one address: the kernel shares connections out among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((host, port))
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
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


class _Server(uvicorn.Server):
    """Leaves signals to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield
