"""Each fault that a cluster may have is found from what its machines say, and each line says what to do."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowers.doctor.checks import CHECKS, Finding, State, Wanted, judge, unknown
from flowers.doctor.probe import PACKAGES
from flowers.doctor.report import CODE, Disk, Node, Report, Survey

GB = 10**9
VERSIONS = {"Python": "3.12.7", CODE: "abc", "ray": "2.60.0", "tensorflow": "2.21.0", "pillow": "12.3.0"}
REPORT = Report(
    versions=VERSIONS,
    disks=[Disk("temporary files of Ray", "/tmp/ray", 60 * GB, 100 * GB)],
    shared_memory=32 * GB,
)
WANTED = Wanted(
    nodes=None,
    free=10 * GB,
    storage="/shared/runs",
    data="/shared/photos",
    device="auto",
    workers="auto",
    cpus_per_worker=None,
    gpus_per_worker=None,
    batch_size=32,
)


def node(number: int, report: Report | None = REPORT, **changes: Any) -> Node:
    return replace(
        Node(f"10.0.0.{number}", cpus=8.0, gpus=0.0, object_store=4.0 * GB, report=report),
        **changes,
    )


def survey(*nodes: Node, **changes: Any) -> Survey:
    return replace(Survey("10.0.0.0:6379", open=False, versions=VERSIONS, nodes=list(nodes)), **changes)


def wrong(found: Survey, wanted: Wanted = WANTED, state: State = State.WRONG) -> dict[str, list[str]]:
    """The lines of a state by their check; every other line is OK."""
    lines: dict[str, list[str]] = {}
    for finding in judge(found, wanted):
        assert finding.check in CHECKS
        assert "\n" not in finding.text
        if finding.state is state:
            lines.setdefault(finding.check, []).append(finding.text)
        else:
            assert finding.state is State.OK, finding
    return lines


def test_a_good_cluster_is_ok_in_every_line() -> None:
    findings = judge(survey(node(0), node(1), node(2)), WANTED)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.state for finding in findings} == {State.OK}
    text = {finding.check: finding.text for finding in findings}
    assert text["nodes"] == "3 nodes: 10.0.0.0, 10.0.0.1, 10.0.0.2"
    assert text["workers"] == "room for 2, each with 8 CPUs"  # a divisor of the batch


def test_one_machine_is_ok_too() -> None:
    findings = judge(survey(node(0), cluster=""), replace(WANTED, data=None))
    assert {finding.state for finding in findings} == {State.OK}
    assert [finding.check for finding in findings] == [check for check in CHECKS if check != "data"]


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("pillow", "12.2.0", "pillow is 12.2.0 on 10.0.0.1, 10.0.0.2, here 12.3.0; install the same there"),
        ("pillow", None, "pillow is not installed on 10.0.0.1, 10.0.0.2, here 12.3.0; install"),
        ("pillow-heif", "1.1.0", "pillow-heif is 1.1.0 on 10.0.0.1, 10.0.0.2, here not installed; install"),
        ("Python", "3.12.1", "Python is 3.12.1 on 10.0.0.1, 10.0.0.2, here 3.12.7; install"),
        (CODE, "def", "the source of flowers on 10.0.0.1, 10.0.0.2 is not that of this job; install it anew there"),
    ],
)
def test_another_version_on_a_node(name: str, there: str | None, said: str) -> None:
    versions = {**VERSIONS, name: there} if there else {key: VERSIONS[key] for key in VERSIONS if key != name}
    other = replace(REPORT, versions=versions)
    found = wrong(survey(node(0), node(1, other), node(2, other)))
    assert list(found) == ["versions"]
    assert found["versions"][0].startswith(said)


@pytest.mark.parametrize(
    "text", ["Permission denied", "what is written there is not seen here", "Read-only file system"]
)
def test_storage_that_a_node_cannot_write(text: str) -> None:
    found = wrong(survey(node(0), node(1, replace(REPORT, storage=text))))
    assert found == {
        "storage": [
            f"/shared/runs: {text} (10.0.0.1); give a place that all nodes can write: on a shared file system, or "
            "s3://BUCKET/FOLDER"
        ]
    }


def test_a_full_disk() -> None:
    disks = [Disk("temporary files of Ray", "/tmp/ray", 2 * GB, 100 * GB), Disk("--storage", "/runs", 3 * GB, 10 * GB)]
    found = wrong(survey(node(0), node(1, replace(REPORT, disks=disks))))
    assert list(found) == ["disk"]
    first, second = found["disk"]
    assert first.startswith(
        "10.0.0.1: 2.0 GB are free in /tmp/ray (temporary files of Ray), wanted are 10.0 GB (--free-gb)"
    )
    assert "RAY_TMPDIR" in first
    assert second.startswith(
        "10.0.0.1: 3.0 GB are free in /runs (--storage), wanted are 10.0 GB (--free-gb); make room"
    )
    assert wrong(survey(node(0), node(1, replace(REPORT, disks=disks[1:]))), replace(WANTED, free=GB)) == {}


def test_a_large_disk_to_which_ray_spills_no_more() -> None:
    large = Disk("temporary files of Ray", "/tmp/ray", 400 * GB, 10_000 * GB)
    found = wrong(survey(node(0, replace(REPORT, disks=[large]))))
    assert found["disk"][0].startswith("10.0.0.0: /tmp/ray (temporary files of Ray) is 96% full, and beyond 95% Ray")


def test_a_dead_node() -> None:
    dead = node(1, None, alive=False, death="health check failed")
    found = wrong(survey(node(0), dead))
    assert list(found) == ["nodes"]
    assert found["nodes"][0].startswith("10.0.0.1 has died (health check failed); start it again there (`ray start")
    assert list(wrong(survey(node(0), dead), replace(WANTED, nodes=2))["nodes"]) == [
        *found["nodes"],
        "1 of the 2 nodes that --nodes asks for are there; start the others",
    ]
    enough = wrong(survey(node(0), dead, node(2)), replace(WANTED, nodes=2), State.ADVICE)
    assert enough == found  # the same, as advice: another one has come


def test_a_node_that_hangs_or_lacks_the_library() -> None:
    hangs = node(1, None, failure="no answer within 60 s")
    lacks = node(2, None, failure="ModuleNotFoundError: No module named 'flowers'")
    found = wrong(survey(node(0), hangs, lacks))
    assert found["nodes"] == [
        "10.0.0.1: no answer within 60 s; look at that machine: it hangs, is overloaded, or a disk that it mounts does "
        "not answer",
        "10.0.0.2: ModuleNotFoundError: No module named 'flowers'; install this project there, or submit the job with "
        "--working-dir",
    ]


def test_a_node_that_never_came() -> None:
    found = wrong(survey(node(0), node(1)), replace(WANTED, nodes=3))
    assert found == {"nodes": ["2 of the 3 nodes that --nodes asks for are there; start the others"]}


def test_nothing_is_said_of_nodes_when_none_answers() -> None:
    states = {finding.check: finding.state for finding in judge(survey(node(0, None, failure="it crashed")), WANTED)}
    assert list(states) == list(CHECKS)
    assert (states.pop("authentication"), states.pop("nodes")) == (State.OK, State.WRONG)
    assert set(states.values()) == {State.UNKNOWN}


@pytest.mark.parametrize(("ahead", "said"), [(7.0, "7 s ahead of this one"), (-90.4, "90 s behind this one")])
def test_a_clock_that_is_wrong(ahead: float, said: str) -> None:
    found = wrong(survey(node(0, ahead=4.0), node(1, ahead=ahead)))
    assert found == {
        "clocks": [f"the clock of 10.0.0.1 is {said}; start a time service there (chrony, systemd-timesyncd)"]
    }


def test_ports_that_are_closed() -> None:
    found = wrong(survey(node(0), node(1, unreachable=("10.0.0.0:8076 (timed out)", "10.0.0.0:40001 (timed out)"))))
    assert found == {
        "ports": [
            "10.0.0.1 cannot connect to 10.0.0.0:8076 (timed out), 10.0.0.0:40001 (timed out); open all ports between "
            "the machines of the cluster"
        ]
    }


def test_a_cluster_that_lets_everybody_in() -> None:
    found = wrong(survey(node(0), open=True), state=State.ADVICE)
    assert found["authentication"][0].startswith(
        "the cluster at 10.0.0.0:6379 asks for no token: whoever reaches it may"
    )


def test_photos_that_a_node_does_not_see() -> None:
    found = wrong(survey(node(0), node(1, replace(REPORT, data="there is no /shared/photos/a.jpg"))))
    assert found["data"][0].startswith(
        "there is no /shared/photos/a.jpg (10.0.0.1); required is a place that all nodes"
    )


def test_gpus_that_tensorflow_does_not_see() -> None:
    two = replace(REPORT, gpus=["/physical_device:GPU:0", "/physical_device:GPU:1"])
    broken = replace(REPORT, tensorflow="ImportError: libfoo.so.1")
    good, blind = node(0, two, gpus=2.0), node(1, gpus=2.0)
    assert wrong(survey(good)) == {}
    found = wrong(survey(good, blind, node(2, broken)))
    assert found["GPUs"][0].startswith("10.0.0.1: Ray hands out 2, TensorFlow sees 0; install its CUDA libraries there")
    assert found["GPUs"][1] == "10.0.0.2: TensorFlow did not start there: ImportError: libfoo.so.1"
    found = wrong(survey(good, node(1, two)), state=State.ADVICE)
    assert found["GPUs"] == ["10.0.0.1: TensorFlow sees 2, Ray hands out 0; `ray start --num-gpus=2`"]


def test_an_object_store_that_is_small_or_on_a_disk() -> None:
    container = replace(REPORT, shared_memory=64 << 20)
    found = wrong(survey(node(0, object_store=0.5 * GB), node(1, container), node(2, cpus=0.0, object_store=0.1 * GB)))
    assert found["object store"] == [
        "10.0.0.0: 0.5 GB for 8 CPUs, wanted are 1.1 GB; `ray start --object-store-memory=1073741824`",
        "10.0.0.1: /dev/shm has 0.1 GB and the store takes 4.0 GB, so that it lies on a disk; start the container with "
        "a larger --shm-size, on Kubernetes mount an emptyDir with medium: Memory there",
    ]


def test_workers_that_do_not_fit() -> None:
    found = wrong(survey(node(0), node(1)), replace(WANTED, workers="4", cpus_per_worker=8))
    assert found["workers"][0].startswith("--workers: received 4, each with 8 CPUs")


def test_what_could_not_be_looked_at_is_said() -> None:
    denied = Finding("authentication", State.WRONG, "no token")
    findings = unknown("not looked at", [denied])
    assert findings[0] == denied
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.state for finding in findings[1:]} == {State.UNKNOWN}


def test_a_report_of_another_version_is_noticed() -> None:
    plain: dict[str, Any] = {
        "versions": {},
        "disks": [{"what": "a", "path": "/", "free": 1, "total": 2}],
        "shared_memory": None,
    }
    assert Report.of(plain) == Report({}, [Disk("a", "/", 1, 2)], None)
    with pytest.raises(TypeError):
        Report.of({**plain, "new": 1})


def test_the_packages_that_are_compared_are_those_that_this_project_needs() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["heic"]]
    names = {line.partition("[")[0].partition(">")[0].partition("=")[0].strip() for line in needed}
    assert set(PACKAGES) == names
