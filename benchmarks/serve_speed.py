"""Speed of the server against the bare network and two plain servers, on one machine, with wrk as the client.

    python -m benchmarks.serve_speed ../shared/data/flower_photos

(a) saturated: 64 connections, against the bare forward pass in batches of 32
(b) one connection: the median answer, against the bare forward pass of one photo
(c) saturated: ours against Ray Serve's plain example, and against FastAPI with Keras

All serve the same untrained bundle in bfloat16. wrk takes its CPU from the same cores: its share is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from benchmarks.train_speed import ROOT, run

SERVERS = {
    "ours": ["-m", "serving", "--bundle"],
    "plain Ray Serve": ["-m", "benchmarks.plain_serve"],
    "plain FastAPI": ["-m", "benchmarks.plain_fastapi"],
}


def make_bundle(folder: str, backbone: str) -> str:
    """An untrained classifier of five classes in bfloat16; made in a process of its own, as TensorFlow stays."""
    code = f"""
import numpy as np
from flowers.bundle import save_bundle
from flowers.model import backbones, classifier
network = backbones.build_backbone({backbone!r}, "random", 224, "bfloat16")
depth = network.output_shape[-1]
head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), 5, 0.2)
manifest = {{"classes": list("abcde"), "image_size": 224, "versions": {{"keras": ""}}}}
save_bundle(classifier.join(network, head), manifest, {folder!r})
"""
    run([sys.executable, "-c", code])
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served(name: str, bundle: str, photo: bytes) -> Iterator[str]:
    """A server in a process of its own, answering; yields the address to post to."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/predict"
    target = bundle if name == "ours" else f"{bundle}/model.keras"
    command = [sys.executable, *SERVERS[name], target, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(1200):
                with contextlib.suppress(requests.ConnectionError):
                    if requests.post(address, photo, headers={"Content-Type": "image/jpeg"}, timeout=60).ok:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{name} ended: {log.read().decode()[-2000:]}")
                time.sleep(0.1)
            else:
                sys.exit(f"{name} does not answer")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM if name != "plain Ray Serve" else signal.SIGKILL)
            process.wait()


def load(address: str, photos: str, connections: int, seconds: int) -> Any:
    """One run of wrk; its figures, with the CPU that it took itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command += ["-s", str(ROOT / "benchmarks/post_photos.lua"), address, "--", photos]
    out = run(command)[1]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(out.rsplit("RESULT ", 1)[1])
    found["cpu"] = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / found["seconds"]
    found["per_s"] = (found["requests"] - found["not_2xx"]) / found["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="resnet50v2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--servers", default=",".join(SERVERS))
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch, "photos")
        photos.mkdir()
        for number, path in enumerate(sorted(Path(arguments.data).glob("*/*.jpg"))[::25]):
            shutil.copy(path, photos / f"{number:03}.jpg")
        bundle = make_bundle(f"{scratch}/bundle", arguments.backbone)
        photo = (photos / "000.jpg").read_bytes()
        ratios: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            bare = json.loads(run([sys.executable, "-m", "benchmarks.bare_bundle", bundle])[1])
            print(f"    bare {bare['images_per_s']:.1f} images/s, one photo {bare['single_ms']:.1f} ms", flush=True)
            for name in arguments.servers.split(","):
                with served(name, bundle, photo) as address:
                    load(address, str(photos), 64, 5)
                    full = load(address, str(photos), 64, arguments.seconds)
                    single = load(address, str(photos), 1, arguments.seconds)
                rates.setdefault(name, []).append(full["per_s"])
                ratios.setdefault(f"{name}: images/s against bare", []).append(full["per_s"] / bare["images_per_s"])
                ratios.setdefault(f"{name}: ms more than bare", []).append(single["p50_ms"] - bare["single_ms"])
                print(
                    f"    {name} {full['per_s']:.1f} images/s, median {full['p50_ms']:.0f} ms, not 2xx "
                    f"{full['not_2xx']}, broken {full['broken']}, wrk {full['cpu']:.2f} CPU; one at a time: median "
                    f"{single['p50_ms']:.1f} ms, p99 {single['p99_ms']:.1f} ms",
                    flush=True,
                )
        for name, found in ratios.items():
            print(f"{name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        for name, found in rates.items():
            if name != "ours" and "ours" in rates:
                times = [ours / other for ours, other in zip(rates["ours"], found, strict=True)]
                print(
                    f"ours against {name}: {statistics.median(times):.2f} times ({min(times):.2f} to {max(times):.2f})"
                )


if __name__ == "__main__":
    main()
