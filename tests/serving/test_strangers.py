"""A server with the limits that it has by default, and clients that want it to stop."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.data.test_decoding import BY_STRUCTURE, BY_TIME
from tests.faults.processes import end, members
from tests.serving.server import Server, damage, publish, serve
from tests.serving.test_server import noise, refuses, wait_for

TOO_MUCH = {"too_complex", "corrupt", "truncated"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("strangers")
    publish(folder / "models", 1)
    damage(publish(folder / "models", 2))
    with serve(folder / "models", folder / "logs") as started:
        yield started


def replica_bytes(server: Server) -> int:
    """Memory of the replica."""
    (replica,) = server.replicas()
    lines = Path(f"/proc/{replica}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def listening(pids: Iterable[int]) -> set[str]:
    """Addresses that these processes listen at, in hexadecimal as Linux shows them."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_it_says_that_another_version_answers_than_the_newest(server: Server) -> None:
    said = server.job.out.read_text()
    assert "models, version 2\n" in said
    assert "WARNING: version 1 answers: version 2 is refused: " in said
    assert said.index("WARNING") < said.index("ready ")


def test_nothing_listens_but_at_the_loopback_address(server: Server) -> None:
    found = listening(members(server.job.pid))
    assert "0100007F" in found
    assert {address[-8:] for address in found} == {"0100007F"}  # in IPv6 with ::ffff: before it


def test_photos_that_take_long_delay_no_others(server: Server) -> None:
    """While bombs are decoded, each within its budget, plain photos are answered before them."""
    bombs, before, answered = [*BY_STRUCTURE.values(), *BY_TIME.values()], replica_bytes(server), 0
    with ThreadPoolExecutor(len(bombs)) as pool:
        asked = [pool.submit(server.predict, make()) for make in bombs]
        while not all(one.done() for one in asked):
            assert server.predict(noise(answered)).status_code == 200
            answered += 1
    answers = [one.result() for one in asked]
    for answer in answers:
        assert answer.status_code in (200, 400, 503)
        assert answer.status_code != 400 or answer.json()["error"]["code"] in TOO_MUCH, answer.text
    assert 400 in {answer.status_code for answer in answers}
    assert answered > len(bombs)
    assert replica_bytes(server) < before + (200 << 20)


def test_uploads_together_take_no_more_memory_than_they_may(server: Server) -> None:
    before, size = replica_bytes(server), 24 << 20
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    host, port = server.address.removeprefix("http://").split(":")
    statuses = []
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection((host, int(port)), 60)) for _ in range(12)]

        def upload(connection: socket.socket) -> None:
            try:
                connection.sendall(head + bytes(size - 1))
            except OSError:  # refused, and closed, before all was sent
                return

        threads = [threading.Thread(target=upload, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert replica_bytes(server) < before + (700 << 20)
        for connection in connections:
            with connection:
                try:
                    connection.sendall(b"\0")
                    statuses.append(connection.recv(12)[9:])
                except OSError:
                    statuses.append(b"")
    assert b"503" in statuses
    assert server.predict(noise(0)).status_code == 200


def test_a_server_whose_ray_has_ended_ends(server: Server) -> None:
    """Instead of answering until something else is missing. The last of this file, as it ends the server."""
    (gcs,) = (pid for pid, line in members(server.job.pid).items() if line.startswith("/") and "gcs_server" in line)
    assert not refuses(server)
    end(gcs)
    assert server.job.wait() == 1
    assert "error: Ray's process gcs_server has ended, so the server ends" in server.job.err.read_text()
    wait_for(lambda: refuses(server))
