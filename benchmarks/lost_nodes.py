"""Takes a machine away from a job at random moments, and counts how often it ends by itself with the same result.

    python -m benchmarks.lost_nodes --kills 10
    python -m benchmarks.lost_nodes --kills 10 --job predict
    python -m benchmarks.lost_nodes --kills 10 --join 5          # another node comes 5 s later
    python -m benchmarks.lost_nodes --kills 1 --pause 60         # it is asleep for 60 s, and wakes up
    python -m benchmarks.lost_nodes --kills 4 --head             # the head is lost: once more, on another one

A node is a raylet of `ray.cluster_utils.Cluster` on this machine; the head computes nothing, two others have two CPUs
each, and one of them is killed. An undisturbed run is the reference: exit code, split, ledger and metrics have to be
the same, in bulk prediction every row. The network is that of the tests, so that starts and losses are what is
measured. What is not an option here goes to the job. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.kill_resume import NAME, metrics
from tests.e2e.conftest import TINY_PATH, WITH_TINY, draw
from tests.faults.processes import end

ROOT = Path(__file__).resolve().parent.parent
HEAD_EPOCHS = 3
OPTIONS = (
    "--backbone mobilenetv2 --weights random --image-size 64 --precision float32 --trainable block_16 --augment none "
    "--head-epochs 3 --epochs 20 --patience 0 --batch-size 8 --tail-learning-rate 0.001 --workers 2 --cpus-per-worker 1"
)
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}


class Machines:
    """A head and two nodes."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(**NODE) for _ in range(2)]

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self._cluster.address)

    def lose(self, number: int) -> None:
        """Kills a node with all that runs on it."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def fill(self) -> None:
        """Adds nodes until there are two."""
        while len(self._nodes) < 2:
            self._nodes.append(self._cluster.add_node(**NODE))

    def pause(self, number: int, seconds: float) -> None:
        """Nothing of a node moves for so long."""
        raylets = pids(self._nodes[number])
        stopped = [*raylets, *(child for pid in raylets for child in children(pid))]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Kills all nodes."""
        self._cluster.shutdown()

    def lose_head(self) -> None:
        """Kills the head."""
        for pid in pids(self._cluster.head_node):
            end(pid)

    def replace(self) -> None:
        """Ends all that is left, and starts another head and other nodes."""
        self.close()
        self._start()


def pids(node: Any) -> list[int]:
    """The processes that Ray started for a node."""
    return [one.process.pid for kind in node.all_processes.values() for one in kind]


def children(pid: int) -> list[int]:
    """Processes that a process started, and those that these did."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, listed) for found in (child, *children(child))]


@contextmanager
def running(command: list[str], address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job on the cluster; afterwards it has ended."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*WITH_TINY, *command], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process.pid)
        process.wait()


def trained(folder: Path) -> dict[str, Any]:
    """What a training must leave, whatever happens."""
    run = folder / NAME
    report = json.loads((run / "report.json").read_text())
    tables = {name: pq.read_table(run / f"{name}.parquet").sort_by("path").to_pylist() for name in ("split", "ledger")}
    return {**tables, "metrics": metrics(run), **{name: report[name] for name in ("validation", "test")}}


def predicted(folder: Path) -> dict[str, Any]:
    """The same of bulk prediction."""
    parts = sorted((folder / "predicted").glob("part-*.parquet"))
    return {"rows": [row for part in parts for row in pq.read_table(part).to_pylist()]}


def equal(one: Any, other: Any) -> bool:
    """Equal, numbers but for rounding: workers that begin elsewhere add up in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-4, atol=1e-6))
    return bool(one == other)


def compared(left: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What of a result is not as wanted, or "same"."""
    return ", ".join(name for name in wanted if not equal(left[name], wanted[name])) or "same"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:150] if lines else "nothing said"


def stages(job: str, folder: Path) -> dict[str, Callable[[], bool]]:
    """What is there once a job has come so far."""
    run, out = folder / NAME, folder / "predicted"
    if job == "predict":
        return {"start": out.exists, "rows": (out / "part-00000.parquet").exists}
    return {
        "start": run.exists,
        "reading": (run / ".uses").exists,
        "features": lambda: any(folder.glob("cache/features/*/rows-*")),
        "training": lambda: len(metrics(run)) > HEAD_EPOCHS,
    }


def trial(
    machines: Machines, command: list[str], folder: Path, reached: Callable[[], bool], options: argparse.Namespace
) -> int | None:
    """Runs a job and takes a node away from it when it has come so far; its exit code if it ended by itself."""
    number, more = random.randrange(2), random.uniform(0, options.later)
    with running(command, machines.address, folder / "log") as process:
        while not reached() and process.poll() is None:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(more)
        if options.head:
            machines.lose_head()
        elif options.pause:
            threading.Thread(target=machines.pause, args=(number, options.pause), daemon=True).start()
        else:
            machines.lose(number)
            if options.join is not None:
                threading.Timer(options.join, machines.fill).start()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(options.limit)
    return None


def campaign(scratch: Path, machines: Machines, options: argparse.Namespace, more: list[str]) -> int:
    """The reference and all trials; how many had its result."""
    data = options.data or str(draw(scratch / "photos", classes=4, each=options.photos // 4))

    def command(job: str, folder: Path) -> list[str]:
        words = [sys.executable, "-m", f"jobs.{job}", "--data", data, "--storage", str(folder)]
        if job == "train":
            return [*words, "--name", NAME, *OPTIONS.split(), *more]
        bundle = str(scratch / "bundle" / NAME)
        return [*words, "--bundle", bundle, "--out", str(folder / "predicted"), "--part-photos", "100"]

    def undisturbed(job: str, folder: Path) -> float:
        folder.mkdir()
        began = time.monotonic()
        with running(command(job, folder), machines.address, folder / "log") as process:
            if process.wait():
                sys.exit(f"the undisturbed run failed\n{(folder / 'log').read_text()}")
        return time.monotonic() - began

    result: Callable[[Path], dict[str, Any]] = trained if options.job == "train" else predicted
    if options.job == "predict":
        undisturbed("train", scratch / "bundle")
    print(f"    undisturbed: {undisturbed(options.job, scratch / 'reference'):.1f} s", flush=True)
    wanted, same = result(scratch / "reference"), 0
    for number in range(options.kills):
        folder = scratch / str(number)
        folder.mkdir()
        found = stages(options.job, folder)
        stage = [*found][number % len(found)] if options.stage is None else options.stage
        began = time.monotonic()
        code = trial(machines, command(options.job, folder), folder, found[stage], options)
        took = time.monotonic() - began
        if options.head:
            print(
                f"{number + 1:3d}  {stage:8}  {took:5.1f} s  exit code {code}: {last_line(folder / 'log')}", flush=True
            )
            machines.replace()
            with running(command(options.job, folder), machines.address, folder / "log") as process:
                code = process.wait()
        machines.fill()
        if code == 0:
            left = result(folder)
            outcome = compared(left, wanted)
        else:
            outcome = f"exit code {code}: {last_line(folder / 'log')}"
        print(f"{number + 1:3d}  {stage:8}  {took:5.1f} s  {outcome}", flush=True)
        same += outcome == "same"
    return same


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--job", choices=("train", "predict"), default="train")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--data", help="photos; drawn if not given")
    parser.add_argument("--stage", help="always lose it in this one; by turns if not given")
    parser.add_argument("--later", type=float, default=1.5, help="seconds in the stage, at most")
    parser.add_argument("--photos", type=int, default=800, help="how many are drawn")
    parser.add_argument("--join", type=float, help="seconds after which a new node takes the place of the lost one")
    parser.add_argument("--pause", type=float, help="stop the node for so many seconds instead of killing it")
    parser.add_argument("--head", action="store_true", help="kill the head instead, and give the command once more")
    parser.add_argument("--limit", type=float, default=400, help="seconds that a job has after the loss")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, more = parser.parse_known_args()
    random.seed(options.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cluster is ended as well
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), TINY_PATH])
    with tempfile.TemporaryDirectory(prefix="lost-") as scratch:
        os.environ["RAY_TMPDIR"] = scratch
        machines = Machines()
        try:
            same = campaign(Path(scratch), machines, options, more)
        finally:
            machines.close()
        how = "by the same command again" if options.head else "by themselves"
        print(f"{same} of {options.kills} ended {how} with the same result")
        if same < options.kills:
            logs = tempfile.mkdtemp(prefix="lost-nodes-kept-")
            for log in Path(scratch).glob("*/log"):
                shutil.copy(log, f"{logs}/{log.parent.name}.log")
            print(f"what the jobs said is in {logs}")
    return int(same < options.kills)


if __name__ == "__main__":
    sys.exit(main())
