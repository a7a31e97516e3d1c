"""A real server and a real client."""

from __future__ import annotations

import http.client
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from flowers.predictor import Prediction, Predictor
from serving.options import COPIES
from tests.data.test_images import SAMPLES
from tests.e2e.conftest import ROOT, environment
from tests.e2e.head import free_port
from tests.serving.server import CLASSES, SIZE, Server, damage, end, loaded, publish

ADMIN = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def predictor(models: Path) -> Predictor:
    return Predictor(loaded(models / "flowers" / "1"))


def noise(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def scores(answer: Any) -> list[float]:
    found = {entry["label"]: entry["score"] for entry in answer["top"]}
    return [found[name] for name in CLASSES]


def expected(predictor: Predictor, photo: bytes) -> Prediction:
    (found,) = predictor.predict([photo])
    assert isinstance(found, Prediction)
    return found


def test_every_format_gets_what_the_bundle_says(server: Server, predictor: Predictor) -> None:
    with ThreadPoolExecutor(8) as pool:  # together, so that they travel in batches
        answers = list(pool.map(lambda name: server.predict(SAMPLES[name], "?heatmap=1"), SAMPLES))
    for name, answer in zip(SAMPLES, answers, strict=True):
        assert answer.status_code == 200, (name, answer.text)
        wanted, body = expected(predictor, SAMPLES[name]), answer.json()
        np.testing.assert_allclose(scores(body), wanted.probabilities, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(body["heatmap"], wanted.heat, atol=2e-4, err_msg=name)
        assert (body["label"], body["model_version"]) == (wanted.label, "1")
        assert set(body["timing"]) == {"queue_ms", "decode_ms", "infer_ms"}


def test_a_poisoned_batch_gives_31_answers_and_a_reason(server: Server, predictor: Predictor) -> None:
    photos = [noise(seed) for seed in range(32)]
    photos[13] = photos[13][:60]
    files = [("files", (f"{index}.png", photo, "image/png")) for index, photo in enumerate(photos)]
    items = server.post("/predict", files=files).json()["items"]
    assert [item["filename"] for item in items] == [f"{index}.png" for index in range(32)]
    assert items[13]["error"]["code"] == "truncated"
    for index in set(range(32)) - {13}:
        np.testing.assert_allclose(scores(items[index]), expected(predictor, photos[index]).probabilities, atol=2e-6)


def test_the_line_it_prints_works(server: Server) -> None:
    line = next(line for line in server.job.out.read_text().splitlines() if line.startswith("try "))
    photo = server.job.out.parent / "photo.jpg"
    photo.write_bytes(SAMPLES["jpeg"])
    words = [word.replace("PHOTO.jpg", str(photo)) for word in shlex.split(line.removeprefix("try "))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["label"] in CLASSES


def test_page_documents_and_metrics(server: Server) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/page/page.css", "/page/page.js", "/docs"):
        assert server.get(path).status_code == 200
    assert "/predict" in server.get("/openapi.json").json()["paths"]
    assert server.predict(b"broken").status_code == 415
    text = server.get("/metrics").text
    assert 'flowers_requests_total{route="/predict",status="200"}' in text
    assert 'flowers_errors_total{code="not_a_photo",of="photo"}' in text
    assert "flowers_batch_size_count" in text
    assert "flowers_waiting 0.0" in text


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_versions_are_swapped_under_load_and_rolled_back(server: Server, models: Path) -> None:
    photo, stop, seen = noise(1), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            seen.append(server.predict(photo))

    by_version = {1: expected(Predictor(loaded(models / "flowers" / "1")), photo)}
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(ask) for _ in range(3)]
        try:
            for number in (2, 3, 4):
                if number == 3:
                    damage(publish(models.parent / "aside", 3)).rename(models / "flowers" / "3")
                    wait_for(lambda: "version 3 is refused" in server.get("/v2/models/flowers").text)
                    assert server.version() == "2"
                    assert "flowers_reload_failed 1.0" in server.get("/metrics").text
                    continue
                folder = publish(models.parent / "aside", number)
                by_version[number] = expected(Predictor(loaded(folder)), photo)
                folder.rename(models / "flowers" / str(number))
                wait_for(lambda number=number: server.version() == str(number))
            rolled = server.post("/admin/reload", json.dumps({"version": 1}), headers=ADMIN)
            assert (rolled.status_code, rolled.json()["version"]) == (200, "1")
            time.sleep(0.3)
        finally:
            stop.set()
        for task in tasks:
            task.result()
    assert {answer.status_code for answer in seen} == {200}
    versions = [int(answer.json()["model_version"]) for answer in seen]
    assert set(versions) == {1, 2, 4}
    for version, answer in zip(versions, seen, strict=True):
        np.testing.assert_allclose(scores(answer.json()), by_version[version].probabilities, atol=2e-6)
    assert server.post("/v1/models/flowers/versions/4:predict", '{"instances": []}').status_code in (400, 404)
    assert server.post("/admin/reload", json.dumps({"version": 9}), headers=ADMIN).status_code == 400
    assert server.post("/admin/reload").status_code == 401


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a server that does not start."""
    words = [sys.executable, "-m", "serving", *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bundle", "nowhere"], "nothing to serve"),
        (["--bundle", "nowhere", "--max-batch-size", "0"], "--max-batch-size"),
        (["--bundle", "nowhere", "--tokens-file", "nowhere"], "tokens"),
        (["--version", "7"], "version 7 is wanted and not there, only 1"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    if arguments[0] == "--version":
        arguments = [*arguments, "--bundle", str(publish(tmp_path, 1).parents[1])]
    code, said_really = command(*arguments)
    assert code == 2, said_really
    assert said_really.count("\n") == 1
    assert said in said_really


@pytest.mark.ray
def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1")
    damage(publish(tmp_path, 1))
    code, said = command("--bundle", tmp_path, "--port", free_port())
    assert code == 1, said
    assert said.count("\n") == 1
    assert said.startswith("error: the server did not start: version 1 is refused: ")
    assert "is damaged: model.keras has sha256" in said


def test_a_killed_replica_is_replaced(server: Server, models: Path) -> None:
    """Who asks meanwhile waits for the next one, and the port is nobody else's."""
    (replica,) = server.replicas()
    end(replica)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(server.predict, noise(seed)) for seed in range(20)]
        code, said = command("--bundle", models, "--port", server.address.rpartition(":")[2])
        assert code == 2, said
        assert "give another port" in said
        assert [answer.result(60).status_code for answer in answers] == [200] * 20
    assert server.replicas() != [replica]


def test_size_is_that_of_the_bundle(predictor: Predictor) -> None:
    assert predictor.bundle.image_size == SIZE


def test_a_replica_does_without_tensorflow(server: Server) -> None:
    (replica,) = server.replicas()
    maps = Path(f"/proc/{replica}/maps").read_text()
    assert "libopenvino" in maps
    assert not re.search("site-packages/(tensorflow|keras)/", maps)


def test_overload(server: Server) -> None:
    """Far too many photos get 503 at once."""
    files = [("files", (str(seed), noise(seed), "image/png")) for seed in range(64)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.post("/predict", files=files), range(60)))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            assert [set(item) >= {"label", "score"} for item in answer.json()["items"]] == [True] * 64
        else:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "overloaded"
    assert server.predict(noise(1)).status_code == 200
    assert 'flowers_errors_total{code="overloaded",of="request"}' in server.get("/metrics").text


def half_sent(server: Server, photo: bytes) -> http.client.HTTPConnection:
    """A request that the server has, but for the last byte of its photo."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(photo)))
    connection.endheaders(photo[:-1])
    return connection


def refuses(server: Server) -> bool:
    try:
        server.get("/v2/health/live")
    except requests.ConnectionError:
        return True
    return False


def test_what_was_accepted_is_answered(server: Server, predictor: Predictor) -> None:
    """The server is told to end while requests are on their way, and answers each of them.

    The last of this file, as it ends the server that is shared.
    """
    photos = [noise(seed) for seed in range(24)]
    asked = [half_sent(server, photo) for photo in photos]
    held = COPIES * sum(len(photo) - 1 for photo in photos)
    wait_for(lambda: f"flowers_held_bytes {float(held)}" in server.get("/metrics").text)
    server.job.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refuses(server))
    assert server.job.process.poll() is None
    for connection, photo in zip(asked, photos, strict=True):
        connection.send(photo[-1:])
        answer = connection.getresponse()
        assert answer.status == 200
        np.testing.assert_allclose(
            scores(json.loads(answer.read())), expected(predictor, photo).probabilities, atol=2e-6
        )
    assert server.job.wait() == 0
    assert "Stopping: what was accepted is answered." in server.job.out.read_text()
