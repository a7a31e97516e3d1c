"""Triton's own client against a server on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

import flowers
from tests.serving.conftest import CLASSES, PACKED, SHOWN, SIZE, FakeService

triton: Any = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

PHOTOS = [b"one", b"two"]


@pytest.fixture
def remote(app: FastAPI) -> Iterator[Any]:
    """A client of a server that runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client = triton.InferenceServerClient(f"127.0.0.1:{listening.getsockname()[1]}")
        yield client
        client.close()
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def image(photos: list[bytes]) -> Any:
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, object))
    return tensor


def probabilities(service: FakeService, photos: list[bytes]) -> Any:
    return np.stack([service.answer(photo).probabilities for photo in photos])


def test_the_server_and_its_model(remote: Any, service: FakeService) -> None:
    assert remote.is_server_live()
    assert remote.is_server_ready()
    assert remote.is_model_ready("flowers")
    assert remote.is_model_ready("flowers", "3")
    assert not remote.is_model_ready("flowers", "2")
    assert not remote.is_model_ready("other")
    assert remote.get_server_metadata()["version"] == flowers.__version__
    metadata = remote.get_model_metadata("flowers")
    assert metadata["parameters"]["classes"] == list(SHOWN)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "pixels"]
    assert metadata["parameters"]["last_reload_error"] == "version 4 is damaged"
    service.ready = False
    assert remote.is_server_live()
    assert not remote.is_server_ready()
    assert not remote.is_model_ready("flowers")


def test_photos_and_all_outputs(remote: Any, service: FakeService) -> None:
    """Asked for no output by name, the client asks for all of them as bytes."""
    result = remote.infer("flowers", [image(PHOTOS)], request_id="7", model_version="3")
    assert {key: value for key, value in result.get_response().items() if key != "outputs"} == {
        "model_name": "flowers",
        "model_version": "3",
        "id": "7",
    }
    expected = probabilities(service, PHOTOS)
    assert result.as_numpy("probabilities").dtype == np.float32
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected)
    np.testing.assert_array_equal(result.as_numpy("score"), expected.max(axis=1))
    labels = [PACKED[CLASSES.index(service.answer(photo).label)] for photo in PHOTOS]
    assert result.as_numpy("label").tolist() == labels
    assert service.asked == [(PHOTOS, 3)]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_pixels(remote: Any, service: FakeService, binary_in: bool, binary_out: bool) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary_in)
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    result = remote.infer("flowers", [tensor], outputs=outputs)
    expected = probabilities(service, [photo.tobytes() for photo in pixels])
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected)
    assert result.as_numpy("label") is None
    assert ("data" in result.get_output("probabilities")) == (not binary_out)


@pytest.mark.parametrize("binary", [False, True])
def test_classification(remote: Any, service: FakeService, binary: bool) -> None:
    outputs = [
        triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2),
        triton.InferRequestedOutput("label", binary_data=not binary),
    ]
    result = remote.infer("flowers", [image(PHOTOS)], outputs=outputs)
    found = result.as_numpy("probabilities")
    assert found.shape == (2, 2)
    for line, photo in zip(found, PHOTOS, strict=True):
        values = service.answer(photo).probabilities
        for text, index in zip(line, np.argsort(-values)[:2], strict=True):
            start = f"{values[index]:.6f}:{index}:"
            assert text == (start.encode() + PACKED[index] if binary else start + SHOWN[index])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_is_refused(remote: Any, algorithm: str) -> None:
    with pytest.raises(triton.InferenceServerException, match="send the body uncompressed") as refused:
        remote.infer("flowers", [image(PHOTOS)], request_compression_algorithm=algorithm)
    assert refused.value.status() == "415"


@pytest.mark.parametrize(
    ("photos", "model", "version", "status", "message"),
    [
        ([b"one", b"bad"], "flowers", "", "400", "image 1: truncated: the data ends early"),
        ([b"one"] * 5, "flowers", "", "413", "5 items; a request may have at most 4"),
        ([b"one"], "other", "", "404", 'there is no model "other" here, only "flowers"'),
        ([b"one"], "flowers", "2", "404", 'version "2" is not loaded; the one that is: 3'),
    ],
)
def test_errors(remote: Any, photos: list[bytes], model: str, version: str, status: str, message: str) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        remote.infer(model, [image(photos)], model_version=version)
    assert (refused.value.status(), refused.value.message()) == (status, message)
