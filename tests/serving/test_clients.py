"""What clients send: each a little differently, and all get an answer."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.__main__ import _reachable
from serving.http.port import resolve
from tests.data.test_images import SAMPLES
from tests.e2e.head import free_port
from tests.serving.server import CLASSES, publish
from tests.serving.test_listener import listening

PHOTO = SAMPLES["png"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from serving.metrics import FOLDER
    from serving.replica import Classifier

    folder = tmp_path_factory.mktemp("clients")
    publish(folder, 1)
    (folder / "tokens").write_text("secret\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder / "metrics"))
        yield lambda **more: Classifier({"bundle": str(folder), "watch_s": 0, **more})


def client(service: Any, **more: Any) -> TestClient:
    from serving.http.app import build

    return TestClient(build(service(**more)))


@pytest.fixture(scope="module")
def plain(service: Any) -> TestClient:
    return client(service)


KINDS = ["", "image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_is_recognised_by_its_bytes(plain: TestClient, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = plain.post("/predict", content=PHOTO, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] in CLASSES


def test_what_is_no_photo_is_refused_by_its_type_or_its_bytes(plain: TestClient) -> None:
    assert plain.post("/predict", content=b"{}", headers={"Content-Type": "application/json"}).status_code == 415
    answer = plain.post("/predict", content=b"hello")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_a_photo")


@pytest.mark.parametrize("path", ["/predict", "/predict/", "/predict/my%20photo.png"])
def test_put_as_curl_does(plain: TestClient, path: str) -> None:
    assert plain.put(path, content=PHOTO).json()["label"] in CLASSES


PATHS = ["/v2/health/live", "/v2/health/ready", "/v1/models/flowers", "/v2/models/flowers", "/metrics", "/", "/docs"]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_a_body(plain: TestClient, path: str) -> None:
    got, head = plain.get(path), plain.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("path", PATHS)
def test_a_slash_at_the_end_does_not_matter(plain: TestClient, path: str) -> None:
    assert plain.get(f"{path}/", follow_redirects=False).status_code == 200


def variants(photo: bytes) -> dict[str, str]:
    text = base64.b64encode(photo).decode()
    return {
        "plain": text,
        "unpadded": text.rstrip("="),
        "URL-safe": base64.urlsafe_b64encode(photo).decode(),
        "URL-safe and unpadded": base64.urlsafe_b64encode(photo).decode().rstrip("="),
        "lines": "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        "data URI": f"data:image/png;base64,{text}",
        "data URI with more": f"data:image/png;name=a.png;base64,{text}",
        "DATA URI, unpadded": f"DATA:;BASE64,{text.rstrip('=')}",
    }


@pytest.mark.parametrize("length", [0, 1, 2])  # of padding
@pytest.mark.parametrize("name", variants(b""))
def test_base64_in_every_dress(plain: TestClient, name: str, length: int) -> None:
    photo = PHOTO + bytes((-length - len(PHOTO)) % 3)
    assert variants(photo)["plain"].count("=") == length
    body = json.dumps({"instances": [{"b64": variants(photo)[name]}]})
    answer = plain.post("/v1/models/flowers:predict", content=body)
    assert answer.status_code == 200, answer.text
    want = plain.post(
        "/v1/models/flowers:predict", content=json.dumps({"instances": [{"b64": variants(PHOTO)["plain"]}]})
    )
    assert answer.json()["predictions"] == want.json()["predictions"]


@pytest.mark.parametrize("text", ["a", "ab*d", "data:image/png,abcd", "data:", "ab=d"])
def test_what_is_not_base64(plain: TestClient, text: str) -> None:
    answer = plain.post("/v1/models/flowers:predict", content=json.dumps({"instances": [{"b64": text}]}))
    assert answer.status_code == 400, answer.text


NAMES = [
    ('filename="a.png"', "a.png"),
    ("filename=a.png", "a.png"),
    ('filename="löwenzahn ☃.png"', "löwenzahn ☃.png"),
    ('filename="a \\"b\\".png"', 'a "b".png'),
    ("filename*=UTF-8''l%C3%B6wenzahn.png", "löwenzahn.png"),
    ("filename=\"x.png\"; filename*=utf-8''l%C3%B6we.png", "löwe.png"),
    ('filename="C:\\photos\\a.png"', None),
    ('FILENAME="a.png"', "a.png"),
    ('filename=""', ""),
]


@pytest.mark.parametrize(("field", "name"), NAMES)
def test_names_of_files_in_forms(plain: TestClient, field: str, name: str | None) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="f"; {field}\r\nContent-Type: image/png\r\n\r\n'.encode()
    body = head + PHOTO + b"\r\n--b--\r\n"
    answer = plain.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["items"]
    assert item["label"] in CLASSES
    assert name is None or item["filename"] == name


def test_scripts_of_other_pages_may_ask_only_where_they_are_named(service: Any) -> None:
    origin = {"Origin": "https://a.example"}
    ask = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    without = client(service)
    assert "access-control-allow-origin" not in without.get("/v2/health/live", headers=origin).headers
    tokens = str(Path(service().options.bundle) / "tokens")
    some = client(service, cors_origins="https://a.example, http://localhost:3000", tokens_file=tokens)
    before = some.options("/predict", headers=ask)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, "https://a.example")
    refused = some.post("/predict", content=PHOTO, headers=origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")
    other = some.options("/predict", headers={**ask, "Origin": "https://b.example"})
    assert other.status_code == 400
    everyone = client(service, cors_origins="*").get("/v2/health/live", headers=origin)
    assert everyone.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("taken_off", [True, False])
def test_documents_behind_a_path(service: Any, taken_off: bool) -> None:
    below = client(service, root_path="/flowers")
    at = "" if taken_off else "/flowers"
    page = below.get(f"{at}/docs")
    assert page.status_code == 200
    links = re.findall(r"""(?:href|src|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert "/flowers/openapi.json" in links
    for link in links:
        if link.startswith("/"):
            assert link.startswith("/flowers/"), link
            assert below.get(link.removeprefix("/flowers") if taken_off else link).status_code == 200, link
    assert below.post(f"{at}/predict", content=PHOTO).status_code == 200


HOSTS = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("localhost", "localhost"),
    ("::1", "[::1]"),
    ("[::1]", "[::1]"),
    ("::", "[::1]"),
]


@pytest.mark.parametrize(("host", "shown"), HOSTS)
def test_the_address_that_is_printed_works(plain: TestClient, host: str, shown: str) -> None:
    assert _reachable(host) == shown
    port = free_port()
    try:
        family, address = resolve(host, port)
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listening(plain.app, port, host):
        for options in ([], ["--http2"], ["--http1.0"], ["-I"]):
            words = ["curl", "-sS", "-g", "--max-time", "20", *options, f"http://{shown}:{port}/v2/health/live"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (options, done.stderr)
        for more in (["--http2", "--data-binary", "@-"], ["-T", "-"]):
            words = ["curl", "-sS", "-g", *more, f"http://{shown}:{port}/predict"]
            answer = subprocess.run(words, input=PHOTO, capture_output=True, check=False, timeout=30).stdout
            assert json.loads(answer)["label"] in CLASSES
