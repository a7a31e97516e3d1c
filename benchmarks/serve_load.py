"""The server under load: versions that change, far too many requests, a replica that is killed.

    python -m benchmarks.serve_load ../shared/data/flower_photos --backbone mobilenetv2
    python -m benchmarks.serve_load ../shared/data/flower_photos --only overload

swaps: at 80 % of the capacity 20 versions appear one after the other, 2 of them damaged; each gives scores of its own,
so that it can be seen which one answered. overload: 5 times the capacity for 60 s, then one photo at a time. return:
256 clients for as long who ask again at once. kill: at 80 % the replica gets a SIGKILL. But for "return", requests are
sent at fixed times, whether or not earlier ones are answered. The client takes its CPU from the same cores. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp  # Ray's own

from benchmarks.train_speed import ROOT
from tests.faults.processes import end, members
from tests.serving.server import Server, damage, serve

SWAPS, DAMAGED = 20, (7, 14)


@dataclass(frozen=True)
class Seen:
    """One request.

    Attributes:
        at: second in which it was sent, since the start of its load.
        status: 0 if the connection broke.
        seconds: until its answer.
        version: that the answer names.
        score: of the answer.
        retry: whether it says when to try again.
    """

    at: float
    status: int
    seconds: float
    version: int = 0
    score: float = 0.0
    retry: bool = False


class Client:
    """Asks about the photos in turn."""

    def __init__(self, address: str, photos: list[bytes]) -> None:
        self._address, self._photos, self._turn = f"{address}/predict", photos, 0
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._session.close()

    async def ask(self, at: float = 0.0) -> Seen:
        """One photo, sent in second `at` of a load."""
        self._turn += 1
        photo = self._photos[self._turn % len(self._photos)]
        began = time.perf_counter()
        try:
            async with self._session.post(self._address, data=photo, headers={"Content-Type": "image/jpeg"}) as answer:
                body = await answer.read()
                seconds = time.perf_counter() - began
                if answer.status != 200:
                    return Seen(at, answer.status, seconds, retry="Retry-After" in answer.headers)
                found = json.loads(body)
                return Seen(at, 200, seconds, int(found["model_version"]), found["score"])
        except (aiohttp.ClientError, TimeoutError):
            return Seen(at, 0, time.perf_counter() - began)

    async def closed(self, connections: int, seconds: float) -> tuple[float, list[Seen]]:
        """So many clients who each wait for their answer and ask again at once: photos a second, and all requests."""
        until, found = time.perf_counter() + seconds, list[Seen]()

        async def one() -> None:
            while time.perf_counter() < until:
                found.append(await self.ask())

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(connections)))
        return sum(seen.status == 200 for seen in found) / (time.perf_counter() - began), found

    async def offered(self, rate: float, enough: Callable[[float], bool]) -> list[Seen]:
        """Sends at a rate, in requests a second, until `enough`, which is told the seconds since the start."""
        tasks: list[asyncio.Task[Seen]] = []
        began = time.perf_counter()
        while not enough(now := time.perf_counter() - began):
            while len(tasks) <= now * rate:
                tasks.append(asyncio.create_task(self.ask(now)))
            await asyncio.sleep(max(0.0, len(tasks) / rate - now))
        return list(await asyncio.gather(*tasks))


def make_versions(folder: str, backbone: str, count: int) -> None:
    """Bundles FOLDER/<number>, each with a score of its own for its label, whatever the photo; in another process."""
    code = f"""
import numpy as np
from flowers.bundle import save_bundle
from flowers.model import backbones, classifier
network = backbones.build_backbone({backbone!r}, "random", 224, "bfloat16")
depth = network.output_shape[-1]
head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), 5, 0.2)
model = classifier.join(network, head)
manifest = {{"classes": list("abcde"), "image_size": 224, "versions": {{"keras": ""}}}}
for number in range({count}):
    score = {score_of("number")}
    bias = np.log([score, *[(1 - score) / 4] * 4]).astype(np.float32)
    head.get_layer("logits").set_weights([np.zeros((depth, 5), np.float32), bias])
    save_bundle(model, manifest, {folder!r} + f"/{{number}}")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def score_of(number: Any) -> Any:
    """The score of a version's answers; for a name, its source."""
    return f"0.5 + {number} / 50" if isinstance(number, str) else 0.5 + number / 50


def resident_mb(server: Server) -> float:
    pages = 0
    for pid in members(server.job.pid):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:  # it has just ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def milliseconds(found: list[Seen]) -> str:
    times = sorted(1000 * one.seconds for one in found) or [0.0]
    return f"median {statistics.median(times):.0f} ms, 99 % {times[int(0.99 * (len(times) - 1))]:.0f} ms"


def statuses(found: list[Seen]) -> str:
    return ", ".join(
        f"{count} x {status or 'broken'}" for status, count in sorted(Counter(s.status for s in found).items())
    )


async def swaps(client: Client, server: Server, models: Path, rate: float) -> None:
    """Renames one version after the other into its place."""
    done, took, stopped = 0, [], False

    async def versions() -> None:
        nonlocal done, stopped
        for number in range(1, SWAPS + 1):
            before = await asyncio.to_thread(server.version)
            if number in DAMAGED:
                damage(models / "aside" / str(number))
            began = time.perf_counter()
            (models / "aside" / str(number)).rename(models / "flowers" / str(number))
            wanted = before if number in DAMAGED else str(number)

            def over(number: int = number, wanted: str = wanted) -> bool:
                refused = f"version {number} is refused" in server.get("/v2/models/flowers").text
                return server.version() == wanted and refused == (number in DAMAGED)

            while not await asyncio.to_thread(over):
                await asyncio.sleep(0.2)
            took.append(time.perf_counter() - began)
            done += 1
            print(
                f"    version {number} {'refused' if number in DAMAGED else 'answers'} after {took[-1]:.1f} s",
                flush=True,
            )
            await asyncio.sleep(1)
        stopped = True

    changing = asyncio.create_task(versions())
    found = await client.offered(rate, lambda seconds: stopped or changing.done())
    await changing
    wrong = [one for one in found if one.status == 200 and abs(one.score - score_of(one.version)) > 0.004]
    print(f"swaps: {done} versions, {len(DAMAGED)} of them damaged, a swap takes {statistics.median(took):.1f} s")
    print(f"    {len(found)} requests at {rate:.1f}/s: {statuses(found)}; {milliseconds(found)}")
    print(f"    versions that answered: {sorted({one.version for one in found})}; answers of another version than they")
    print(f"    name: {len(wrong)}", flush=True)


async def overload(client: Client, server: Server, capacity: float, seconds: float) -> None:
    """Sends 5 times what can be answered, and looks when a single photo is answered as fast as before."""
    normal = statistics.median([(await client.ask()).seconds for _ in range(20)])
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(await asyncio.to_thread(resident_mb, server))
            await asyncio.sleep(2)

    watching = asyncio.create_task(watch())
    load = asyncio.create_task(client.offered(5 * capacity, lambda now: now >= seconds))
    await asyncio.sleep(seconds)
    ended = time.perf_counter()
    first = ""
    while time.perf_counter() < ended + 30:
        one = await client.ask()
        if one.status == 200 and one.seconds < 2 * normal:
            first = f"{time.perf_counter() - ended:.1f} s after it one photo took {1000 * one.seconds:.0f} ms"
            break
        await asyncio.sleep(0.1)
    found = await load
    watching.cancel()
    good = [one for one in found if one.status == 200]
    refused = [one for one in found if one.status == 503]
    third = len(memory) // 3
    print(f"overload: {len(found)} requests in {seconds:.0f} s ({len(found) / seconds:.0f}/s): {statuses(found)}")
    print(f"    answered {len(good) / seconds:.1f}/s (capacity {capacity:.1f}/s): {milliseconds(good)}")
    print(f"    refused: {milliseconds(refused)}, without Retry-After {sum(not one.retry for one in refused)}")
    print(
        f"    memory of all processes: {statistics.median(memory[third : 2 * third]):.0f} MB in the second third, ",
        end="",
    )
    print(f"{statistics.median(memory[2 * third :]):.0f} MB in the last")
    print(f"    before: one photo in {1000 * normal:.0f} ms; {first or 'not normal within 30 s'}", flush=True)


async def return_at_once(client: Client, capacity: float, seconds: float) -> None:
    """256 clients who, refused or answered, ask again without a pause."""
    rate, found = await client.closed(256, seconds)
    good = [one for one in found if one.status == 200]
    refused = [one for one in found if one.status == 503]
    print(f"return: 256 clients for {seconds:.0f} s: {statuses(found)}; answered {rate:.1f}/s", end="")
    print(f" (capacity {capacity:.1f}/s): {milliseconds(good)}; refused: {milliseconds(refused)}", flush=True)


async def kill(client: Client, server: Server, rate: float) -> None:
    """Kills the replica, and looks who noticed."""
    killed = answering = 0.0

    async def killer() -> None:
        nonlocal killed, answering
        await asyncio.sleep(5)
        (replica,) = server.replicas()
        killed = time.perf_counter() - began
        end(replica)
        await asyncio.sleep(1)
        while (await client.ask()).status != 200:
            await asyncio.sleep(0.5)
        answering = time.perf_counter() - began

    began = time.perf_counter()
    task = asyncio.create_task(killer())
    found = await client.offered(rate, lambda now: bool(answering) and now > answering + 5)
    await task
    flying = [one for one in found if one.at <= killed <= one.at + one.seconds]
    away = [one for one in found if killed < one.at < answering]
    after = [one for one in found if one.at >= answering]
    print(f"kill: in flight {statuses(flying)}; sent within the {answering - killed:.1f} s without a replica ", end="")
    print(f"{statuses(away)}; sent later {statuses(after)}", flush=True)


async def measure(arguments: argparse.Namespace, models: Path, scratch: str) -> None:
    photos = [path.read_bytes() for path in sorted(Path(arguments.data).glob("*/*.jpg"))[::25]]
    parts = arguments.only.split(",")
    began = time.perf_counter()
    with serve(models, Path(scratch, "logs"), "--watch-s", 0.5) as server:
        print(f"ready {time.perf_counter() - began:.1f} s after its start", flush=True)
        client = Client(server.address, photos)
        try:
            await client.closed(32, 3)
            capacity, _ = await client.closed(32, 10)
            print(f"capacity {capacity:.1f} photos/s with 32 clients", flush=True)
            steps: dict[str, Callable[[Client], Awaitable[None]]] = {
                "swaps": lambda client: swaps(client, server, models, 0.8 * capacity),
                "overload": lambda client: overload(client, server, capacity, arguments.seconds),
                "return": lambda client: return_at_once(client, capacity, arguments.seconds),
                "kill": lambda client: kill(client, server, 0.8 * capacity),
            }
            for name in parts:
                used = time.process_time(), time.perf_counter()
                await steps[name](client)
                share = (time.process_time() - used[0]) / (time.perf_counter() - used[1])
                print(f"    the client took {share:.2f} CPU", flush=True)
                # Connections that the server closes as idle might be taken for the next request.
                await client.close()
                client = Client(server.address, photos)
        finally:
            await client.close()
        print(f"stderr of the server: {server.job.err.read_text()[-500:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="resnet50v2")
    parser.add_argument("--only", default="swaps,overload,return,kill")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch, "models")
        make_versions(str(models / "aside"), arguments.backbone, SWAPS + 1 if "swaps" in arguments.only else 1)
        (models / "flowers").mkdir()
        shutil.move(models / "aside" / "0", models / "flowers" / "0")
        asyncio.run(measure(arguments, models, scratch))


if __name__ == "__main__":
    main()
