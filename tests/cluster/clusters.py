"""A Ray cluster of a test's own, on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.conftest import stop_ray

STORE_BYTES = 100 << 20  # of each node


@contextmanager
def own_cluster(cpus: int) -> Iterator[tuple[Any, Path]]:
    """Its head, which this process joins, and a folder; its files lie apart from those of other Ray sessions."""
    from ray.cluster_utils import Cluster

    stop_ray()
    # Ray's sockets need a short path, so this is not pytest's folder.
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", scratch)
        head = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster, Path(scratch)
        finally:
            ray.shutdown()
            cluster.shutdown()
