"""Speed of the server against a short LitServe script with ONNX Runtime and against the bare engine, on one machine.

    python -m venv peers && peers/bin/pip install litserve onnxruntime pillow python-multipart tf2onnx tensorflow-cpu
    python -m benchmarks.serve_speed ../shared/data/flower_photos --peer-python peers/bin/python

Whole servers in turn, the same untrained network in float32, wrk as the client at several numbers of connections. wrk
takes its CPU from the same cores: its share is printed.
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
from tests.faults.processes import members

OURS, PEER = "ours", "LitServe"


def make_bundle(folder: str, backbone: str, weights: str) -> None:
    """An untrained classifier of five classes, and its graph; made in a process of its own, as TensorFlow stays."""
    code = f"""
import numpy as np
from flowers.bundle import save_bundle
from flowers.inference.conversion import frozen_graph
from flowers.model import backbones, classifier
network = backbones.build_backbone({backbone!r}, {weights!r}, 224, "float32")
depth = network.output_shape[-1]
head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), 5, 0.2)
manifest = {{"classes": list("abcde"), "image_size": 224, "precision": "float32", "versions": {{"keras": ""}}}}
model = classifier.join(network, head)
save_bundle(model, manifest, {folder!r})
open({folder!r} + ".pb", "wb").write(frozen_graph(lambda pixels: [model(pixels, training=False)], model.weights, 224))
"""
    run([sys.executable, "-c", code])


def make_onnx(graph: str, target: str, python: str) -> None:
    """The same network for ONNX Runtime."""
    names = ["--inputs", "pixels:0", "--outputs", "output_0:0", "--opset", "17"]
    run([python, "-m", "tf2onnx.convert", "--graphdef", graph, "--output", target, *names])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served(command: list[str], form: str, photo: bytes) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, answering; yields the address to post to, and its process id."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/predict"
    asked: dict[str, Any] = {"files": {form: photo}}
    if not form:
        asked = {"data": photo, "headers": {"Content-Type": "image/jpeg"}}
    command = [*command, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(1200):
                with contextlib.suppress(requests.ConnectionError):
                    if requests.post(address, **asked, timeout=60).ok:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[1:3]} ended: {log.read().decode()[-2000:]}")
                time.sleep(0.1)
            else:
                sys.exit(f"{command[1:3]} does not answer")
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for left in members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            process.wait()


def load(address: str, photos: str, form: str, connections: int, seconds: int) -> Any:
    """One run of wrk; its figures, with the CPU that it took itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command += ["-s", str(ROOT / "benchmarks/post_photos.lua"), address, "--", photos, *([form] if form else [])]
    out = run(command)[1]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(out.rsplit("RESULT ", 1)[1])
    found["cpu"] = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / found["seconds"]
    found["per_s"] = (found["requests"] - found["not_2xx"]) / found["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--connections", default="1,8,64,256")
    parser.add_argument("--peer-python", help="a Python with litserve, onnxruntime and tf2onnx; without, ours alone")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    several = [int(word) for word in arguments.connections.split(",")]
    rates: dict[tuple[str, int], list[float]] = {}
    behind: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch, "photos")
        photos.mkdir()
        for number, path in enumerate(sorted(Path(arguments.data).glob("*/*.jpg"))[::25]):
            shutil.copy(path, photos / f"{number:03}.jpg")
        photo = (photos / "000.jpg").read_bytes()
        bundle = f"{scratch}/bundle"
        make_bundle(bundle, arguments.backbone, arguments.weights)
        servers = {OURS: ([sys.executable, "-m", "serving", "--bundle", bundle, "--max-wait-s", "30"], "")}
        if arguments.peer_python:
            make_onnx(f"{bundle}.pb", f"{bundle}.onnx", arguments.peer_python)
            peer = [arguments.peer_python, str(ROOT / "benchmarks/litserve_peer.py"), f"{bundle}.onnx"]
            servers[PEER] = (peer, "request")
        for _ in range(arguments.rounds):
            bare = json.loads(run([sys.executable, "-m", "benchmarks.bare_bundle", bundle])[1])
            print(f"    bare {bare['images_per_s']:.1f} images/s, one photo {bare['single_ms']:.1f} ms", flush=True)
            for name, (command, form) in servers.items():
                with served(command, form, photo) as (address, pid):
                    load(address, str(photos), form, 64, 5)
                    for connections in several:
                        found = load(address, str(photos), form, connections, arguments.seconds)
                        rates.setdefault((name, connections), []).append(found["per_s"])
                        if name == OURS and connections == 1:
                            behind.append(found["p50_ms"] - bare["single_ms"])
                        print(
                            f"    {name}, {connections} connections: {found['per_s']:.1f} photos/s, median "
                            f"{found['p50_ms']:.1f} ms, 99 % {found['p99_ms']:.0f} ms, not 2xx {found['not_2xx']}, "
                            f"broken {found['broken']}, wrk {found['cpu']:.2f} CPU",
                            flush=True,
                        )
                    print(f"    {name}: largest process {largest_mb(pid):.0f} MB resident", flush=True)
    print(f"one client: median - bare engine: {statistics.median(behind):+.1f} ms" if behind else "")
    for connections in several:
        ours, others = rates[OURS, connections], rates.get((PEER, connections), [])
        print(f"{connections} connections: ours {statistics.median(ours):.1f} photos/s", end="")
        if others:
            times = [mine / other for mine, other in zip(ours, others, strict=True)]
            print(
                f", {PEER} {statistics.median(others):.1f}, ratio {statistics.median(times):.2f} "
                f"({min(times):.2f} to {max(times):.2f})",
                end="",
            )
        print()


def largest_mb(process: int) -> float:
    """Resident size of the replica, or of the largest process below one that serves without Ray, in MB."""
    found = members(process)
    replicas = [pid for pid, line in found.items() if "ServeReplica" in line] or list(found)
    sizes = []
    for pid in replicas:
        with contextlib.suppress(OSError):
            sizes.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return max(sizes)


if __name__ == "__main__":
    main()
