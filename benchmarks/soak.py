"""Everything at once, for long: training in a loop beside a server under load, with swaps, kills and hostile clients.

    python -m benchmarks.soak ../shared/data/flower_photos --minutes 30

Honest clients send photos, one after the other; hostile ones send files that are built to take long, large JSON, and
connections on which nothing comes. A new version appears every minute, every fifth of them damaged; the replica gets a
SIGKILL every three minutes. Beside it a job trains on drawn pictures again and again. At the end: honest requests that
got no answer though no replica had just been killed; memory of the replica, minute by minute; what is left of all
processes. Exit code 1 if anything was lost or left. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from benchmarks.train_speed import ROOT
from tests.data.test_decoding import BY_STRUCTURE, BY_TIME
from tests.faults.processes import end, members
from tests.serving.server import Server, damage, publish, serve

# A killed replica is away so long, at most.
RECOVERY_S = 30
JSON_BOMB = b'{"instances":[' + b"[[]]," * 4_000_000 + b"[[]]]}"


@dataclass
class Log:
    """What was seen so far."""

    kills: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory_mb: list[list[float]] = field(default_factory=list)
    trained: Counter[int] = field(default_factory=Counter)

    def excused(self, began: float) -> bool:
        """Whether a replica was killed while, or shortly before, a request was sent at `began`."""
        return any(killed - RECOVERY_S < began < killed + RECOVERY_S for killed in self.kills)


def honest(server: Server, photos: list[bytes], log: Log, stop: threading.Event) -> None:
    """One photo after the other."""
    for photo in itertools.cycle(photos):
        if stop.is_set():
            return
        began = time.monotonic()
        try:
            status = server.predict(photo).status_code
        except requests.RequestException as error:
            status = 0
            if not log.excused(began):
                log.lost.append(f"{type(error).__name__}")
            time.sleep(0.1)
        log.statuses[status] += 1
        log.seconds.append(time.monotonic() - began)
        if status not in (0, 200, 503):
            log.lost.append(f"status {status}")


def hostile(server: Server, stop: threading.Event) -> None:
    """What no honest client sends."""
    bombs, host = [make() for make in (*BY_STRUCTURE.values(), *BY_TIME.values())], server.address.partition("//")[2]
    while not stop.is_set():
        with suppress(requests.RequestException, OSError):
            kind = random.random()
            if kind < 0.8:
                server.predict(random.choice(bombs))
            elif kind < 0.9:
                server.post("/v1/models/flowers:predict", JSON_BOMB)
            else:
                name, _, port = host.partition(":")
                with socket.create_connection((name, int(port)), 5) as silent:
                    silent.sendall(b"POST /predict HT")
                    stop.wait(2)


def train(data: Path, storage: Path, log: Log, stop: threading.Event) -> None:
    """The same short job from the start, again and again."""
    command = [sys.executable, "-m", "jobs.train", "--storage", str(storage), "--name", "soak", "--fresh"]
    while not stop.is_set():
        more = ["--data", str(data), "--per-class", "20", "--epochs", "5", "--weights", "random"]
        more += ["--backbone", "mobilenetv2"]
        log.trained[subprocess.run([*command, *more], cwd=ROOT, capture_output=True).returncode] += 1


def resident_mb(server: Server) -> float:
    """Memory of the replica; 0 while there is none."""
    with suppress(OSError, ValueError):
        (replica,) = server.replicas()
        lines = Path(f"/proc/{replica}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return 0.0


def soak(server: Server, models: Path, data: Path, scratch: Path, minutes: int, clients: int) -> Log:
    """Runs everything for so long."""
    log, stop = Log(), threading.Event()
    photos = [path.read_bytes() for path in random.sample(sorted(data.glob("*/*.jpg")), 100)]
    threads = [threading.Thread(target=honest, args=(server, photos, log, stop)) for _ in range(clients)]
    threads += [threading.Thread(target=hostile, args=(server, stop)) for _ in range(4)]
    threads.append(threading.Thread(target=train, args=(data, scratch / "runs", log, stop)))
    for thread in threads:
        thread.start()
    for minute in range(minutes):
        version = publish(models, minute + 2)
        if minute % 5 == 4:
            damage(version)
        if minute % 3 == 2:
            log.kills.append(time.monotonic())
            for replica in server.replicas():
                end(replica)
        log.memory_mb.append([])
        for _ in range(30):
            time.sleep(2)
            log.memory_mb[-1].append(resident_mb(server))
        told = f"{statistics.median(log.seconds):.3f} s an answer, statuses {dict(log.statuses)}, lost {len(log.lost)}"
        print(f"{minute + 1:3d} min  {max(log.memory_mb[-1]):5.0f} MB  {told}", flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    return log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        scratch = Path(name)
        publish(scratch / "models", 1)
        with serve(scratch / "models", scratch / "logs", "--watch-s", "1") as server:
            session = server.job.pid
            log = soak(
                server, scratch / "models", arguments.data.resolve(), scratch, arguments.minutes, arguments.clients
            )
            code = server.stop()
        left = members(session)
    third = max(1, len(log.memory_mb) // 3)
    first, last = (max(max(minute) for minute in part) for part in (log.memory_mb[:third], log.memory_mb[-third:]))
    print(f"memory of the replica, at most: first third {first:.0f} MB, last third {last:.0f} MB")
    print(f"training ended with {dict(log.trained)}; the server with {code}; lost {Counter(log.lost)}; left {left}")
    return int(bool(log.lost or left or code or set(log.trained) - {0}))


if __name__ == "__main__":
    sys.exit(main())
