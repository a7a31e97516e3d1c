"""Nodes and processes are lost in the middle of a pass over photos: it goes on, and every file is there once."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from flowers.bundle import load_bundle
from flowers.cluster import nodes
from flowers.cluster.placement import Node, Pool, network_pool, pool_of_the_rest
from flowers.data import reading
from flowers.errors import ProcessLost
from flowers.pipelines import train
from flowers.plan import Plan, after_loss
from flowers.prediction.scorer import Machine, Scorer
from flowers.progress import Stopwatch
from tests.toys import saved_by_colour

TWO = Node(2.0, 0.0)


@pytest.mark.parametrize(
    ("nodes", "actors"),
    [
        ([TWO], 0),
        ([TWO, TWO], 2),
        ([Node(0.0, 0.0), TWO, TWO], 2),
        ([Node(0.0, 0.0), TWO], 1),  # what a head without CPUs and two nodes come to
        ([Node(4.0, 1.0), Node(4.0, 1.0)], 2),
    ],
)
def test_actors_are_where_cpus_are(nodes: list[Node], actors: int) -> None:
    assert network_pool("auto", nodes, 2).actors == actors


@pytest.mark.parametrize(
    ("pool", "nodes", "left"),
    [
        (Pool(2, 2), [Node(4.0, 1.0)], Pool(1, 2)),  # of --device cpu: GPUs that are left stay alone
        (Pool(2, 2), [Node(4.0, 1.0), Node(4.0, 1.0), TWO], Pool(2, 2)),
        (Pool(4, 1, 1.0), [Node(4.0, 2.0), TWO], Pool(2, 1, 1.0)),
        (Pool(4, 1, 1.0), [Node(4.0, 0.0)], Pool(1, 2)),  # all GPUs are gone
    ],
)
def test_what_is_left_after_a_loss(pool: Pool, nodes: list[Node], left: Pool) -> None:
    assert pool_of_the_rest(pool, nodes) == left


@pytest.mark.usefixtures("ray")
def test_actors_that_fill_all_nodes_leave_room_to_read() -> None:
    """One for each CPU: more than there should be, as after a loss."""
    import ray

    class Passes:
        def __call__(self, block: pa.Table) -> pa.Table:
            return block

    cpus = int(ray.cluster_resources()["CPU"])
    blocks = [pa.table({"a": [number]}) for number in range(8)]
    listed = reading.stream_tables(blocks, lambda block: block, readers=1, num_cpus=reading.BESIDE_ACTORS)
    found = reading.through_actors(listed, Passes, (), actors=cpus, cpus=1, gpus=0)
    assert sorted(row for table in reading.tables(found) for row in table["a"].to_pylist()) == list(range(8))


@pytest.mark.usefixtures("ray")
def test_a_process_that_dies_is_not_waited_for() -> None:
    class Dies:
        def __call__(self, block: pa.Table) -> pa.Table:
            os._exit(1)

    listed = reading.stream_tables([pa.table({"a": [1]})], lambda block: block, readers=1, num_cpus=0.1)
    dying = reading.through_actors(listed, Dies, (), actors=1, cpus=1, gpus=0)
    with pytest.raises(ProcessLost, match=r"\Aa node of the cluster or a process on it was lost \(\w+\)\Z"):
        list(reading.tables(dying))


@pytest.mark.parametrize("losses", [1, reading.LOSSES, reading.LOSSES + 1])
def test_bulk_prediction_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: int) -> None:
    """A stand-in for a round of the cluster, which breaks off after two blocks of three files."""
    monkeypatch.setattr(nodes, "check_files", lambda *_: None)
    monkeypatch.setattr(nodes, "alive_ids", lambda: {"head", "left", "lost"})
    monkeypatch.setattr(nodes, "nodes_left", lambda before: [Node(0.0, 0.0), TWO] * ("lost" in before))
    said: list[str] = []
    bundle = load_bundle(str(saved_by_colour(tmp_path / "bundle", ["red", "green", "blue"])))
    scorer = Scorer(bundle, Machine("openvino", Pool(2, 1), 4, ""), 10**8, say=said.append)
    sizes = []

    def broken(listing: pa.Table, _: Any) -> Iterator[pa.Table]:
        sizes.append(listing.num_rows)
        for start in range(0, listing.num_rows, 3):
            if start == 6 and len(sizes) <= losses:
                raise ProcessLost("a node was lost")
            yield listing.slice(start, 3)

    monkeypatch.setattr(scorer, "_round", broken)
    listing = pa.table({"path": [f"{number}.jpg" for number in range(100)]})
    found: list[str] = []
    try:
        for table in scorer.tables(listing):
            found += table["path"].to_pylist()
    except ProcessLost:
        assert losses > reading.LOSSES
    else:
        assert losses <= reading.LOSSES
        assert found == listing["path"].to_pylist()
        assert scorer.machine == Machine("openvino", Pool(1, 1), 1, "")
    assert sizes == [100 - 6 * number for number in range(min(losses, reading.LOSSES) + 1)]
    assert said == [
        f"a node was lost; goes on after {6 * number} files with the nodes that are left"
        for number in range(1, min(losses, reading.LOSSES) + 1)
    ]


@pytest.mark.parametrize("losses", [1, reading.LOSSES + 1])
def test_features_go_on_with_the_nodes_that_are_left(monkeypatch: pytest.MonkeyPatch, losses: int) -> None:
    monkeypatch.setattr(nodes, "alive_ids", lambda: {"head", "left", "lost"})
    monkeypatch.setattr(nodes, "nodes_left", lambda before: [Node(0.0, 0.0), TWO] * ("lost" in before))
    plans: list[Plan] = []

    def backend(plan: Plan, *_: Any) -> tuple[None, dict[Any, Any]]:
        plans.append(plan)
        return None, {}

    def broken(*_: Any, **__: Any) -> Any:
        if len(plans) <= losses:
            raise ProcessLost("a node was lost")
        return "all is settled"

    for name, stand_in in (("extraction_of", backend), ("extract", broken), ("_hashes", lambda *_: None)):
        monkeypatch.setattr(train, name, stand_in)
    config: Any = SimpleNamespace(max_bad_fraction=0.1, device="auto")
    listing: Any = SimpleNamespace(table=pa.table({"path": ["a.jpg"]}))
    given: Any = {"config": config, "run": None, "image_size": 32, "weights": "", "start_weights": ""}
    first = Plan(**given, precision="float32", feature_actors=2, feature_cpus=1, readers=4)
    out = io.StringIO()
    call: Any = (first, None, None, listing, None, Stopwatch(0.0), Console(file=out, soft_wrap=True))
    if losses > reading.LOSSES:
        with pytest.raises(ProcessLost):
            train._extracted(*call)
    else:
        extraction: object = train._extracted(*call)
        assert extraction == "all is settled"
    left = after_loss(first, [Node(0.0, 0.0), TWO])
    assert (left.feature_actors, left.feature_cpus, left.readers) == (1, 1, 1)
    assert plans == [first] + [left] * min(losses, reading.LOSSES)
    assert out.getvalue().count("warning: a node was lost; goes on with the nodes that are left") == len(plans) - 1
