"""Parsing of JSON: large bodies get the same answers from another process, and bombs a refusal."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from flowers.bounded import BoundedProcess
from serving.protocols import parsing
from tests.serving.conftest import SIZE, FakeService

ROWS, INFER = "/v1/models/flowers:predict", "/v2/models/flowers/infer"
B64 = base64.b64encode(b"photo").decode()
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [2, SIZE, SIZE, 3]}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A process that bombs of a megabyte are too much for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "_process", BoundedProcess(parsing._CPU_S, parsing._MEMORY >> 4))
        yield
        parsing._process.close()


@pytest.mark.parametrize(
    ("path", "call"),
    [
        (ROWS, {"instances": [{"b64": B64}, {"b64": B64}]}),
        (ROWS, {"inputs": {"image_bytes": [{"b64": B64}]}}),
        (ROWS, {"instances": [{"b64": "?"}]}),
        (ROWS, {"instances": [{"b64": B64}] * 9}),
        (ROWS, []),
        (INFER, {"inputs": [{**PIXELS, "data": np.arange(96).reshape(2, SIZE, SIZE, 3).tolist()}], "id": "x"}),
        (INFER, {"inputs": [{**PIXELS, "data": [1, 2]}]}),
        (INFER, {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [B64]}]}),
    ],
)
def test_another_process_answers_the_same(
    client: TestClient, service: FakeService, monkeypatch: pytest.MonkeyPatch, path: str, call: Any
) -> None:
    here = client.post(path, content=json.dumps(call))
    monkeypatch.setattr(parsing, "_BYTES", 0)
    asked = []
    run = parsing._process.call
    monkeypatch.setattr(parsing._process, "call", lambda *given: (asked.append(given), run(*given))[1])  # type: ignore[func-returns-value]
    there = client.post(path, content=json.dumps(call))
    assert len(asked) == 1
    assert (there.status_code, there.json()) == (here.status_code, here.json())


@pytest.mark.parametrize("path", [ROWS, INFER])
@pytest.mark.parametrize("element", ["[[]]", "{}", '{"a":[]}', "[0.5]"])
def test_a_bomb_of_json_is_refused_and_the_next_is_answered(client: TestClient, path: str, element: str) -> None:
    bomb = '{"instances":[' + ",".join([element] * (8_000_000 // len(element))) + "]}"
    answer = client.post(path, content=bomb)
    assert answer.status_code in (400, 413)
    assert len(answer.text) < 300
    assert client.post(ROWS, content=json.dumps({"instances": [{"b64": B64}]})).status_code == 200
