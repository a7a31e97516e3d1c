"""Overload: what is refused at the head of a request is refused as on the usual way, and its body is let go by."""

from __future__ import annotations

import asyncio
import http.client
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from serving.http.middleware import RequestLimitsMiddleware
from serving.http.overload import EarlyRefusal
from serving.inference.admission import Admission
from serving.options import ServeOptions
from tests.serving.test_listener import Slow, ask, free_port, loop
from tests.serving.test_middleware import PATHS, NoMetrics

FULL = 10**6


def service(waiting: int, **options: Any) -> Any:
    chosen = ServeOptions(bundle="x", max_request_bytes=1000, **options)
    made = SimpleNamespace(metrics=NoMetrics(), admission=Admission(chosen, pace=0.01), options=chosen)
    made.admission.waiting = waiting
    return made


def head(path: str = "/predict", method: str = "POST", **headers: str) -> Scope:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": lines}


async def never(*_: Any) -> Any:
    raise AssertionError("nobody is to be asked")


def answered(app: Any, scope: Scope) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, never, send))
    return sent


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prefix", ["", "/flowers"])
def test_it_is_refused_as_on_the_usual_way(path: str, prefix: str) -> None:
    full = service(FULL, root_path=prefix)
    early = EarlyRefusal(full)(head(prefix + path))
    assert early
    usual = RequestLimitsMiddleware(never, full.options, full)
    found = answered(early, head(prefix + path))
    assert found == answered(usual, {**head(prefix + path), "root_path": prefix})
    assert found[0]["status"] == 503
    assert (b"retry-after", b"1") in found[0]["headers"]


@pytest.mark.parametrize(
    ("scope", "early"),
    [
        (head(), True),
        (head("/predict/a.jpg", "PUT"), True),
        (head(content_length="1000"), True),
        (head(method="GET"), False),
        ({"type": "websocket", "path": "/predict", "headers": []}, False),
        (head("/admin/reload"), False),
        (head(origin="https://a.example"), False),  # its scripts would not be shown why
        (head(content_length="1001"), False),  # it would be too large at any time
    ],
)
def test_only_what_has_no_other_answer_is_refused_early(scope: Scope, early: bool) -> None:
    assert bool(EarlyRefusal(service(FULL))(scope)) == early
    assert not EarlyRefusal(service(0))(scope)


def test_memory_counts_by_the_length_that_is_announced() -> None:
    some = service(0, max_held_bytes=3000)
    some.admission.hold(1)
    assert EarlyRefusal(some)(head(content_length="1000"))
    assert not EarlyRefusal(some)(head(content_length="999"))


def test_the_connection_is_good_for_the_next_request() -> None:
    """Whatever of the refused bodies came before the refusal and after it."""
    refusing = True

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with loop() as running:
        port = free_port("127.0.0.1")
        listener = running.listen(Slow(), "127.0.0.1", port, early=lambda scope: refuse if refusing else None)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for size in (0, 10, 1 << 20, 8 << 20):
            connection.request("POST", "/", body=b"x" * size)
            response = connection.getresponse()
            assert (response.status, response.read()) == (503, b"")
        refusing = False
        assert ask(connection)[:2] == (200, b"ok")
        refusing = True
        running.loop.call_soon_threadsafe(setattr, listener, "_ending", True)
        assert ask(connection)[::2] == (503, "close")
        running.end(listener).result(30)
