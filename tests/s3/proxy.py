"""A proxy before a store of objects that fails as stores and networks do: it refuses, and it cuts connections.

`python -m tests.s3.proxy PORT STORE_PORT SEED SHARES` passes requests on; `GET /-/counts` says what it did with them.
After `GET /-/last/K` it passes on K more and refuses all that follow.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

HOST = "127.0.0.1"
# Faults and their part of all requests: 10 % are refused, 5 % lose their connection.
SLOW_DOWN, INTERNAL, UNREAD, CUT = "slow_down", "internal_error", "cut_before_the_request", "cut_in_the_answer"
SHARES = {SLOW_DOWN: 0.05, INTERNAL: 0.05, UNREAD: 0.025, CUT: 0.025}
REFUSALS = {SLOW_DOWN: ("503 Slow Down", "SlowDown"), INTERNAL: ("500 Internal Server Error", "InternalError")}
COUNTS, LAST = b"GET /-/counts ", re.compile(rb"GET /-/last/(\d+) ")


class Proxy:
    """Passes requests on, or not.

    Attributes:
        store: port of the store.
        shares: parts of all requests that get a fault, by its kind.
        counts: of requests by method, and of faults by kind.
        left: requests that are passed on before all others are refused; None: there is no end.
    """

    def __init__(self, store: int, seed: int, shares: Mapping[str, float]) -> None:
        self.store, self.shares = store, shares
        self.counts: Counter[str] = Counter()
        self.left: int | None = None
        self._random = random.Random(seed)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection is one request."""
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(COUNTS):
                body = json.dumps(self.counts).encode()
                writer.write(_message("200 OK", body))
            elif found := LAST.match(head):
                self.left = int(found[1])
                writer.write(_message("200 OK", b""))
            else:
                await self._pass_on(head, reader, writer)
            await writer.drain()
        writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts[head.split(b" ", 1)[0].decode()] += 1
        (fault,) = self._random.choices([*self.shares, ""], [*self.shares.values(), 1 - sum(self.shares.values())])
        if self.left is not None:
            fault = fault if self.left else SLOW_DOWN
            self.left = max(0, self.left - 1)
        if fault:
            self.counts[fault] += 1
        if fault == UNREAD:
            writer.transport.abort()
            return
        if b"\r\nexpect:" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(head, reader)
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
            writer.write(_message(status, b"" if head.startswith(b"HEAD") else text.encode()))
            return
        found = await self._ask(head, body)
        if fault == CUT:
            writer.write(found[: len(found) // 2])
            await writer.drain()
            writer.transport.abort()
            return
        writer.write(found)

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        """All that the store answers."""
        reader, writer = await asyncio.open_connection(HOST, self.store)
        head = re.sub(rb"\r\n(connection|expect):[^\r]*", b"", head, flags=re.IGNORECASE)
        writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        found = await reader.read()
        writer.close()
        return found


def _message(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The body of a request, as it was sent."""
    if found := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
        return await reader.readexactly(int(found[1]))
    body = b""
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        while True:
            size = await reader.readuntil(b"\r\n")
            body += size
            if count := int(size.split(b";")[0], 16):
                body += await reader.readexactly(count + 2)
            else:
                while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                    body += line
                return body + line
    return body


async def main(port: int, store: int, seed: int, shares: Mapping[str, float]) -> None:
    """Serves until it is ended."""
    server = await asyncio.start_server(Proxy(store, seed, shares).answer, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    given, behind, start = map(int, sys.argv[1:4])
    asyncio.run(main(given, behind, start, json.loads(sys.argv[4])))
