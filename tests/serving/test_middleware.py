"""What is too large, too slow, too much or has no token is refused before anything is computed."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from flowers.errors import InputError
from serving.http.middleware import RequestLimitsMiddleware, read_tokens
from serving.http.responses import error_response, route_path
from serving.inference.admission import Admission, Refusals
from serving.options import ServeOptions
from serving.service import Overloaded

PATHS = ["/predict", "/v1/models/flowers:predict", "/v2/models/flowers/infer", "/api/ImageClassification/classifyImage"]


class NoMetrics:
    @contextmanager
    def request(self, scope: Scope) -> Iterator[Callable[[Send], Send]]:
        yield lambda send: send


async def count_bytes(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads everything; waits if asked to, as an app that computes."""
    request = Request(scope, receive)
    body = await request.body()
    await asyncio.sleep(float(request.query_params.get("wait", 0)))
    await JSONResponse({"bytes": len(body)})(scope, receive, send)


def ask(
    options: dict[str, Any],
    *,
    path: str = "/predict",
    parts: Sequence[bytes] = (b"",),
    pause: float = 0,
    headers: dict[str, str] | None = None,
    waiting: int = 0,
    held: int = 0,
    query: str = "",
    prefix: str = "",
) -> tuple[int, Any, dict[str, str], int]:
    """Status, body, headers, and how many parts of the request were read."""
    sent: list[Any] = []
    read = 0

    async def receive() -> Any:
        nonlocal read
        await asyncio.sleep(pause)
        if read >= len(parts):
            await asyncio.sleep(60)
        read += 1
        return {"type": "http.request", "body": parts[read - 1], "more_body": read < len(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope: Scope = {"type": "http", "method": "POST", "path": prefix + path, "root_path": prefix, "headers": raw}
    scope["query_string"] = query.encode()
    chosen = ServeOptions(bundle="x", **options)
    service = SimpleNamespace(metrics=NoMetrics(), admission=Admission(chosen, pace=0.01))
    service.admission.waiting = waiting
    service.admission.hold(held)
    asyncio.run(RequestLimitsMiddleware(count_bytes, chosen, service)(scope, receive, send))
    assert service.admission.held == 3 * held
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(b"".join(part["body"] for part in sent[1:])), found, read


def test_what_fits_passes() -> None:
    assert ask({"max_request_bytes": 6}, parts=[b"abc", b"def"])[:2] == (200, {"bytes": 6})


@pytest.mark.parametrize("path", PATHS)
def test_too_many_bytes_by_the_header_are_not_read(path: str) -> None:
    status, body, _, read = ask(
        {"max_request_bytes": 10}, path=path, parts=[b"x" * 11], headers={"Content-Length": "11"}
    )
    assert (status, read) == (413, 0)
    error = body["error"]
    assert "11 bytes, at most 10" in (error if path.startswith("/v") else error["detail"])


def test_too_many_bytes_without_a_header_are_counted() -> None:
    status, _, _, read = ask({"max_request_bytes": 10}, parts=[b"x" * 6] * 50)
    assert (status, read) == (413, 2)


@pytest.mark.parametrize("length", ["-5", "1e9", "x", "", "9" * 500])
def test_a_wrong_length_is_no_error_of_ours(length: str) -> None:
    status = ask({"max_request_bytes": 10}, parts=[b"x"], headers={"Content-Length": length})[0]
    assert status == (413 if length.startswith("9") else 200)


def test_a_slow_sender_is_told_so() -> None:
    status, body, _, _ = ask({"body_timeout_s": 0.1}, parts=[b"x"] * 100, pause=0.03)
    assert status == 408
    assert body["error"]["code"] == "too_slow"


def test_a_sender_that_stops_is_told_so() -> None:
    assert ask({"body_timeout_s": 0.1}, parts=[b"x", b"y"], pause=20)[0] == 408


@pytest.mark.parametrize("header", ["0", "-1", "1000"])
def test_the_time_is_ours_whatever_the_client_says(header: str) -> None:
    status, body, headers, _ = ask({"timeout_s": 0.1}, query="wait=5", headers={"x-request-timeout-seconds": header})
    assert status == 503
    assert headers["retry-after"] == "1"
    assert "within 0.1 s" in body["error"]["detail"]


def test_a_full_replica_refuses_without_reading() -> None:
    status, body, headers, read = ask({"max_waiting": 64}, parts=[b"x"], waiting=64)
    assert (status, headers["retry-after"], read) == (503, "1", 0)
    assert body["error"]["code"] == "overloaded"
    assert ask({"max_waiting": 64}, parts=[b"x"], waiting=63)[0] == 200


def test_what_would_wait_too_long_is_refused_without_reading() -> None:
    """A photo takes 0.01 s here."""
    status, body, headers, read = ask({"max_wait_s": 1}, parts=[b"x"], waiting=101)
    assert (status, headers["retry-after"], read) == (503, "1", 0)
    assert body["error"]["detail"] == "a photo would wait 1.0 s, at most 1 s; try again"
    assert ask({"max_wait_s": 1}, parts=[b"x"], waiting=100)[0] == 200


def test_bytes_that_do_not_fit_are_refused() -> None:
    """Each byte of a request is in memory three times."""
    admission = Admission(ServeOptions(bundle="x", max_request_bytes=10, max_held_bytes=30), 0)
    admission.hold(4)
    admission.check(size=6)
    for refused in (admission.hold, functools.partial(admission.check, 1)):
        with pytest.raises(Overloaded, match="requests take 12 bytes of memory, at most 30 may"):
            refused(7)
    admission.release(4)
    admission.hold(10)
    with pytest.raises(
        InputError, match=r"^--max-request-bytes: received 11, required is at most a third of --max-held-bytes \(30\)"
    ):
        ServeOptions(bundle="x", max_request_bytes=11, max_held_bytes=30)


def test_bodies_that_come_together_are_refused_when_they_take_too_much() -> None:
    options = {"max_request_bytes": 10, "max_held_bytes": 30}
    status, body, headers, read = ask(options, parts=[b"12345"] * 2, held=4)
    assert (status, headers["retry-after"], read) == (503, "1", 2)
    assert body["error"]["code"] == "overloaded"
    assert ask(options, parts=[b"12345"] * 2)[0] == 200


def test_the_pace_follows_the_batches() -> None:
    admission = Admission(ServeOptions(bundle="x", max_wait_s=1), pace=1.0)
    for _ in range(20):
        admission.learn(32, 0.32)
    assert admission.pace == pytest.approx(0.01, rel=0.5)
    admission.learn(1, 10)
    assert admission.pace < 0.2, "one slow photo alone refuses nobody"
    with admission.take(64):
        assert admission.waiting == 64
    assert admission.waiting == 0


def test_the_pace_is_that_of_the_decoders_while_the_network_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches take 10 ms each and end 100 ms apart, as long as photos wait."""
    now = 5.0
    monkeypatch.setattr("serving.inference.admission.time.perf_counter", lambda: now)
    admission = Admission(ServeOptions(bundle="x"), pace=0.01)
    admission.waiting = 3
    for _ in range(2000):
        admission.learn(1, 0.01)
        now += 0.1
    assert admission.pace == pytest.approx(0.1, rel=0.01)
    admission.waiting = 1
    for _ in range(2000):  # each photo comes after the answer to the one before
        admission.learn(1, 0.01)
        now += 0.1
    assert admission.pace == pytest.approx(0.01, rel=0.01)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "tokens").write_text("first\nsecond\n")
    (tmp_path / "admin").write_text("boss\n")
    return {"tokens_file": str(tmp_path / "tokens"), "admin_token_file": str(tmp_path / "admin")}


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        *((path, None, 401) for path in PATHS),
        *((path, "Bearer second", 200) for path in PATHS),
        ("/predict", "bearer  first", 200),
        ("/predict", "Bearer boss", 200),
        ("/predict", "Bearer secon", 401),
        ("/predict", "Bearer second2", 401),
        ("/predict", "Bearer", 401),
        ("/predict", "Basic second", 401),
        ("/predict", "Bearer sécond", 401),
        ("/metrics", None, 401),
        ("/docs", None, 401),
        ("/", None, 200),
        ("/page/page.js", None, 200),
        ("/v2/health/ready", None, 200),
        ("/admin/reload", "Bearer boss", 200),
        ("/admin/reload", "Bearer first", 401),
        ("/admin/reload", None, 401),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/flowers", "/behind/a/proxy"])
def test_tokens(prefix: str, path: str, authorization: str | None, status: int, tokens: dict[str, Any]) -> None:
    found, _, headers, _ = ask(
        tokens, path=path, prefix=prefix, headers={"Authorization": authorization} if authorization else {}
    )
    assert found == status
    assert ("www-authenticate" in headers) == (status == 401)


def test_without_tokens_all_may_ask_and_nobody_may_reload() -> None:
    assert ask({})[0] == 200
    assert ask({}, path="/admin/reload", headers={"Authorization": "Bearer x"})[0] == 401


@given(st.text("/ab", max_size=6), st.text("/ab", max_size=4))
def test_what_is_checked_is_the_path_that_routes_match(path: str, prefix: str) -> None:
    for scope in ({"path": path, "root_path": prefix}, {"path": prefix + path, "root_path": prefix}, {"path": path}):
        assert route_path(scope) == get_route_path(scope)


def test_comments_and_blank_lines_are_no_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# of the shop\n\n  first \n#second\nthird\n")
    assert read_tokens(str(file)) == (b"first", b"third")
    file.write_text("first\nsecond third\n")
    with pytest.raises(InputError, match=r"line 2 of the file of tokens .* has blanks"):
        read_tokens(str(file))
    file.write_text("# nothing but words\n")
    with pytest.raises(InputError, match="has none"):
        read_tokens(str(file))


def test_a_file_of_tokens_has_some(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(InputError, match="has none"):
        read_tokens(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="cannot be read"):
        read_tokens(str(tmp_path / "absent"))


def test_an_app_that_has_begun_to_answer_is_not_answered_for() -> None:
    async def begins(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(5)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    chosen = ServeOptions(bundle="x", timeout_s=0.05)
    service = SimpleNamespace(metrics=NoMetrics(), admission=Admission(chosen, 0))
    with pytest.raises(TimeoutError):
        asyncio.run(RequestLimitsMiddleware(begins, chosen, service)(scope, receive, send))
    assert sent == ["http.response.start"]


def test_each_protocol_has_its_shape() -> None:
    for path in PATHS:
        body = json.loads(bytes(error_response(path, Overloaded("full")).body))
        assert body == {"error": "full" if path.startswith("/v") else {"code": "overloaded", "detail": "full"}}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("", 200),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("photos.example", 200),
        ("Photos.Example.:443", 200),
        ("evil.example", 421),
        ("photos.example.evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1@evil.example", 421),
    ],
)
def test_a_request_for_another_host_is_refused(host: str, status: int) -> None:
    """So a page of a stranger cannot ask by giving its own name our address."""
    for path in PATHS:
        found, body, _, read = ask({"allowed_hosts": "photos.example, b.example"}, path=path, headers={"Host": host})
        assert found == status
        assert status == 200 or (read == 0 and "--allowed-hosts" in json.dumps(body))


def test_any_host_is_served_where_none_is_named() -> None:
    assert ask({}, headers={"Host": "any.example"})[0] == 200
    assert ask({"allowed_hosts": "a.example,*"}, headers={"Host": "any.example"})[0] == 200


def test_refusals_wait_the_longer_the_more_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    refusals = Refusals()
    assert [refusals.wait_s() for _ in range(1000)] == [0.025] * 1000
    waits = [refusals.wait_s() for _ in range(10_000)]
    assert waits == sorted(waits)
    assert waits[-1] == 2.0
    now += 10
    assert refusals.wait_s() == 0.025
