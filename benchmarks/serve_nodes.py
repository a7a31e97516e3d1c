"""A server on several nodes: versions that change on all replicas, a roll-back, replicas added under load, metrics.

    sudo python -m benchmarks.serve_nodes

Namespaces of network and mounts stand for machines: each has an address, ports and a temporary folder of its own, and
reaches nothing but the others; the models lie in a folder that all see. `ray start` in each, then `serve deploy` of
serving/serve.yaml with a toy network. Clients ask every node's proxy all the time; each answer names its version.
Linux, as root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

from benchmarks.train_speed import ROOT
from tests.cluster.machines import Machine, machines
from tests.e2e.conftest import environment
from tests.e2e.head import RAY
from tests.faults.processes import end, members

PORT, GCS, DASHBOARD = 8000, 6379, 8265
CLASSES = ["red", "green", "blue"]
# Beyond this a step has failed; they take seconds.
PATIENCE_S = 300
NEEDED = {  # what serving/serve.yaml asks to be set for `ray start`
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.proxy:middlewares",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


def run(*words: object, **more: Any) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=ROOT, **more)
    if done.returncode:
        sys.exit(f"{words} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def cluster(made: list[Machine], scratch: Path) -> Iterator[dict[str, str]]:
    """Ray on all machines, one CPU each; yields the environment of those who ask it."""
    env = {**environment(), **NEEDED, "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    running: list[subprocess.Popen[bytes]] = []
    address = f"http://{made[0].host}:{DASHBOARD}"
    own = scratch / "own"
    own.mkdir()
    with ExitStack() as stack:
        stack.callback(_end_all, running)
        for machine in made:  # one after the other: Ray gives a node half a minute to start
            words = [*machine.with_own(own), str(RAY), "start", "--block", f"--node-ip-address={machine.host}"]
            words += ["--num-cpus=1", "--object-store-memory=100000000"]
            if running:
                words += [f"--address={made[0].host}:{GCS}"]
            else:
                words += ["--head", f"--port={GCS}", f"--dashboard-port={DASHBOARD}", "--dashboard-host=0.0.0.0"]
                words += [f"--temp-dir={own}/ray"]
            log = stack.enter_context((scratch / f"{machine.name}.log").open("w"))
            running.append(
                subprocess.Popen(
                    words, cwd=ROOT, stdout=log, stderr=log, env={**env, "TMPDIR": f"{own}/tmp"}, start_new_session=True
                )
            )

            def joined() -> bool:
                if running[-1].poll() is not None:
                    sys.exit(f"ray start ended: {Path(log.name).read_text()[-2000:]}")  # noqa: B023
                return answers(address, env) and len(alive("nodes", made[0], env)) == len(running)

            until(f"{machine.host} joins", joined, 1)
        yield env


def _end_all(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        for pid in members(process.pid):
            end(pid)
        process.wait()


def answers(address: str, env: dict[str, str]) -> bool:
    """Whether Ray's dashboard is up."""
    try:
        token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
        return requests.get(f"{address}/api/version", headers=token, timeout=2).ok
    except requests.RequestException:
        return False


def alive(what: str, head: Machine, env: dict[str, str]) -> list[dict[str, Any]]:
    """The nodes or actors that live, as Ray's dashboard knows them."""
    chosen = "detail=1&limit=1000&filter_keys=state&filter_predicates==&filter_values=ALIVE"
    address, token = f"http://{head.host}:{DASHBOARD}/api/v0/{what}", f"Bearer {env['RAY_AUTH_TOKEN']}"
    answer = requests.get(address, chosen, headers={"Authorization": token}, timeout=30)
    return list(answer.json()["data"]["result"]["result"]) if answer.ok else []


def replicas(head: Machine, env: dict[str, str]) -> Counter[str]:
    """How many replicas run on which node."""
    return Counter(actor["node_id"] for actor in alive("actors", head, env) if "ServeReplica" in actor["class_name"])


def until(what: str, condition: Callable[[], Any], pause: float = 0.1) -> float:
    """Seconds until something has happened."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE_S:
            sys.exit(f"waited {PATIENCE_S} s in vain: {what}")
        time.sleep(pause)
    return time.monotonic() - began


@dataclass
class Asked:
    """What clients saw.

    Attributes:
        statuses: of all requests; 0 if a connection broke.
        latest: version of the newest answers by machine, at most as many as `KEPT`.
    """

    KEPT = 20
    statuses: Counter[int] = field(default_factory=Counter)
    latest: dict[Machine, list[str]] = field(default_factory=dict)

    def all_say(self, version: str) -> bool:
        """Whether the newest answers of every machine are of this version, enough of them for all replicas."""
        return all(len(seen) == self.KEPT and set(seen) == {version} for seen in self.latest.values())


@contextmanager
def asking(made: list[Machine], photo: bytes, clients: int, pause: float = 0.02) -> Iterator[Asked]:
    """So many clients ask each machine in turn until it is left."""
    asked, stop, lock = Asked(latest={machine: [] for machine in made}), threading.Event(), threading.Lock()

    def one(number: int) -> None:
        # A connection each time, as a balancer in front may make them: no client stays with one replica.
        while not stop.wait(pause):
            number += 1
            machine, status, version = made[number % len(made)], 0, ""
            try:
                answer = requests.post(f"http://{machine.host}:{PORT}/predict", data=photo, timeout=60)
                status = answer.status_code
                version = str(answer.json()["model_version"]) if status == 200 else ""
            except requests.RequestException:
                pass
            with lock:
                asked.statuses[status] += 1
                if version:
                    asked.latest[machine] = [*asked.latest[machine], version][-Asked.KEPT :]

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(one, number) for number in range(clients)]
        try:
            yield asked
        finally:
            stop.set()
    for future in futures:
        future.result()


def make_runs(scratch: Path) -> None:
    """Two finished runs of toy networks; in a process of its own, as TensorFlow stays."""
    code = f"""
from pathlib import Path
from tests.toys import coloured, layered, trained
for seed in (1, 2):
    place = Path({str(scratch)!r}, f"run{{seed}}")
    photos = {{path: (label, "test") for path, label in coloured(place / "photos", {CLASSES!r}, 4).items()}}
    trained(place / "run", layered(64, {CLASSES!r}, seed), photos)
"""
    run(sys.executable, "-c", code, env=environment())


def publish(models: Path, *words: object) -> None:
    run(sys.executable, "-m", "jobs.publish", *words, "--to", models / "flowers", env=environment())


def deploy(head: Machine, env: dict[str, str], scratch: Path, **args: Any) -> None:
    """`serve deploy` of serving/serve.yaml with other arguments; returns when it runs."""
    config = yaml.safe_load((ROOT / "serving" / "serve.yaml").read_text())
    config["http_options"] |= {"host": "0.0.0.0", "port": PORT}
    config["applications"][0]["args"] = args
    file = scratch / "serve.yaml"
    file.write_text(json.dumps(config))
    words = [str(RAY.parent / "serve"), "deploy", "-a", f"http://{head.host}:{DASHBOARD}", str(file)]
    run(*words, env=env)
    until("the application runs", lambda: application(head, env)["status"] == "RUNNING", 0.5)


def application(head: Machine, env: dict[str, str]) -> dict[str, Any]:
    words = [str(RAY.parent / "serve"), "status", "-a", f"http://{head.host}:{DASHBOARD}"]
    found = yaml.safe_load(run(*words, env=env))["applications"]["flowers"]
    if found["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
        sys.exit(f"the application is {found['status']}: {found}")
    return dict(found)


def counted(machine: Machine) -> tuple[int, list[str]]:
    """Predictions that a machine's /metrics counts, and the versions of its replicas."""
    text = requests.get(f"http://{machine.host}:{PORT}/metrics", timeout=10).text
    predictions = sum(float(number) for number in re.findall(r"^flowers_predictions_total\{.*\} (\S+)$", text, re.M))
    versions = re.findall(r"^flowers_model_version(?:\{.*\})? (\S+)$", text, re.M)
    return int(predictions), [f"{float(version):g}" for version in versions]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of asking between two changes")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--load", type=int, default=48, help="clients that make it add replicas")
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("network namespaces need root")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nodes-") as name, machines(arguments.nodes) as made:
        scratch, head = Path(name), made[0]
        models = scratch / "models"
        make_runs(scratch)
        photo = next((scratch / "run1" / "photos").iterdir()).read_bytes()
        publish(models, scratch / "run1" / "run")
        with cluster(made, scratch) as env:
            deploy(head, env, scratch, bundle=str(models), replicas=1, max_replicas=arguments.nodes, cpus=1)
            until("the head's proxy answers", lambda: _ready(head))
            print(f"replicas at the start: {replicas(head, env).total()}", flush=True)
            # Ray Serve has proxies on the head and where there are replicas.
            with asking([head], photo, arguments.load, 0) as loaded:
                took = until("replicas are added", lambda: replicas(head, env).total() == arguments.nodes, 1)
                where = replicas(head, env)
            until("all proxies answer", lambda: all(map(_ready, made)))
            print(
                f"under load: {arguments.nodes} replicas on {len(where)} nodes after {took:.0f} s; requests by status: "
                f"{dict(loaded.statuses)}",
                flush=True,
            )
            wrong += [f"under load {status}: {number} x" for status, number in loaded.statuses.items() if not status]
            if len(where) < arguments.nodes:
                wrong.append("a node has no replica")
            with asking(made, photo, arguments.clients) as asked:
                changes: tuple[tuple[str, str, tuple[object, ...]], ...] = (
                    ("start", "1", ()),
                    ("published", "2", (scratch / "run2" / "run",)),
                    ("rolled back", "1", ("--rollback",)),
                )
                for what, version, change in changes:
                    if change:
                        publish(models, *change)
                    took = until(f"all say {version}", lambda: asked.all_say(version), 0.02)  # noqa: B023
                    print(f"{what}: after {took:.1f} s every answer is of version {version}", flush=True)
                    time.sleep(arguments.seconds)
                    if not asked.all_say(version):
                        wrong.append(f"{what}: later answers are of other versions")
            print(f"requests by status: {dict(asked.statuses)}", flush=True)
            wrong += [f"{status}: {number} x" for status, number in asked.statuses.items() if status != 200]
            shown = [counted(machine) for machine in made]
            total, answered = sum(number for number, _ in shown), asked.statuses[200] + loaded.statuses[200]
            print(f"/metrics of each machine: {shown}; {total} of {answered} predictions", flush=True)
            if total != answered or any(versions != ["1"] for _, versions in shown):
                wrong.append("/metrics")
    print(f"wrong: {wrong}" if wrong else "all as promised")
    return int(bool(wrong))


def _ready(machine: Machine) -> bool:
    try:
        return requests.get(f"http://{machine.host}:{PORT}/v2/health/ready", timeout=5).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    sys.exit(main())
