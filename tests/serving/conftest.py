"""A service without a model, a client for all protocols over it, and the one real server that tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from flowers.typicality import none_of_these
from serving.protocols import mlnet, native, open_inference, tensorflow_serving
from serving.service import Answer, ModelDescription, Refusal, ServingError, UnknownVersion
from tests.serving.server import LIMITS, Server, publish, serve

# The last two are names that no UTF-8 can hold: a folder of undecodable bytes, and a surrogate of no byte.
CLASSES = ("daisy", "löwenzahn ☃", "roses", "odd \udcff", "odder \ud800")
# How JSON shows them, and how bytes do.
SHOWN = ("daisy", "löwenzahn ☃", "roses", "odd ?", "odder ?")
PACKED = (b"daisy", "löwenzahn ☃".encode(), b"roses", b"odd \xff", b"odder ?")
SIZE = 4


class FakeService:
    """Answers by the hash of the bytes; refuses photos that start with b"bad", with the word after it as the code.

    With `unknown`, those that start with b"other" are none of the classes.
    """

    def __init__(self) -> None:
        self.max_items = 4
        self.ready = True
        self.version = 3
        self.classes: tuple[str, ...] = CLASSES
        self.failing: ServingError | None = None
        self.unknown: float | None = None
        self.asked: list[tuple[list[bytes], int | None]] = []

    async def classify(
        self, photos: Sequence[bytes], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer | Refusal]]:
        taken = self._taken(photos, version)
        return self.describe(), [refusal(photo) or self.answer(photo) for photo in taken]

    async def classify_pixels(
        self, pixels: npt.NDArray[np.uint8], version: int | None = None
    ) -> tuple[ModelDescription, list[Answer]]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (SIZE, SIZE, 3)
        taken = self._taken([photo.tobytes() for photo in pixels], version)
        return self.describe(), [self.answer(photo) for photo in taken]

    def _taken(self, photos: Sequence[bytes], version: int | None) -> list[bytes]:
        assert 1 <= len(photos) <= self.max_items
        self.asked.append((list(photos), version))
        if self.failing:
            raise self.failing
        if version not in (None, self.version):
            raise UnknownVersion(f"version {version} is not loaded")
        return list(photos)

    def answer(self, photo: bytes) -> Answer:
        weights = np.frombuffer(hashlib.sha256(photo).digest()[: len(self.classes)], np.uint8).astype(np.float32) + 1
        probabilities = weights / weights.sum()
        best = int(probabilities.argmax())
        typicality = None if self.unknown is None else 0.0123456789 if photo.startswith(b"other") else 0.5
        reason = None if typicality is None else none_of_these(typicality, self.unknown or 0)
        return Answer(
            label=None if reason else self.classes[best],
            typicality=typicality,
            reason=reason,
            score=float(probabilities[best]),
            probabilities=probabilities,
            heat=np.array([[0.123456, -1], [0, 2]], np.float32),
            queue_ms=0.12345,
            decode_ms=1.5,
            infer_ms=10.0,
        )

    def describe(self) -> ModelDescription:
        return ModelDescription(
            name="flowers",
            version=self.version,
            versions=(1, 2, self.version),
            classes=self.classes,
            image_size=SIZE,
            manifest={},
            last_reload_error="version 4 is damaged",
            unknown=self.unknown,
        )


def refusal(photo: bytes) -> Refusal | None:
    if not photo:
        return Refusal("empty", "the file has no bytes")
    if photo.startswith(b"bad"):
        return Refusal(photo[3:].decode().strip() or "truncated", "the data ends early")
    return None


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def app(service: FakeService) -> FastAPI:
    app = FastAPI()
    for protocol in (native, tensorflow_serving, open_inference, mlnet):
        app.include_router(protocol.router(service))
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Raises what the app does not handle."""
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models that the shared server looks at, with version 1 in it."""
    folder = tmp_path_factory.mktemp("models")
    publish(folder, 1)
    (folder / "admin").write_text("boss\n")
    return folder


@pytest.fixture(scope="package")
def shared_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    """Gives the server that the tests share; it starts another one only after a test that ends it."""
    with ExitStack() as stack:
        servers: list[Server] = []

        def running() -> Server:
            if not servers or servers[-1].job.process.poll() is not None:
                logs = tmp_path_factory.mktemp("server")
                servers.append(
                    stack.enter_context(serve(models, logs, "--admin-token-file", models / "admin", *LIMITS))
                )
            return servers[-1]

        yield running
        for server in servers:
            assert server.stop() == 0
            assert server.job.err.read_text() == ""


@pytest.fixture
def server(shared_server: Callable[[], Server]) -> Server:
    return shared_server()
