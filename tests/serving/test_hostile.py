"""Whatever comes over a socket gets a result or a reason, or silence if it is not whole; it harms nobody else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_images import SAMPLES
from tests.faults.processes import members
from tests.serving.hostile import (
    FORM,
    JSON,
    KINDS,
    Got,
    Kind,
    Sent,
    form,
    problem,
    send,
    whole,
)
from tests.serving.server import Server

GROWTH_MB = 150


def ordinary(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = server.predict(SAMPLES["jpeg"], "?heatmap=1").json()
    answer.pop("timing", None)
    return answer


def processes(server: Server) -> dict[int, float]:
    """Memory, in MB, of the replica and of Ray's proxy before it, by process id."""
    ids = [pid for pid, line in members(server.job.pid).items() if "ServeReplica" in line or "ProxyActor" in line]
    status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in ids}
    return {pid: int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024 for pid, text in status.items()}


@pytest.fixture(scope="module")
def before(shared_server: Callable[[], Server]) -> tuple[dict[str, Any], dict[int, float]]:
    server = shared_server()
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(server.predict, [*SAMPLES.values()] * 3)} == {200}
    return ordinary(server), processes(server)


@pytest.fixture(autouse=True)
def unharmed(server: Server, before: tuple[dict[str, Any], dict[int, float]]) -> Iterator[None]:
    """After each test the same processes are there, have not grown, said nothing, and answer as before."""
    yield
    answer, memory = before
    assert ordinary(server) == answer
    now = processes(server)
    assert set(now) == set(memory)
    assert server.replicas()
    assert all(now[pid] - memory[pid] < GROWTH_MB for pid in now), (memory, now)
    assert server.job.err.read_text() == ""


@pytest.mark.parametrize("name", KINDS)
def test_each_gets_an_answer_or_a_reason(name: str, server: Server, before: tuple[dict[str, Any], Any]) -> None:
    """With ordinary photos between them."""
    kind = KINDS[name]

    def ask(number: int, sent: Sent) -> str:
        try:
            got = send(server, sent)
            wrong = problem(got, kind) if sent.end != "leave" else ""
        except TimeoutError:
            got, wrong = Got(), "no answer"
        if number % 8 == 0 and ordinary(server) != before[0]:
            wrong += "; another client's answer has changed"
        return wrong and f"{name} {number}: {wrong}: {got}\n  sent {b''.join(sent.pieces)[:400]!r}"

    sent = kind.make()
    with ThreadPoolExecutor(8) as pool:
        wrong = [text for text in pool.map(ask, range(len(sent)), sent) if text]
    assert not wrong, "\n".join(wrong[:8])


# ---------------------------------------------------------------- what /openapi.json allows

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
BYTES = st.sampled_from([*SAMPLES.values()]) | st.binary(max_size=50)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 9).flatmap(lambda number: ANY if number == 9 else strategy)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, and now and then anything else in the place of a string or number."""
    if "enum" in schema:
        return mostly(st.sampled_from(schema["enum"]))
    if "oneOf" in schema:
        return st.one_of([values(one) for one in schema["oneOf"]])
    if schema["type"] == "object":
        fields = {name: values(one) for name, one in schema["properties"].items()}
        required = {name: fields.pop(name) for name in schema["required"]}
        return st.fixed_dictionaries(required, optional=fields)
    if schema["type"] == "array":
        least, most = schema.get("minItems", 0), min(schema.get("maxItems", 3), 5)
        return st.lists(values(schema["items"]), min_size=least, max_size=most)
    if schema["type"] == "integer":
        return mostly(st.integers(schema.get("minimum"), schema.get("maximum")))
    if "pattern" in schema:
        return mostly(st.from_regex(schema["pattern"], fullmatch=True))
    if schema.get("format") == "binary":
        return BYTES
    encoded = BYTES.map(lambda data: base64.b64encode(data).decode())
    return mostly(encoded if schema.get("format") == "byte" else st.text(max_size=20))


@st.composite
def documented(draw: st.DrawFn, path: str, method: str, operation: dict[str, Any]) -> Sent:
    places: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
    for one in operation.get("parameters", ()):
        if one.get("required") or draw(st.booleans()):
            value = one["example"] if "example" in one and draw(st.booleans()) else draw(values(one["schema"]))
            places[one["in"]][one["name"]] = quote(str(value).encode("utf-8", "replace"), safe="")
    for name, text in places["path"].items():
        path = path.replace(f"{{{name}}}", text)
    path += "?" * bool(places["query"]) + "&".join(f"{name}={text}" for name, text in places["query"].items())
    more: dict[str, Any] = {
        "method": method.upper(),
        "head": [f"{name}: {text}" for name, text in places["header"].items()],
    }
    contents = operation.get("requestBody", {}).get("content", {})
    if not contents:
        return whole(path=path, content="", **more)
    content = draw(st.sampled_from(sorted(contents)))
    value = draw(values(contents[content]["schema"]))
    if content == JSON:
        return whole(json.dumps(value).encode(), path, content, **more)
    if content.startswith("multipart/"):
        fields = [(name, one if isinstance(one, list) else [one]) for name, one in value.items()]
        return whole(form([(name, data) for name, several in fields for data in several]), path, FORM, **more)
    return whole(value, path, content.replace("*", "png"), **more)


def test_what_is_documented(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():

            @settings(max_examples=12, deadline=None, derandomize=True, database=None)
            @given(documented(path, method, operation))
            def ask(sent: Sent) -> None:
                got = send(server, sent)
                assert not problem(got, Kind(list)), (got, sent.pieces[0][:400])

            ask()
