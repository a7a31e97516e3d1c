"""A server in a process of its own, as people start it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from flowers.bundle import Bundle, load_bundle, save_bundle
from tests.e2e.head import free_port
from tests.faults.processes import Running, end, members, running
from tests.toys import layered

SIZE, CLASSES = 32, ["daisy", "rose", "tulip"]

# How the shared server is started: it computes few photos at a time and takes few, so that tests keep it busy with few.
BATCH, MAX_WAITING = 4, 384
BODY_S, MOST_BYTES, MOST_PIXELS = 2, 1 << 20, 1_000_000
LIMITS = (
    *("--watch-s", 0.2, "--max-batch-size", BATCH, "--max-waiting", MAX_WAITING),
    *("--body-timeout-s", BODY_S, "--max-request-bytes", MOST_BYTES, "--max-pixels", MOST_PIXELS),
)


_saved = tempfile.TemporaryDirectory(prefix="flowers-versions-")


@functools.cache
def _bundle(seed: int, more: str) -> Path:
    """A bundle that was saved once: it takes a quarter of a second."""
    made = layered(SIZE, CLASSES, seed)
    folder = Path(_saved.name, f"{seed}-{hashlib.sha256(more.encode()).hexdigest()}")
    save_bundle(made.model, {**made.manifest, "versions": {"keras": "3"}, **json.loads(more)}, str(folder))
    return folder


def publish(models: Path, number: int, seed: int | None = None, **more: Any) -> Path:
    """A version whose answers differ from those of the others; its manifest says `more`. It appears at once."""
    folder = models / "flowers" / str(number)
    copy = folder.with_name(f".writing-{number}")
    shutil.copytree(_bundle(number if seed is None else seed, json.dumps(more, sort_keys=True)), copy)
    copy.rename(folder)
    return folder


def damage(bundle: Path) -> Path:
    data = bytearray((bundle / "model.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.keras").write_bytes(data)
    return bundle


def loaded(bundle: Path) -> Bundle:
    return load_bundle(str(bundle))


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        address: without a slash at the end.
        job: its process.
    """

    address: str
    job: Running

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **more)

    def post(self, path: str, data: Any = None, **more: Any) -> requests.Response:
        return requests.post(self.address + path, data, timeout=60, **more)

    def predict(self, photo: bytes, query: str = "") -> requests.Response:
        return self.post(f"/predict{query}", photo, headers={"Content-Type": "image/jpeg"})

    def version(self) -> str:
        return str(self.status()["version"])

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.get("/v1/models/flowers").text)["model_version_status"][0]
        return status

    def replicas(self) -> list[int]:
        return [pid for pid, line in members(self.job.pid).items() if "ServeReplica" in line]

    def stop(self) -> int:
        self.job.process.send_signal(signal.SIGTERM)
        return self.job.wait()


@contextmanager
def serve(bundle: Path, logs: Path, *arguments: object) -> Iterator[Server]:
    """Starts a server and waits until it says that it is ready; afterwards nothing of it is left."""
    port = free_port()
    words = [
        sys.executable,
        "-m",
        "serving",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
        *map(str, arguments),
    ]
    with running(words, logs) as job:
        found = job.until(lambda: re.search(r"^ready +(http\S+?)/ ", job.out.read_text(), re.MULTILINE), pause=0.05)
        assert found
        server = Server(found[1], job)
        yield server
        if job.process.poll() is None:
            server.stop()


__all__ = [
    "BODY_S",
    "CLASSES",
    "LIMITS",
    "MOST_BYTES",
    "MOST_PIXELS",
    "SIZE",
    "Server",
    "damage",
    "end",
    "loaded",
    "publish",
    "serve",
]
