"""The listener: HTTP in the replica's own process, without Ray Serve's proxy in between.

A request that passes the proxy costs two processes more CPU than the answer itself (`docs/decisions.md` has the
figures). All replicas of a machine take connections from one port (`serving.http.port`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.http.acceptor import Acceptor
from serving.http.proxy import HeaderFilterMiddleware

# While a server ends, a client that was answered just before may have sent its next request already.
_LAST_REQUESTS_S = 0.5


class Listener:
    """Answers HTTP/1.1 in the running event loop, from now on.

    Args:
        app: answers.
        listening: a socket that is bound; closed at the end.
        early: finds by the head of a request another app for it, which needs no body.
        silence_s: seconds after which a connection is closed if nothing, or no whole head of a request, has come.
    """

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        early: Callable[[Scope], ASGIApp | None] = lambda scope: None,
        silence_s: float = 20,
    ) -> None:
        self._app, self._early = HeaderFilterMiddleware(app), early
        self._ending = False
        self._server = _Server(_config(self._answer))
        self._task = asyncio.get_running_loop().create_task(self._server.serve([]))
        self._acceptor = Acceptor(
            listening,
            functools.partial(_Protocol, self._server.config, self._server.server_state, silence_s),
            functools.partial(_Protocol, _config(self._answer_probe), ServerState(), silence_s),
            silence_s,
        )

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._acceptor.alive and not self._task.done()

    async def end(self) -> None:
        """Takes no new connection, answers every request that has come, and returns."""
        self._ending = True
        await self._acceptor.close()
        await asyncio.sleep(_LAST_REQUESTS_S)
        self._server.should_exit = True
        await self._task
        self._acceptor.end()

    async def _answer_probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs in the acceptor's thread, where nothing but probes may: the connection is closed after the answer."""

        async def sending(message: Message) -> None:
            await send(_closing(message))

        await self._app(scope, receive, sending)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            await send(_closing(message) if self._ending else message)

        if early := self._early(scope):
            await early(scope, receive, sending)
            return
        whole = asyncio.Event()  # the request has been read to its end

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                whole.set()
            return message

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


def _config(app: ASGIApp) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
    )
    config.load()
    return config


def _closing(message: Message) -> Message:
    """Tells with the head of an answer that the connection is closed after it."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 also for a client that offers HTTP/2, as curl --http2 and Java do: its parser would lose the body.

    Args:
        config: with the app.
        state: of all connections.
        head_s: a connection is closed if the head of a request takes longer, in seconds.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, head_s: float) -> None:
        super().__init__(config, state, {})
        self._head_s = head_s
        self._head_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._head_timer = self.loop.call_later(self._head_s, self.transport.close)
        if _HEAD.match(data):
            end = data.find(b"\r\n\r\n") + 4
            head = data[:end] if end > 3 else data  # not the photo behind it, which is long
            if b"h2c" in head:
                data = _OFFER.sub(b"", head) + data[len(head) :]
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


# The first line of a request, and the offer of HTTP/2 in a line of its own.
_HEAD = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1\r\n")
_OFFER = re.compile(rb"(?i)\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)")


class _Server(uvicorn.Server):
    """Leaves signals to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield
