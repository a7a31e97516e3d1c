"""Moto's server of S3 in a process of its own, and before it, if faults are wanted, `tests.s3.proxy`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import requests
from pyarrow import fs as pafs

from tests.e2e.conftest import ROOT, environment
from tests.e2e.head import free_port
from tests.s3.proxy import SHARES

PATIENCE_S = 60


@dataclass(frozen=True)
class Store:
    """A store of objects.

    Attributes:
        port: on the loopback address.
    """

    port: int

    def uri(self, path: str) -> str:
        """The address of BUCKET/PATH."""
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        endpoint = f"127.0.0.1:{self.port}"
        made = pafs.S3FileSystem(
            endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        made.create_dir(name)

    def counts(self) -> Counter[str]:
        """What a proxy did: requests by method, faults by kind."""
        return Counter(requests.get(f"http://127.0.0.1:{self.port}/-/counts", timeout=60).json())

    def fail_after(self, requests_left: int) -> None:
        """A proxy passes on so many more requests and refuses all that follow."""
        requests.get(f"http://127.0.0.1:{self.port}/-/last/{requests_left}", timeout=60).raise_for_status()


@contextmanager
def store() -> Iterator[Store]:
    """An empty store."""
    port = free_port()
    with _listening(["moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield Store(port)


@contextmanager
def faulty(behind: Store, seed: int, shares: Mapping[str, float] = SHARES) -> Iterator[Store]:
    """The same store behind a proxy that fails: `shares` says how often, and how."""
    port = free_port()
    with _listening(["tests.s3.proxy", str(port), str(behind.port), str(seed), json.dumps(shares)], port):
        yield Store(port)


@contextmanager
def _listening(module: list[str], port: int) -> Iterator[None]:
    """A process that listens; afterwards it is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, f"{module[0]} has ended"
                assert time.monotonic() < deadline, f"{module[0]} does not listen"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
