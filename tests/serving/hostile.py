"""Requests that no honest client sends: broken photos, broken HTTP, clients that are slow or go away."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from tests.data.test_images import SAMPLES, declared, png
from tests.serving.server import BODY_S, MOST_BYTES, MOST_PIXELS, SIZE, Server

Rng = np.random.Generator
PATIENCE_S = 30
PREDICT, ROWS, INFER = "/predict", "/v1/models/flowers:predict", "/v2/models/flowers/infer"
MLNET = "/api/ImageClassification/classifyImage"
JSON, BINARY, FORM = "application/json", "application/octet-stream", "multipart/form-data; boundary=b"
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}


class Sent(NamedTuple):
    """Pieces that go over a socket with a pause after each; then an answer is waited for, or not."""

    pieces: tuple[bytes, ...]
    pause: float = 0
    end: str = "wait"  # or "half": close one direction, then wait; or "leave": close both


class Got(NamedTuple):
    """An answer; the status 0 is none, the connection was closed."""

    status: int = 0
    body: bytes = b""


class Kind(NamedTuple):
    """Requests of one kind.

    Attributes:
        make: all of them.
        statuses: what may be answered.
        reason: how a refusal is worded: "json"; or "text", where what came is no HTTP, or Ray refuses it; or "none",
            where the connection may be closed without an answer: the request is not whole, or the client has gone.
    """

    make: Callable[[], list[Sent]]
    statuses: frozenset[int] = frozenset({200, *range(400, 500)})
    reason: str = "json"


def connect(server: Server) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def send(server: Server, sent: Sent) -> Got:
    """Sends, reads; a TimeoutError is an answer that never came."""
    with connect(server) as line:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused while it was sent: the answer may be there
            for piece in sent.pieces:
                line.sendall(piece)
                time.sleep(sent.pause)
            if sent.end == "half":
                line.shutdown(socket.SHUT_WR)
        if sent.end == "leave":
            return Got()
        with HTTPResponse(line) as answer:
            try:
                answer.begin()
                return Got(answer.status, answer.read())
            except (HTTPException, ConnectionResetError):
                return Got()


def problem(got: Got, kind: Kind) -> str:
    """What is wrong with an answer, "" for nothing."""
    if not got.status:
        return "" if kind.reason == "none" else "closed without an answer"
    if got.status not in kind.statuses:
        return "the wrong status"
    if got.status < 400 or (kind.reason != "json" and got.body.strip()):
        return ""
    try:
        found = json.loads(got.body)
    except ValueError:
        return "a reason that is no JSON"
    reasons = isinstance(found, dict) and (found.get("error") or found.get("detail"))  # ours, or the router's
    return "" if reasons else "no reason"


# ---------------------------------------------------------------- requests


def http(body: bytes = b"", path: str = PREDICT, content: str = "image/jpeg", **more: Any) -> bytes:
    """A request; more: its method, the length that it says it has (None: nothing), other lines of its head."""
    length = more.get("length", len(body))
    lines = [f"{more.get('method', 'POST')} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Type: {content}"] * bool(content) + [f"Content-Length: {length}"] * (length is not None)
    return "\r\n".join([*lines, *more.get("head", ()), "", ""]).encode("latin-1") + body


def whole(*arguments: Any, **more: Any) -> Sent:
    return Sent((http(*arguments, **more),))


def single(data: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([byte]) for byte in data)


def chunked(body: bytes) -> Sent:
    return whole(body, length=None, head=["Transfer-Encoding: chunked"])


def form(files: list[tuple[str, bytes]]) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n%b\r\n'
    return b"".join(part % (name.encode(), data) for name, data in files) + b"--b--\r\n"


def binary(entry: dict[str, Any], data: bytes, length: object = None) -> Sent:
    """A request of Open Inference whose tensor follows the JSON; `length` is what it says the JSON has."""
    text = json.dumps({"inputs": [{"parameters": {"binary_data_size": len(data)}, **entry}]}).encode()
    head = f"Inference-Header-Content-Length: {len(text) if length is None else length}"
    return whole(text + data, INFER, BINARY, head=[head])


def ways(photo: bytes) -> list[Sent]:
    """A photo in each of the ways in which the server is asked."""
    text = base64.b64encode(photo).decode()
    return [
        whole(photo),
        whole(form([("a", photo), ("b", SAMPLES["png"])]), content=FORM),
        whole(form([("imageFile", photo)]), MLNET, FORM),
        whole(json.dumps({"instances": [{"b64": text}]}).encode(), ROWS, JSON),
        whole(json.dumps({"inputs": [{**IMAGE, "data": [text]}]}).encode(), INFER, JSON),
        binary(IMAGE, struct.pack("<I", len(photo)) + photo),
    ]


def truncated(rng: Rng, photo: bytes, other: bytes) -> bytes:
    return photo[: int(rng.integers(len(photo)))]


def spliced(rng: Rng, photo: bytes, other: bytes) -> bytes:
    return photo[: int(rng.integers(len(photo)))] + other[int(rng.integers(len(other))) :]


def flipped(rng: Rng, photo: bytes, other: bytes) -> bytes:
    damaged, end = bytearray(photo), int(rng.choice([64, 300, len(photo)]))  # early bits have more to say
    for where in rng.integers(min(end, len(photo)), size=rng.integers(1, 20)):
        damaged[where] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def damaged(damage: Callable[[Rng, bytes, bytes], bytes], count: int) -> list[Sent]:
    sent = []
    for number in range(count):
        rng = np.random.default_rng(number)
        photo, other = (SAMPLES[name] for name in rng.choice([*SAMPLES], 2))
        sent.append(ways(damage(rng, photo, other))[number % 6])
    return sent


def bombs() -> list[Sent]:
    """Small files of huge photos, of many frames, of more data than pixels, and of less."""
    frame = b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02L\x01\0"
    photos = [
        *(declared(form, 60_000, 50_000) for form in ("png", "bmp", "gif", "jpeg", "webp")),
        *(declared(form, 16_000, 15_000) for form in ("webp-lossless", "webp-lossy")),
        png(2**31 - 1, 2**31 - 1, 16, 6, b""),
        png(20, 20, 8, 2, bytes(1 << 25)),
        png(1000, MOST_PIXELS // 1000, 8, 2, bytes(10)),
        b"GIF89a" + struct.pack("<2HBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame * 30_000 + b";",
    ]
    return [sent for photo in photos for sent in ways(photo)]


def forms() -> list[Sent]:
    good, head = form([("file", SAMPLES["gif"])]), b"X: " + b"y" * 20_000 + b"\r\n\r\n"
    bodies = [b"", b"--b", b"--b--", b"--b\r\n\r\n", b"\r\n" * 1000, good[:-6], good[5:], good.replace(b"\r\n", b"\n")]
    bodies += [good.replace(word, b"x") for word in (b"name=", b"form-data", b'"', b'; name="file"', b"; filename")]
    bodies += [form([("f", b"")] * 5000), form([("f" * 9000, b"x")]), good.replace(b"\r\n\r\n", b"\r\n" + head, 1)]
    odd = ["", "=", '="', '="b"', "=B", f"={'b' * 500}", "=\xe9", "=b; charset=undefined", "=b; charset=utf-16"]
    sent = [whole(body, path, FORM) for body, path in product(bodies, (PREDICT, MLNET))]
    return sent + [whole(good, path, FORM[:-2] + text) for text, path in product(odd, (PREDICT, MLNET))]


DEEP, INSTANCES, ROW = "[" * 100_000, '{"instances": VALUE}', '{"instances": [{"b64": VALUE}]}'
OBJECTS = [
    *("", "null", "[]", "7", '"x"', "{", "\ufeff{}", "\0"),
    *('{"id": NaN}', '{"parameters": 1e400}', '{"inputs": -Infinity}', '{"instances": [], "inputs": []}'),
    *(DEEP, '{"inputs":' * 100_000, *(INSTANCES.replace("VALUE", many) for many in (DEEP, f"[{'0,' * 100_000}0]"))),
    *(INSTANCES.replace("VALUE", value) for value in ("[NaN]", "1e999", "9" * 50_000, "[]", "[[]]", "{}", '["é"]')),
    *(ROW.replace("VALUE", value) for value in ('"\\ud800"', '"é"', '"a"', '"===="', '""', "1", "[]", "{}")),
    *('{"signature_name": [[]], "instances": [1]}', '{"inputs": {"image_bytes": 1}}'),
    *('{"id": 1, "inputs": [{}]}', '{"inputs": [{"name": [[]]}]}', '{"outputs": [{"name": {}}], "inputs": [{}]}'),
    *(json.dumps({"inputs": [{**IMAGE, "shape": shape, "data": ["eA=="]}]}) for shape in (1, [1.0], [True], [2**70])),
]


def tensors() -> list[Sent]:
    exact, gif = bytes(SIZE * SIZE * 3), SAMPLES["gif"]
    element = struct.pack("<I", len(gif)) + gif
    firsts: list[Any] = [0, -1, 2, 2**63, 1.0, True, None, "1", [1]]
    shapes = [1, [], [1], [1, SIZE * SIZE, 3], *([first, SIZE, SIZE, 3] for first in firsts)]
    return [
        *(binary({**PIXELS, "shape": shape}, exact) for shape in shapes),
        *(binary({**PIXELS, "datatype": kind}, exact) for kind in ("FP32", "BYTES", "uint8", None, 8)),
        *(binary(PIXELS, exact, length) for length in (0, 1, 10**9, -1, "x", "", "1e2", "9" * 5000, "\xb2")),
        *(binary(PIXELS, data) for data in (b"", exact[1:], exact + b"x")),
        *(binary(IMAGE, data) for data in (b"", b"\xff" * 4, element[:-1], element + b"x", element * 2, element[:3])),
        *(binary({**IMAGE, "parameters": {"binary_data_size": size}}, element) for size in (0, -1, 1e9, 2**70, "5")),
        *(binary({**entry, "data": [0]}, element) for entry in (IMAGE, PIXELS)),
    ]


PATHS = [
    *("/nothing", "//", "/predict/", "/Predict", "/../../etc/passwd", "/page/..%2f..%2frun.py", "/page/", "/?a=b"),
    *("/admin/", "/admin/reload", f"/{'a' * 9999}", "/v2/models/", "/v2/models/other/infer", "/v1/models/:predict"),
    *(f"/v1/models/flowers/versions/{number}:predict" for number in (2, -1, "1e0", "%D9%A1", "9" * 5000, "")),
    *("/v1/models/other:predict", "/v1/models/flowers:explain", "/v2/models/flowers/versions/9/infer"),
]
CODES = ["%00", "%ff", "%ED%A0%80", "%F0%9F%8C%B7", "%E2%80%AE", "%zz", "%0d%0aX:%20y", "%2F..", *"%&;=?#+\\'<{|"]
TEMPLATES = ("/v1/models/{}:predict", "/v2/models/{}", "/{}", "/predict?top={}", "/predict?heatmap={}&{}", "/?{}=1")
RAW = ["\0", "\xff", "Ã¼", "\x7f", "\t", "\r", " b "]
LENGTHS = [-1, -(2**63), 2**64, "9" * 100, "1e3", "0x10", "+5", "5,6", "5 5", "NaN", "\0", "\xb2"]
CHUNKS = [b"zz\r\nabc", b"-1\r\nabc", b"f" * 17 + b"\r\nabc", b"3\r\nabcdef", b"\r\n", b"0x3\r\nabc", b"3;\0\r\nabc"]
TYPES = ["", "text/html", "image", "/", ";", FORM[:19], "multipart/mixed; boundary=b", "a" * 5000, "\xff/\xff", JSON]
JUNK = [
    *(b"hello\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(161), b"\r\n\r\n\0\0\0\0\r\n\r\n"),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"BREW /\r\n\r\n"),
    *(b"CONNECT there:80 HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n", b"GET / HTTP/1.1\r\na\xff: b\r\n\r\n"),
    b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc",
]
# The headers that Ray reads; in HTTP, their bytes need not be UTF-8.
TIME = "X-Request-Timeout-Seconds"
RAYS = [TIME, "X-Request-Id", "X-Request-Disconnect-Disabled", "X-Session-Id", "Serve_Multiplexed_Model_Id"]
METHODS = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
WEBSOCKET = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
PHOTO, BEGUN = SAMPLES["jpeg"], http(SAMPLES["jpeg"])
MANY = http(form([("f", PHOTO)] * 20), content=FORM)
BAD, SLOW, LARGE, FINE = frozenset({400}), frozenset({408}), frozenset({413}), frozenset({200})
ALL = Kind(list).statuses

KINDS = {
    "truncated": Kind(lambda: damaged(truncated, 100)),
    "spliced": Kind(lambda: damaged(spliced, 100)),
    "flipped bits": Kind(lambda: damaged(flipped, 200)),
    "bomb": Kind(bombs),
    "form": Kind(forms),
    "json": Kind(lambda: [whole(text.encode(), path, JSON) for text, path in product(OBJECTS, (ROWS, INFER))]),
    "json that is no text": Kind(lambda: [whole(PHOTO, path, JSON) for path in (ROWS, INFER)], BAD),
    "tensor": Kind(tensors),
    "type": Kind(lambda: [whole(PHOTO, path, kind) for kind, path in product(TYPES, (PREDICT, ROWS, INFER, MLNET))]),
    "compressed": Kind(lambda: [whole(PHOTO, head=[f"Content-Encoding: {kind}"]) for kind in ("gzip", "br", "\xff")]),
    "path": Kind(lambda: [whole(PHOTO, path) for path in PATHS]),
    "path of a proxy": Kind(lambda: [whole(PHOTO, path) for path in ("*", "http://there/predict")], reason="text"),
    "method": Kind(lambda: [whole(method=name) for name in METHODS]),
    "coded characters": Kind(
        lambda: [whole(path=path.replace("{}", code)) for path, code in product(TEMPLATES, CODES)]
    ),
    "raw characters": Kind(lambda: [whole(path=f"/predict?top={raw}") for raw in RAW], BAD, "text"),
    "junk": Kind(lambda: [Sent((junk,)) for junk in JUNK], BAD, "text"),
    "length of no number": Kind(lambda: [whole(PHOTO, length=length) for length in LENGTHS], BAD, "text"),
    "length too short": Kind(lambda: [whole(PHOTO, length=length) for length in (0, 1, 9, 99)], reason="text"),
    "length too long": Kind(lambda: [whole(PHOTO, length=50_000)] * 8, SLOW),
    "length beyond the limit": Kind(lambda: [whole(PHOTO, length=size) for size in (MOST_BYTES + 1, 10**18)], LARGE),
    "beyond the limit": Kind(lambda: [whole(bytes(MOST_BYTES + 1))] * 4, LARGE),
    "chunks beyond the limit": Kind(lambda: [chunked(b"180000\r\n" + bytes(0x180000) + b"\r\n0\r\n\r\n")] * 4, LARGE),
    "broken chunks": Kind(lambda: [chunked(chunk + b"\r\n0\r\n\r\n") for chunk in CHUNKS], BAD, "text"),
    "chunks without an end": Kind(lambda: [chunked(b"3\r\nabc\r\n")] * 8, SLOW),
    "large head": Kind(lambda: [whole(PHOTO, head=head) for head in (["X: y"] * 5000, ["X: " + "y" * 300_000])] * 4),
    "its own time": Kind(lambda: [whole(PHOTO, head=[f"{TIME}: {s}"]) for s in (0, -1, "nan", "inf", "x", "")], FINE),
    "hardly any time": Kind(lambda: [whole(PHOTO, head=[f"{TIME}: 1e-9"])] * 4, FINE | SLOW, "text"),
    "head of no encoding": Kind(lambda: [whole(PHOTO, head=[f"{name}: \xff"]) for name in (*RAYS, "Authorization")]),
    "upgrade": Kind(lambda: [whole(PHOTO, head=["Connection: Upgrade", "Upgrade: h2c"])]),
    "websocket": Kind(lambda: [whole(method="GET", head=["Connection: Upgrade", *WEBSOCKET])], reason="text"),
    "slow body": Kind(lambda: [Sent((BEGUN[:-40], *single(BEGUN[-40:])), BODY_S / 20)] * 8, SLOW),
    "slow head": Kind(lambda: [Sent(single(BEGUN[:40]), 0.01, "leave")] * 8),
    "gone in the head": Kind(lambda: [Sent((BEGUN[:size],), 0.05, "leave") for size in (0, 1, 20, 60)] * 4),
    "gone in the body": Kind(lambda: [Sent((BEGUN[:-size],), 0.05, "leave") for size in (1, 9, 99, 999)] * 4),
    "gone before the answer": Kind(lambda: [Sent((MANY,), number / 1000, "leave") for number in range(32)]),
    "half closed in the head": Kind(lambda: [Sent((BEGUN[:40],), end="half")] * 4, ALL, "none"),
    "half closed in the body": Kind(lambda: [Sent((BEGUN[:-9],), end="half")] * 4, ALL, "none"),
    "half closed at the end": Kind(lambda: [Sent((BEGUN,), end="half")] * 4, ALL, "none"),  # uvicorn takes it for gone
}
