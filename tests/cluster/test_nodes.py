"""Waiting for machines that an autoscaler adds."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from flowers.cluster import nodes
from flowers.cluster.placement import Node
from flowers.config import TrainConfig
from flowers.errors import InputError, NoRoom
from flowers.plan import bundles, placed

SMALL, LARGE = Node(1, 0), Node(4, 0)


class Cluster:
    """One that has other nodes each time one looks; what its autoscaler is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seen: list[Node]) -> None:
        self.asked: list[Any] = []
        self.said: list[str] = []
        looks = itertools.chain(seen, itertools.repeat(seen[-1]))
        monkeypatch.setattr(nodes, "cluster_nodes", lambda: next(looks))
        monkeypatch.setattr(nodes, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr("time.sleep", lambda s: None)

    def wait(self, config: TrainConfig) -> Any:
        fits = functools.partial(placed, config)
        return nodes.asked_for(bundles(config), fits, config.wait_s, self.said.append)


def test_what_is_there_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [LARGE])
    with cluster.wait(TrainConfig(workers="2", wait_s=60)) as found:
        assert found == [LARGE]
    assert (cluster.asked, cluster.said) == ([], [])


def test_missing_machines_are_asked_for_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [SMALL], [SMALL], [SMALL, SMALL], [SMALL, LARGE])
    with cluster.wait(TrainConfig(workers="4", wait_s=60)) as found:
        assert found == [SMALL, LARGE]
        assert cluster.asked == [[{"CPU": 1.0}] * 4]
        (said,) = cluster.said
        assert said.startswith("waits up to 60 s for an autoscaler; now --workers: received 4")
        assert said.endswith("the cluster has room for 1: 1 node of 1 CPU")
    assert cluster.asked[-1] == []


def test_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for wait_s in (0, 1):
        cluster = Cluster(monkeypatch, [SMALL])
        clock = itertools.count()
        monkeypatch.setattr("time.monotonic", lambda clock=clock: next(clock))
        with (
            pytest.raises(NoRoom, match="--workers: received 4"),
            cluster.wait(TrainConfig(workers="4", wait_s=wait_s)),
        ):
            pytest.fail("there is no room")
        assert cluster.asked == ([[{"CPU": 1.0}] * 4, []] if wait_s else [])


def test_what_no_machine_mends_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [SMALL])
    with (
        pytest.raises(InputError, match=r"required is a multiple of --workers \(3\)"),
        cluster.wait(TrainConfig(workers="3", wait_s=60)),
    ):
        pytest.fail("a batch of 32 cannot be shared by 3")
    assert cluster.asked == []


def test_what_a_worker_needs() -> None:
    assert bundles(TrainConfig(workers="2", cpus_per_worker=3, gpus_per_worker=0.5)) == [{"CPU": 3.0, "GPU": 0.5}] * 2
    assert bundles(TrainConfig(gpus_per_worker=0)) == [{"CPU": 1.0}]
