"""Seconds of a warm run's start against a bare start of Ray and its first task, whole processes in turn, medians.

    python -m benchmarks.start ../shared/data/flower_photos --weights WEIGHTS.h5

Start is what the report calls so: from the process's beginning until photos flow, imports, network and plan included.
The bare process imports Ray and Ray Data, as the job has to, starts Ray as it comes, and runs one task. With --nodes
both join a cluster of so many nodes of two CPUs, all on this machine, that runs already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.train_speed import run

BARE = """
import os, ray, ray.data
options = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}
ray.init(log_to_driver=False, logging_level="ERROR", **options)
ray.get(ray.remote(lambda: 1).remote())
"""


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """Nodes of two CPUs each that RAY_ADDRESS names meanwhile; none of them if there shall be none."""
    if not nodes:
        yield
        return
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "object_store_memory": 100 << 20}
    started = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **options})
    try:
        for _ in range(nodes - 1):
            started.add_node(**options)
        os.environ["RAY_ADDRESS"] = started.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        started.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=0, help="of a cluster to join; 0 starts Ray for each process")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage, cluster(arguments.nodes):
        command = [sys.executable, "-m", "jobs.train", "--data", str(arguments.data.resolve()), "--storage", storage]
        command += ["--backbone", arguments.backbone, "--weights", arguments.weights]
        command += ["--per-class", str(arguments.per_class)]
        run([*command, "--name", "cold"])
        bare, whole, start = list[float](), list[float](), list[float]()
        for number in range(arguments.rounds):
            bare.append(run([sys.executable, "-c", BARE])[0])
            name = f"warm-{number}"
            whole.append(run([*command, "--name", name, "--learning-rate", f"{0.001 + number / 1e6}"])[0])
            start.append(json.loads(Path(storage, name, "report.json").read_text())["timing_s"]["start"])
    for name, seconds in (("bare", bare), ("start", start), ("whole job", whole)):
        print(f"{name:10} {statistics.median(seconds):.1f} s  ({min(seconds):.1f} to {max(seconds):.1f})")
    print(f"start / bare: {statistics.median(start) / statistics.median(bare):.2f}")


if __name__ == "__main__":
    main()
