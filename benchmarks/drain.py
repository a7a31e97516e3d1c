"""What was accepted is answered: requests in flight while a server is told to end, or to change.

    python -m benchmarks.drain ../shared/data/flower_photos --backbone resnet50v2 --times 20
    python -m benchmarks.drain ../shared/data/flower_photos --only deploy --times 3

stop: `python -m serving` gets SIGTERM while 64 clients, each with a form of 1 to 4 photos, wait for their answers.
deploy: `serve deploy` with two replicas on a head of its own. The same requests without a pause while it is deployed
again with new replicas (a rolling update); then it is stopped as docs/serving.md says while 64 of them wait. Lost is
each request that was sent whole and got no answer of status 200, or no label for a photo. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
import yaml
from urllib3.filepost import encode_multipart_formdata

from benchmarks.serve_load import make_versions
from benchmarks.train_speed import ROOT
from tests.e2e.head import RAY, Head, free_port, started_head
from tests.serving.server import serve

CLIENTS, MOST_PHOTOS = 64, 4
# Room for all that is in flight, on slow machines too.
ROOM = {"max_waiting": 1024, "max_wait_s": 300, "timeout_s": 300, "max_held_bytes": 1 << 30, "grace_s": 120}


class Told(io.BytesIO):
    """A body that tells when all of it has left."""

    def __init__(self, body: bytes, sent: threading.Semaphore) -> None:
        super().__init__(body)
        self._sent = sent

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO`."""
        part = super().read(size)
        if not part:
            self._sent.release()
        return part


class Clients:
    """Send forms of photos and count what comes back."""

    def __init__(self, address: str, photos: list[bytes]) -> None:
        self._address, self._photos = address, photos
        self.seen: Counter[str] = Counter()
        self.sent = threading.Semaphore(0)

    def ask(self, number: int) -> None:
        """One form; `sent` is released when all of it has left."""
        count = 1 + number % MOST_PHOTOS
        chosen = random.sample(self._photos, count)
        files = [("file", (f"{index}.jpg", photo, "image/jpeg")) for index, photo in enumerate(chosen)]
        body, kind = encode_multipart_formdata(files)
        told = Told(body, self.sent)
        try:
            answer = requests.post(f"{self._address}/predict", told, headers={"Content-Type": kind}, timeout=400)
        except requests.RequestException as error:
            self.seen[type(error).__name__] += 1
            return
        if answer.status_code != 200:
            self.seen[str(answer.status_code)] += 1
            return
        items = answer.json()["items"]
        self.seen["answered" if len(items) == count and all(item.get("label") for item in items) else "no label"] += 1

    def flight(self, then: Callable[[], None]) -> None:
        """All clients send; when each has, `then` happens; waits for all answers."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(self.ask, number) for number in range(CLIENTS)]
            for _ in asked:
                self.sent.acquire()
            then()

    @contextmanager
    def without_pause(self) -> Iterator[None]:
        """All clients send, one form after the other, until it is left."""
        stop = threading.Event()

        def one(number: int) -> None:
            while not stop.is_set():
                self.ask(number)

        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS):
                pool.submit(one, number)
            try:
                yield
            finally:
                stop.set()


def stop(bundle: Path, photos: list[bytes], scratch: Path) -> tuple[Counter[str], float]:
    """A server that gets SIGTERM; what became of the requests, and seconds until it had ended."""
    options = [word for name, value in ROOM.items() for word in (f"--{name.replace('_', '-')}", value)]
    with serve(bundle, scratch / "logs", *options) as server:
        clients, began = Clients(server.address, photos), 0.0

        def term() -> None:
            nonlocal began
            began = time.monotonic()
            server.job.process.send_signal(signal.SIGTERM)

        clients.flight(term)
        code = server.job.wait()
        if code:
            clients.seen[f"exit code {code}"] += 1
    return clients.seen, time.monotonic() - began


def deploy(bundle: Path, photos: list[bytes], scratch: Path, times: int) -> dict[str, Counter[str]]:
    """Rolling updates and ends of two replicas; what became of the requests in each."""
    found: dict[str, Counter[str]] = {"rolling update": Counter(), "stop": Counter()}
    more = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.proxy:middlewares",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    }
    with started_head(scratch / "head", more) as head:
        for number in range(times):
            port = free_port()
            _deploy(head, _config(bundle, port, number), scratch)
            clients = Clients(f"http://127.0.0.1:{port}", photos)
            with clients.without_pause():
                time.sleep(2)
                before = _replicas(head)
                _deploy(head, _config(bundle, port, number + 100), scratch)
                time.sleep(2)
            if before & _replicas(head):
                raise SystemExit("no replica was replaced: this was no rolling update")
            found["rolling update"] += clients.seen
            clients = Clients(f"http://127.0.0.1:{port}", photos)
            clients.flight(functools.partial(_stop, head, port, scratch))
            found["stop"] += clients.seen
    return found


def _config(bundle: Path, port: int, number: int) -> dict[str, object]:
    config = yaml.safe_load((ROOT / "serving" / "serve.yaml").read_text())
    config["http_options"] |= {"port": port, "request_timeout_s": 400}
    (application,) = config["applications"]
    application["args"] = {"bundle": str(bundle), "replicas": 2, "cpus": 1, **ROOM, "max_items": 64 + number}
    return dict(config)


def _deploy(head: Head, config: dict[str, object], scratch: Path) -> None:
    _serve(head, "deploy", _written(config, scratch))
    while (status := _statuses(head)["flowers"]) != "RUNNING":
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise SystemExit(f"the application is {status}")


def _stop(head: Head, port: int, scratch: Path) -> None:
    """As docs/serving.md says."""
    config = yaml.safe_load((ROOT / "serving" / "stop.yaml").read_text())
    config["http_options"] |= {"port": port, "request_timeout_s": 400}
    _serve(head, "deploy", _written(config, scratch))
    while _statuses(head):
        pass
    _serve(head, "shutdown", "-y")


def _written(config: dict[str, object], scratch: Path) -> str:
    file = scratch / "serve.yaml"
    file.write_text(json.dumps(config))
    return str(file)


def _statuses(head: Head) -> dict[str, str]:
    """The status of each application; asking takes a second."""
    found = yaml.safe_load(_serve(head, "status"))["applications"]
    return {name: application["status"] for name, application in found.items()}


def _serve(head: Head, *words: str) -> str:
    command = [str(RAY.parent / "serve"), words[0], "-a", head.jobs, *words[1:]]
    return subprocess.run(command, check=True, env=head.env, cwd=ROOT, capture_output=True, text=True).stdout


def _replicas(head: Head) -> set[str]:
    """Replicas that run."""
    words = [str(RAY), "list", "actors", "--address", head.jobs, "--format", "json", "--limit", "1000"]
    words += ["--filter", "state=ALIVE"]
    said = subprocess.run(words, check=True, env=head.env, capture_output=True, text=True).stdout
    return {actor["actor_id"] for actor in json.loads(said) if "ServeReplica" in actor["class_name"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="resnet50v2")
    parser.add_argument("--only", choices=["stop", "deploy"])
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in random.sample(sorted(arguments.data.glob("*/*.jpg")), 100)]
    lost = 0
    with tempfile.TemporaryDirectory(prefix="drain-") as name:
        scratch = Path(name)
        make_versions(str(scratch / "models"), arguments.backbone, 1)
        bundle = scratch / "models" / "0"
        for number in range(arguments.times if arguments.only != "deploy" else 0):
            seen, seconds = stop(bundle, photos, scratch / str(number))
            print(f"stop {number + 1:2d}: {dict(seen)}, ended after {seconds:.1f} s", flush=True)
            lost += seen.total() - seen["answered"]
        if arguments.only != "stop":
            for what, seen in deploy(bundle, photos, scratch, arguments.times).items():
                print(f"{what}, {arguments.times} times: {dict(seen)}", flush=True)
                lost += seen.total() - seen["answered"]
    print(f"lost: {lost}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
