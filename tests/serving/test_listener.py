"""The listener: what has come is answered before it ends."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from flowers.errors import InputError
from serving.http import listener as listeners
from serving.http.listener import Listener
from serving.http.port import Port, hold, resolve, take

HOSTS = ["127.0.0.1", "::1"]


class Slow:
    """An ASGI app that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            self.asked.release()
            await asyncio.to_thread(self.answer.wait, 30)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Cancelled:
    """An ASGI app that reads a request and never answers it."""

    def __init__(self) -> None:
        self.asked, self.cancelled = threading.Semaphore(0), threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"photo"
        self.asked.release()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Running:
    """Listeners in an event loop of their own thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def listen(self, app: Any, host: str, port: int, **more: Any) -> Listener:
        with hold(host, port) as held:  # a listener keeps the port when the command has let go of it
            return self.take(app, held, **more)

    def take(self, app: Any, port: Port, **more: Any) -> Listener:
        async def start() -> Listener:
            return Listener(app, take(port.path), **more)

        return asyncio.run_coroutine_threadsafe(start(), self.loop).result(30)

    def end(self, listener: Listener) -> Any:
        """A future that is done when the listener has ended."""
        return asyncio.run_coroutine_threadsafe(listener.end(), self.loop)


@pytest.fixture
def running() -> Iterator[Running]:
    with loop() as made:
        yield made


@pytest.fixture
def nobody_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no request is on its way at the end, nobody has to wait for one."""
    monkeypatch.setattr(listeners, "_LAST_REQUESTS_S", 0.02)


@contextmanager
def loop() -> Iterator[Running]:
    made = Running()
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    made.thread.join(30)


@contextmanager
def listening(app: Any, port: int, host: str = "127.0.0.1") -> Iterator[None]:
    """Answers meanwhile; at the end no request is on its way."""
    with loop() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(listeners, "_LAST_REQUESTS_S", 0.02)
        listener = made.listen(app, host, port)
        yield
        made.end(listener).result(30)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((request.param, 0))
        except OSError:
            pytest.skip(f"this machine has no {request.param}")
    return str(request.param)


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def get(host: str, port: int, path: str = "/") -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        return ask(connection, path)
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str = "/") -> tuple[int, bytes, str | None]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read(), response.headers.get("connection")


def test_what_is_in_flight_is_answered(running: Running, host: str) -> None:
    app, port = Slow(), free_port(host)
    listener = running.listen(app, host, port)
    kept = http.client.HTTPConnection(host, port, timeout=30)
    assert ask(kept) == (200, b"ok", None)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(get, host, port, "/slow") for _ in range(8)]
        for _ in answers:
            assert app.asked.acquire(timeout=30)
        ended = running.end(listener)
        # A client that had an answer before does not know that this is the end: its next request is answered too.
        assert ask(kept)[:2] == (200, b"ok")
        while True:  # no new connection is taken, while the eight still wait
            try:
                get(host, port)
            except OSError:
                break
        assert not any(answer.done() for answer in answers)
        assert not ended.done()
        app.answer.set()
        assert [answer.result(30) for answer in answers] == [(200, b"ok", "close")] * 8
    ended.result(30)
    assert not listener.alive


@pytest.mark.usefixtures("nobody_late")
def test_a_client_that_hangs_up_is_not_answered(running: Running) -> None:
    app, port = Cancelled(), free_port("127.0.0.1")
    listener = running.listen(app, "127.0.0.1", port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/", body=b"photo")
    assert app.asked.acquire(timeout=30)
    assert not app.cancelled.is_set()
    connection.close()
    assert app.cancelled.wait(30)
    running.end(listener).result(30)


@pytest.mark.usefixtures("nobody_late")
def test_several_share_a_port(running: Running, host: str) -> None:
    port = free_port(host)
    with hold(host, port) as held:
        first, second = (running.take(Slow(), held) for _ in range(2))
        running.end(first).result(30)
        assert second.alive
        assert all(get(host, port)[:2] == (200, b"ok") for _ in range(20))
        held.close()
        assert get(host, port)[0] == 200
        running.end(second).result(30)
    with pytest.raises(OSError, match="refused"):
        get(host, port)


@pytest.mark.usefixtures("nobody_late")
def test_who_comes_while_nobody_listens_waits_for_the_next(running: Running, host: str) -> None:
    port = free_port(host)
    with hold(host, port) as held, ThreadPoolExecutor(40) as pool:
        with pytest.raises(OSError, match="refused"):  # not before the first is ready
            get(host, port)
        running.end(running.take(Slow(), held)).result(30)
        connections = [socket.create_connection((host, port), timeout=30) for _ in range(20)]
        answers = [pool.submit(get, host, port) for _ in range(20)]
        listener = running.take(Slow(), held)
        assert [answer.result(30)[0] for answer in answers] == [200] * 20
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
        running.end(listener).result(30)


def refused(host: str, port: int) -> str:
    with pytest.raises(InputError) as caught, hold(host, port):
        pass
    return str(caught.value)


def test_a_port_is_held_alone(host: str) -> None:
    with hold(host, port := free_port(host)):
        assert refused(host, port) == f"--host {host} --port {port}: Address already in use; give another port"
        family, address = resolve(host, port)
        with socket.socket(family) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(address)
    assert refused("192.0.2.1", port).endswith(": Cannot assign requested address; give an address of this machine")
    assert refused("no.such.host.invalid", port).endswith("; give an address of this machine")


@pytest.mark.usefixtures("nobody_late")
def test_the_next_server_gets_the_port_at_once(running: Running, host: str) -> None:
    """What the server closed itself keeps its address for a minute, as every server that is stopped at work leaves."""
    port = free_port(host)
    for _ in range(2):
        listener = running.listen(Slow(), host, port)
        with socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while connection.recv(1000):
                pass
        assert refused(host, port).endswith("Address already in use; give another port")
        running.end(listener).result(30)


@pytest.mark.usefixtures("nobody_late")
def test_a_head_without_an_end_of_lines_is_refused(running: Running) -> None:
    port = free_port("127.0.0.1")
    listener = running.listen(Slow(), "127.0.0.1", port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/", headers={f"x-{number}": "y" * 1000 for number in range(70)})
    assert connection.getresponse().status == 431
    assert get("127.0.0.1", port)[0] == 200
    running.end(listener).result(30)


class Blocked(Slow):
    """An ASGI app that holds the photos' loop for as long as it computes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            self.asked.release()
            self.answer.wait(30)
        await super().__call__({**scope, "path": "/"}, receive, send)


def test_probes_are_answered_while_photos_keep_their_loop_busy(running: Running, host: str) -> None:
    app, port = Blocked(), free_port(host)
    listener = running.listen(app, host, port)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, host, port, "/slow")
        assert app.asked.acquire(timeout=30)
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert get(host, port, path) == (200, b"ok", "close")
        assert not slow.done()
        app.answer.set()
        assert slow.result(30)[:2] == (200, b"ok")
    running.end(listener).result(30)


@pytest.mark.usefixtures("nobody_late")
def test_a_connection_of_a_probe_is_for_nothing_else(running: Running) -> None:
    port = free_port("127.0.0.1")
    listener = running.listen(Slow(), "127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /photos HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answers.count(b"HTTP/1.1 200") == 1
    running.end(listener).result(30)


@pytest.mark.usefixtures("nobody_late")
@pytest.mark.parametrize("sent", [b"", b"P", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /v2/health/live HTTP/1.1\r\n"])
def test_a_connection_on_which_no_whole_head_comes_is_closed(running: Running, sent: bytes) -> None:
    port = free_port("127.0.0.1")
    listener = running.listen(Slow(), "127.0.0.1", port, silence_s=0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    assert ask(kept)[0] == 200
    assert kept.sock
    kept.sock.sendall(b"GET / HT")  # the same after an answer
    assert kept.sock.recv(100) == b""
    running.end(listener).result(30)


@pytest.mark.parametrize("slow", [False, True])
def test_what_came_before_the_end_is_answered_though_nobody_took_it_yet(running: Running, slow: bool) -> None:
    """Connections wait in the kernel while the acceptor is busy, and it may be slow afterwards."""
    port = free_port("127.0.0.1")
    listener = running.listen(Slow(), "127.0.0.1", port)
    accepting = listener._acceptor._loop
    go, turns = threading.Event(), iter(range(8 if slow else 0))

    def stall() -> None:
        if next(turns, None) is not None:
            time.sleep(0.3)  # each turn of its loop takes as long
            accepting.call_soon(stall)

    accepting.call_soon_threadsafe(go.wait, 30)
    accepting.call_soon_threadsafe(stall)
    clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(20)]
    for client in clients:
        client.request("GET", "/")
    ended = running.end(listener)
    go.set()
    assert [client.getresponse().status for client in clients] == [200] * 20
    ended.result(30)


def test_a_silent_connection_does_not_hold_up_the_end(running: Running) -> None:
    port = free_port("127.0.0.1")
    listener = running.listen(Slow(), "127.0.0.1", port, silence_s=3600)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
        assert get("127.0.0.1", port)[0] == 200  # the acceptor has taken the one before too
        running.end(listener).result(30)
        assert silent.recv(100) == b""
