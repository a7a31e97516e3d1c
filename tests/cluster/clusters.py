"""Ray clusters of a test's own, on this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.machines import Machine, can_be_made, machines
from tests.conftest import ROOT, stop_ray
from tests.e2e.head import RAY, free_port
from tests.faults.processes import end, members

STORE_BYTES = 100 << 20  # of each node
PATIENCE_S = 120
# With "0", as a job on one machine sets it, Ray knows no address but that of the loopback.
_ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def own_cluster(cpus: int) -> Iterator[tuple[Any, Path]]:
    """Its head, which this process joins, and a folder; its files lie apart from those of other Ray sessions."""
    from ray.cluster_utils import Cluster

    with _apart() as scratch:
        head = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster, scratch
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def three_nodes(cpus: int) -> Iterator[str]:
    """HOST:PORT of the head, which this process joins; where machines can be made, each has an address of its own."""
    if not can_be_made():
        with own_cluster(cpus) as (cluster, _):
            for _ in range(2):
                cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES)
            yield str(cluster.address)
        return
    with machines(2) as made, _apart() as scratch:
        here, port = made[0].here, free_port()
        (own := scratch / "own").mkdir()  # each machine has another there
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={own}/ray"]
        with _node(None, here, cpus, head, scratch) as started:
            _until(lambda: "Ray runtime started" in started.read_text(), started)
            joins = [f"--address={here}:{port}"]
            with (
                _node(made[0], made[0].host, cpus, joins, scratch) as one,
                _node(made[1], made[1].host, cpus, joins, scratch) as other,
            ):
                ray.init(address=f"{here}:{port}", _node_ip_address=here, log_to_driver=False)
                try:
                    for log in (one, other):
                        _until(lambda: len({node["NodeManagerAddress"] for node in ray.nodes()}) == 3, log)
                    yield f"{here}:{port}"
                finally:
                    ray.shutdown()


@contextmanager
def _apart() -> Iterator[Path]:
    """No Ray of another test runs; the folder for that of this one, with a path that is short enough for sockets."""
    stop_ray()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", scratch)
        yield Path(scratch)


@contextmanager
def _node(machine: Machine | None, host: str, cpus: int, words: list[str], scratch: Path) -> Iterator[Path]:
    """`ray start` on a machine, or beside this process; yields the file that it says all into."""
    inside = machine.with_own(scratch / "own") if machine else []
    command = [*inside, str(RAY), "start", "--block", f"--node-ip-address={host}", f"--num-cpus={cpus}"]
    command += [f"--object-store-memory={STORE_BYTES}", *words]
    env = {name: value for name, value in os.environ.items() if name != _ONE_MACHINE} | {"RAY_AUTH_MODE": "disabled"}
    log = scratch / f"{host}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        yield log
    finally:
        for pid in members(process.pid):
            end(pid)
        process.wait()


def _until(condition: Any, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
