"""Placement: what is chosen fits and divides the batch, what cannot fit says so; the storage is one for all nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from flowers import storage
from flowers.cluster import nodes as cluster
from flowers.cluster.nodes import check_files, check_storage, cluster_nodes
from flowers.cluster.placement import Node, Placement, Pool, in_words, network_pool, on_device, place, reading_tasks
from flowers.errors import InputError

ONE = [Node(2, 0)]
GPU = Node(8, 1)


def fit(placed: Placement, nodes: Sequence[Node]) -> int:
    """How many such workers fit, found by putting one after the other on the nodes, GPU by GPU."""
    count = 0
    for node in nodes:
        cpus, gpus = node.cpus, [1.0] * int(node.gpus)
        while cpus >= placed.cpus:
            if placed.gpus >= 1:
                whole = [at for at, left in enumerate(gpus) if left == 1]
                if len(whole) < placed.gpus:
                    break
                for at in whole[: int(placed.gpus)]:
                    gpus[at] = 0
            elif placed.gpus:
                part = next((at for at, left in enumerate(gpus) if left >= placed.gpus - 1e-9), None)
                if part is None:
                    break
                gpus[part] -= placed.gpus
            cpus -= placed.cpus
            count += 1
    return count


def tried(*arguments: Any) -> Placement | str:
    """What `place` returns, or the text of its error."""
    try:
        return place(*arguments)
    except InputError as error:
        return str(error)


cpus_of_a_node = st.one_of(st.integers(0, 64).map(float), st.floats(0, 8))
nodes_with_or_without_gpus = st.lists(st.builds(Node, cpus_of_a_node, st.integers(0, 8).map(float)), max_size=6)
nodes_without_gpus = st.lists(st.builds(Node, cpus_of_a_node, st.just(0.0)), max_size=6)
clusters = st.one_of(nodes_without_gpus, nodes_with_or_without_gpus)
batches = st.integers(1, 512)
cpus_options = st.one_of(st.none(), st.integers(1, 16))
gpus_options = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 1.0, 2.0, 3.0]))
workers_options = st.one_of(st.just("auto"), st.integers(1, 40).map(str))


@given(workers_options, cpus_options, gpus_options, batches, clusters)
@example("auto", None, None, 32, [])
def test_what_is_placed_fits_and_divides_the_batch(
    workers: str, cpus: int | None, gpus: float | None, batch: int, nodes: list[Node]
) -> None:
    placed = tried(workers, cpus, gpus, batch, nodes)
    if isinstance(placed, str):
        assert placed.startswith("--")
        assert "\n" not in placed
        return
    assert placed.workers >= 1
    assert batch % placed.workers == 0
    assert placed.cpus >= 1
    own_process = placed == Placement(1, 1, 0) and cpus is None  # reserves nothing, so it needs no room
    assert own_process or fit(placed, nodes) >= placed.workers
    assert workers in ("auto", str(placed.workers))
    assert cpus in (None, placed.cpus)
    assert gpus in (None, placed.gpus)
    if gpus is None:
        assert placed.gpus == any(node.gpus for node in nodes)


@given(cpus_options, gpus_options, batches, clusters)
def test_auto_places_wherever_one_worker_fits(
    cpus: int | None, gpus: float | None, batch: int, nodes: list[Node]
) -> None:
    wanted = float(any(node.gpus for node in nodes)) if gpus is None else gpus
    assume(fit(Placement(1, cpus or 1, wanted), nodes))
    place("auto", cpus, gpus, batch, nodes)


@given(st.integers(1, 40), cpus_options, gpus_options, clusters)
def test_a_number_is_refused_only_if_it_does_not_fit(
    workers: int, cpus: int | None, gpus: float | None, nodes: list[Node]
) -> None:
    wanted = float(any(node.gpus for node in nodes)) if gpus is None else gpus
    room = fit(Placement(workers, cpus or 1, wanted), nodes) or int(cpus is None and not wanted)
    if room >= workers:
        assert place(str(workers), cpus, gpus, workers * 3, nodes).workers == workers
    else:
        with pytest.raises(InputError, match=r"room for|no GPU"):
            place(str(workers), cpus, gpus, workers * 3, nodes)


@given(st.integers(1, 8), clusters)
def test_no_worker_could_have_another_cpu(workers: int, nodes: list[Node]) -> None:
    placed = tried(str(workers), None, None, workers, nodes)
    if isinstance(placed, str):
        return
    free = [Node(node.cpus // 2 if placed.gpus else node.cpus, node.gpus) for node in nodes]
    assert placed.cpus == 1 or fit(placed, free) >= workers
    assert fit(Placement(workers, placed.cpus + 1, placed.gpus), free) < workers


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "batch", "nodes", "expected"),
    [
        ("auto", None, None, 32, ONE, (1, 2, 0)),
        ("2", None, None, 32, ONE, (2, 1, 0)),
        ("2", None, None, 32, [Node(5, 0)], (2, 2, 0)),
        ("1", 1, None, 32, ONE, (1, 1, 0)),
        ("auto", None, None, 32, [Node(8, 0)] * 4, (4, 8, 0)),  # without GPUs one a node
        ("auto", None, None, 32, [Node(8, 0)] * 3, (2, 8, 0)),  # 3 does not divide 32
        ("auto", None, None, 30, [Node(8, 0)] * 4, (3, 8, 0)),
        ("auto", None, None, 7, [Node(8, 0)] * 6, (1, 8, 0)),
        ("auto", None, None, 2, [Node(8, 0)] * 6, (2, 8, 0)),  # never more workers than photos
        ("auto", None, None, 32, [Node(0, 0), Node(8, 0)], (1, 8, 0)),  # a head that takes no tasks
        ("auto", None, None, 32, [Node(0, 0)], (1, 1, 0)),  # an autoscaler's head before any node has come
        ("1", None, None, 32, [Node(0, 0)], (1, 1, 0)),
        ("2", None, None, 32, [Node(8, 0), Node(4, 0)], (2, 4, 0)),
        ("2", None, None, 32, [Node(64, 0), Node(4, 0)], (2, 32, 0)),  # better on one node than with 4 CPUs each
        ("6", None, None, 30, [Node(8, 0), Node(4, 0)], (6, 2, 0)),
        ("auto", 6, None, 32, [Node(8, 0), Node(4, 0)], (1, 6, 0)),
        ("auto", None, None, 32, [GPU], (1, 4, 1)),  # half the CPUs read
        ("auto", None, None, 32, [Node(8, 4)], (4, 1, 1)),
        ("auto", None, None, 32, [Node(96, 8)], (8, 6, 1)),
        ("auto", None, None, 32, [Node(64, 0), GPU, GPU], (2, 4, 1)),
        ("auto", None, None, 32, [Node(2, 4)], (2, 1, 1)),  # more GPUs than CPUs
        ("auto", 2, None, 32, [Node(4, 4)], (2, 2, 1)),
        ("auto", None, 0, 32, [GPU, GPU], (2, 8, 0)),
        ("auto", None, 0.5, 32, [Node(8, 2)], (4, 1, 0.5)),
        ("auto", None, 0.6, 32, [Node(16, 2)], (2, 4, 0.6)),  # never parts of two GPUs
        ("auto", None, 0.1, 10, [Node(64, 1)], (10, 3, 0.1)),
        ("auto", None, 2, 32, [Node(16, 4)], (2, 4, 2)),
    ],
)
def test_examples(
    workers: str,
    cpus: int | None,
    gpus: float | None,
    batch: int,
    nodes: list[Node],
    expected: tuple[int, int, float],
) -> None:
    assert place(workers, cpus, gpus, batch, nodes) == Placement(*expected)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "batch", "nodes", "text"),
    [
        (
            "4",
            None,
            None,
            32,
            ONE,
            "--workers: received 4, each with 1 CPU (--cpus-per-worker) and 0 GPUs (--gpus-per-worker), but the "
            "cluster has room for 2: 1 node of 2 CPUs; give at most 2, or auto, or start more or larger nodes "
            "(--wait-s waits for those of an autoscaler)",
        ),
        (
            "auto",
            16,
            None,
            32,
            [GPU, GPU, Node(4, 0)],
            "--workers: received auto, each with 16 CPUs (--cpus-per-worker) and 1 GPU (--gpus-per-worker), but the "
            "cluster has room for 0: 2 nodes of 8 CPUs and 1 GPU, 1 node of 4 CPUs; give each less, or start more or "
            "larger nodes (--wait-s waits for those of an autoscaler)",
        ),
        (
            "2",
            None,
            1,
            32,
            ONE,
            "--gpus-per-worker: received 1, but the cluster has no GPU: 1 node of 2 CPUs; leave the option out, or "
            "start nodes that have GPUs (those of an autoscaler: --wait-s of jobs.train)",
        ),
        (
            "1",
            None,
            1.5,
            32,
            [GPU],
            "--gpus-per-worker: received 1.5, required above 1 is a whole number: give 1",
        ),
        (
            "2",
            None,
            None,
            33,
            ONE,
            "--batch-size: received 33, required is a multiple of --workers (2), so that every worker takes the same "
            "part; --workers auto finds a number that fits",
        ),
    ],
)
def test_what_is_refused(
    workers: str, cpus: int | None, gpus: float | None, batch: int, nodes: list[Node], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        place(workers, cpus, gpus, batch, nodes)
    assert str(caught.value) == text


@given(st.one_of(st.just("auto"), st.integers(0, 40).map(str)), clusters)
@example("4", [Node(8, 3)])
def test_all_actors_that_run_a_network_find_room(wanted: str, nodes: list[Node]) -> None:
    pool = network_pool(wanted, nodes, 7)
    if not pool.actors:
        assert pool == Pool(0, 7)
        return
    assert wanted in ("auto", str(pool.actors))
    assert pool.cpus >= 1
    assert bool(pool.gpus) == any(node.gpus for node in nodes)
    if pool.gpus:  # which ask for no CPU
        assert fit(Placement(0, 0, pool.gpus), [Node(1000, node.gpus) for node in nodes]) >= pool.actors
    elif wanted == "auto":
        assert fit(Placement(0, pool.cpus, 0), nodes) >= pool.actors
        assert pool.actors * pool.cpus <= sum(node.cpus for node in nodes) / 2  # the others read


@pytest.mark.parametrize(
    ("wanted", "nodes", "expected"),
    [
        ("auto", [Node(2, 0)], (0, 7, 0)),
        ("auto", [Node(8, 1)], (0, 7, 0)),  # one GPU: no pixels change their process
        ("auto", [Node(0, 0)], (0, 7, 0)),  # an autoscaler's head before any node has come
        ("0", [Node(8, 0)] * 4, (0, 7, 0)),
        ("auto", [Node(8, 0)] * 4, (4, 4, 0)),
        ("auto", [Node(8, 0), Node(8, 0), Node(0, 0)], (2, 4, 0)),  # the head takes no tasks
        ("auto", [Node(16, 0), Node(16, 0), Node(8, 0)], (5, 4, 0)),
        ("auto", [Node(64, 0), Node(4, 0)], (1, 32, 0)),  # the small one reads
        ("auto", [Node(1, 0)] * 4, (2, 1, 0)),  # two read
        ("auto", [Node(1, 0), Node(0, 0)], (0, 7, 0)),
        ("3", [Node(8, 0)], (3, 1, 0)),
        ("2", [Node(64, 0), Node(4, 0)], (2, 16, 0)),
        ("auto", [Node(8, 4)], (4, 1, 1)),
        ("auto", [Node(64, 0), Node(64, 0), GPU], (1, 4, 1)),  # CPU nodes decode
        ("auto", [Node(64, 0), GPU, Node(32, 3)], (4, 5, 1)),
        ("4", [Node(8, 3)], (4, 1, 0.5)),  # three quarters of a GPU each would leave one without
        ("3", [GPU], (3, 1, 0.3333)),
        ("2", [Node(8, 4)], (2, 1, 1)),
    ],
)
def test_who_runs_a_network(wanted: str, nodes: list[Node], expected: tuple[int, int, float]) -> None:
    assert network_pool(wanted, nodes, 7) == Pool(*expected)


def test_all_cpus_read_while_gpus_compute() -> None:
    mixed = [Node(64, 0), Node(8, 1), Node(8, 1)]
    pool = network_pool("auto", mixed, 7)
    assert (pool.actors, pool.gpus, reading_tasks(mixed, pool)) == (2, 1, 80)
    assert place("auto", None, None, 32, mixed) == Placement(2, 4, 1)  # half the CPUs of a GPU node are left to read


def test_on_cpus_only_gpus_count_for_nothing() -> None:
    mixed = [Node(64, 0), Node(8, 1), Node(8, 4)]
    usable = on_device(mixed, "cpu")
    assert usable == [Node(64, 0), Node(8, 0), Node(8, 0)]
    assert place("auto", None, None, 30, usable) == Placement(3, 21, 0)
    assert network_pool("auto", usable, 7) == Pool(10, 4)
    assert on_device(mixed, "auto") == on_device(mixed, "gpu") == mixed
    assert [in_words(nodes, device) for nodes, device in ((mixed, "auto"), (usable, "cpu"), (ONE, "auto"))] == [
        "80 CPUs and 5 GPUs of 3 nodes",
        "80 CPUs of 3 nodes (--device cpu)",
        "2 CPUs",
    ]
    with pytest.raises(InputError) as caught:
        on_device(ONE, "gpu")
    assert str(caught.value) == (
        "--device: received gpu, but the cluster has no GPU: 1 node of 2 CPUs; leave the option out, or start nodes "
        "that have GPUs (those of an autoscaler: --wait-s of jobs.train)"
    )


def test_many_kinds_of_nodes_are_told_in_one_line() -> None:
    nodes = [Node(number, 0) for number in range(1, 100)] + [Node(1, 0)]
    with pytest.raises(InputError, match=r": 2 nodes of 1 CPU, 1 node of 2 CPUs, .*, 95 more; ") as caught:
        place("9999", None, None, 9999, nodes)
    assert len(str(caught.value)) < 400


class FakeRay:
    """A cluster whose nodes each write through a function of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        import ray

        nodes = [
            {
                "NodeID": f"id{number}",
                "NodeManagerAddress": f"10.0.0.{number}",
                "Alive": number < len(answers),
                "Resources": {"CPU": 4.0} if number else {"CPU": 8.0, "GPU": 2.0},
            }
            for number in range(len(answers) + 1)  # the last one has died
        ]
        self.called: list[tuple[str, str]] = []

        def on_nodes(function: Any, probes: dict[str, str]) -> dict[str, str]:
            self.called += [(function.__name__, node) for node in probes]
            return {node: answers[int(node[2:])](function, probe) for node, probe in probes.items()}

        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(cluster, "_on_nodes", on_nodes)


def shared_disk(function: Any, probe: str) -> str:
    return function(probe)


def own_disk(function: Any, probe: str) -> str:
    return ""  # written, but where nobody else sees it


def full_disk(function: Any, probe: str) -> str:
    return "No space left on device"


def test_nodes_that_are_alive_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, shared_disk, shared_disk)
    assert cluster_nodes() == [Node(8, 2), Node(4, 0)]


def test_one_node_is_checked_without_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, shared_disk)
    check_storage(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []
    assert fake.called == []


def test_a_relative_folder_is_the_one_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(
        monkeypatch, lambda function, probe: "" if os.path.isabs(probe) and not function(probe) else probe, own_disk
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--storage: runs cannot be used: .* \(node 10.0.0.1\)"):
        check_storage("runs")


def test_one_node_below_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, shared_disk)
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        check_storage(str(tmp_path / "file" / "runs"))
    assert str(caught.value) == (
        f"--storage: {tmp_path}/file/runs cannot be used: Not a directory (node 10.0.0.0); "
        "give a folder that can be written, or s3://BUCKET/FOLDER"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_one_node_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, shared_disk)
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"--storage: .*Permission denied"):
        check_storage(str(tmp_path))
    tmp_path.chmod(0o700)


def test_an_unknown_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, shared_disk)
    with pytest.raises(InputError, match=r"--storage: nowhere://runs .*s3://"):
        check_storage("nowhere://runs")


def test_a_folder_that_all_nodes_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, shared_disk, shared_disk, shared_disk)
    check_storage(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert fake.called == [("write_probe", "id0"), ("write_probe", "id1"), ("write_probe", "id2")]


def test_nodes_that_do_not_share_it_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, shared_disk, own_disk, full_disk, own_disk)
    with pytest.raises(InputError) as caught:
        check_storage(str(tmp_path))
    assert str(caught.value) == (
        f"--storage: {tmp_path} cannot be used: what is written there is not seen here (node 10.0.0.1, 10.0.0.3), No "
        "space left on device (node 10.0.0.2); required is one place that all nodes can write: on a shared file "
        "system, or s3://BUCKET/FOLDER"
    )
    assert list(tmp_path.iterdir()) == []
    assert fake.called[4:] == [("take_probe", "id1"), ("take_probe", "id3")]  # each removes what it wrote


def test_a_large_cluster_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, *[shared_disk] * 2, *[own_disk] * 98)
    with pytest.raises(InputError, match=r"\(node 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 94 more\)") as caught:
        check_storage(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_probe_that_cannot_be_removed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, shared_disk)

    def kept(uri: str) -> None:
        raise OSError("AWS Error ACCESS_DENIED\nduring DeleteObject")

    written: dict[str, bytes] = {}
    monkeypatch.setattr(storage, "write", written.__setitem__)
    monkeypatch.setattr(storage, "exists", written.__contains__)
    monkeypatch.setattr(storage, "read", written.__getitem__)
    monkeypatch.setattr(storage, "delete_file", kept)
    with pytest.raises(InputError, match=r"ACCESS_DENIED \(node 10.0.0.0\)") as caught:
        check_storage("s3://bucket/runs")
    assert "\n" not in str(caught.value)


def test_files_that_all_nodes_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    files = [str(tmp_path / "a.jpg"), "s3://bucket/b.jpg"]
    fake = FakeRay(monkeypatch, shared_disk, shared_disk)
    check_files("--data", files)
    assert fake.called == [("look", "id0"), ("look", "id1")]
    fake = FakeRay(monkeypatch, shared_disk)
    check_files("--data", files)
    check_files("--data", files[1:])
    assert fake.called == []


@pytest.mark.parametrize(("there", "said"), [(None, "there is no {0}"), (b"other", "{0} has 5 bytes there, here 3")])
def test_files_that_a_node_does_not_see(
    there: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")

    def elsewhere(function: Any, probe: str) -> str:
        path.unlink() if there is None else path.write_bytes(there)
        return str(function(probe))

    FakeRay(monkeypatch, shared_disk, elsewhere)
    with pytest.raises(InputError) as caught:
        check_files("--data", [str(path)])
    assert str(caught.value) == (
        f"--data: {said.format(path)} (node 10.0.0.1); required is a place that all nodes see: on a shared file "
        "system, or s3://BUCKET/FOLDER"
    )
