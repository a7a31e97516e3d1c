"""The checks: from what all machines answered to one line each, OK or what to do. Nothing is asked or measured here."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from flowers.cluster import placement
from flowers.cluster.placement import few, several
from flowers.doctor.report import CODE, Disk, Node, Survey
from flowers.errors import InputError

# Locks in a bucket, checkpoints and logs of several machines are compared by their times.
_CLOCKS_S = 5.0
# Ray spills nothing to a disk that is fuller than this (RAY_local_fs_capacity_threshold).
_FULL = 0.95
# What a Ray of a job's own takes (flowers/cluster/session.py).
_STORE, _STORE_CPU = 1 << 30, 64 << 20


class State(enum.Enum):
    """What came of a check."""

    OK = "OK"
    ADVICE = "advice"
    WRONG = "WRONG"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """A line of the result.

    Attributes:
        check: what was looked at, in a word or two.
        state: what came of it.
        text: what was found, and what to do about it.
    """

    check: str
    state: State
    text: str


@dataclass(frozen=True)
class Wanted:
    """What a run needs.

    Attributes:
        nodes: machines that have to be there; None for those that are.
        free: bytes that have to be free on each disk.
        storage: folder or URI of the runs, as it was given.
        data: photos as they were given; None if none were.
        device: of training, as its option says.
        workers: the same.
        cpus_per_worker: the same.
        gpus_per_worker: the same.
        batch_size: the same.
    """

    nodes: int | None
    free: int
    storage: str
    data: str | None
    device: str
    workers: str
    cpus_per_worker: int | None
    gpus_per_worker: float | None
    batch_size: int


CHECKS = (
    *("authentication", "nodes", "versions", "clocks", "ports", "storage", "data", "disk", "object store", "GPUs"),
    "workers",
)


def judge(survey: Survey, wanted: Wanted) -> list[Finding]:
    """What is right and wrong with a cluster, in the order of `CHECKS`; each fault is a line."""
    found = [*_authentication(survey), *_nodes(survey, wanted)]
    if not survey.answering:
        return unknown("not looked at: no node has answered", found)
    return [
        *found,
        *_versions(survey),
        *_clocks(survey),
        *_ports(survey),
        *_storage(survey, wanted),
        *_data(survey, wanted),
        *_disk(survey, wanted),
        *_object_store(survey),
        *_gpus(survey),
        *_workers(survey, wanted),
    ]


def unknown(reason: str, known: list[Finding]) -> list[Finding]:
    """The checks that could not be made, after those that could."""
    done = {finding.check for finding in known}
    return [*known, *(Finding(check, State.UNKNOWN, reason) for check in CHECKS if check not in done)]


def _authentication(survey: Survey) -> Iterator[Finding]:
    if not survey.cluster:
        yield Finding("authentication", State.OK, "Ray of this job's own, on this machine's loopback address")
    elif survey.open:
        yield Finding(
            "authentication",
            State.ADVICE,
            f"the cluster at {survey.cluster} asks for no token: whoever reaches it may run code on it; start it with "
            "RAY_AUTH_MODE=token (`ray get-auth-token --generate`), or let nobody else reach its ports",
        )
    else:
        yield Finding("authentication", State.OK, f"the cluster at {survey.cluster} takes the token that is here")


def _nodes(survey: Survey, wanted: Wanted) -> Iterator[Finding]:
    there = len(survey.answering)
    dead = [
        f"{node.address} has died ({node.death}); start it again there (`ray start --address=HEAD:6379`), or go on "
        "without it: --nodes says how many are enough"
        for node in survey.nodes
        if not node.alive
    ]
    faults = [
        f"{node.address}: {_advised(node.failure)}" for node in survey.nodes if node.alive and node.report is None
    ]
    if wanted.nodes and there < wanted.nodes:
        faults.append(f"{there} of the {wanted.nodes} nodes that --nodes asks for are there; start the others")
    if wanted.nodes and not faults:  # others have come for those
        yield from (Finding("nodes", State.ADVICE, text) for text in dead)
        dead = []
    yield from _findings(
        "nodes", [*dead, *faults], f"{_counted(there)}: {few([node.address for node, _ in survey.answering])}"
    )


def _advised(failure: str) -> str:
    """Why a node does not answer, and what to do."""
    if "No module named" in failure:
        return f"{failure}; install this project there, or submit the job with --working-dir"
    if failure.startswith("no answer"):
        return f"{failure}; look at that machine: it hangs, is overloaded, or a disk that it mounts does not answer"
    return failure


def _versions(survey: Survey) -> Iterator[Finding]:
    faults = []
    names = dict.fromkeys([*survey.versions, *(name for _, report in survey.answering for name in report.versions)])
    for name in names:
        here = survey.versions.get(name)
        others: dict[str | None, list[str]] = defaultdict(list)
        for node, report in survey.answering:
            if (there := report.versions.get(name)) != here:
                others[there].append(node.address)
        for there, addresses in others.items():
            if name == CODE:
                faults.append(
                    f"{CODE} on {few(addresses)} is not that of this job; install it anew there, or submit the job "
                    "with --working-dir"
                )
            else:
                faults.append(
                    f"{name} is {there or 'not installed'} on {few(addresses)}, here {here or 'not installed'}; "
                    "install the same there (`pip install -c constraints.txt .`)"
                )
    shown = ("Python", "ray", "tensorflow", "keras")
    known = ", ".join(f"{name} {survey.versions[name]}" for name in shown if name in survey.versions)
    yield from _findings("versions", faults, f"{known} and {len(names) - len(shown)} others are the same everywhere")


def _clocks(survey: Survey) -> Iterator[Finding]:
    faults = [
        f"the clock of {node.address} is {abs(node.ahead):.0f} s {'ahead of' if node.ahead > 0 else 'behind'} this "
        "one; start a time service there (chrony, systemd-timesyncd)"
        for node, _ in survey.answering
        if abs(node.ahead) > _CLOCKS_S
    ]
    yield from _findings("clocks", faults, f"all within {_CLOCKS_S:.0f} s")


def _ports(survey: Survey) -> Iterator[Finding]:
    faults = [
        f"{node.address} cannot connect to {few(node.unreachable)}; open all ports between the machines of the cluster"
        for node, _ in survey.answering
        if node.unreachable
    ]
    text = "each node reaches Ray's ports and a free one of each other" if len(survey.answering) > 1 else "one machine"
    yield from _findings("ports", faults, text)


def _storage(survey: Survey, wanted: Wanted) -> Iterator[Finding]:
    required = "give a folder that can be written"
    if len(survey.answering) > 1:
        required = "give a place that all nodes can write: on a shared file system"
    faults = [
        f"{wanted.storage}: {text} ({few(addresses)}); {required}, or s3://BUCKET/FOLDER"
        for text, addresses in _by_text((report.storage, node) for node, report in survey.answering)
    ]
    yield from _findings("storage", faults, f"{wanted.storage}: written by each node and read here")


def _data(survey: Survey, wanted: Wanted) -> Iterator[Finding]:
    if wanted.data is None:
        return
    faults = [
        f"{text} ({few(addresses)}); required is a place that all nodes see: on a shared file system, or "
        "s3://BUCKET/FOLDER"
        for text, addresses in _by_text((report.data, node) for node, report in survey.answering)
    ]
    yield from _findings("data", faults, f"{wanted.data}: seen by each node")


def _disk(survey: Survey, wanted: Wanted) -> Iterator[Finding]:
    faults = [
        f"{node.address}: {reason}"
        for node, report in survey.answering
        for number, disk in enumerate(report.disks)
        if (reason := _too_full(disk, wanted.free, spills=number == 0))
    ]
    least = min((disk.free for _, report in survey.answering for disk in report.disks), default=0)
    yield from _findings("disk", faults, f"{_gigabytes(least)} or more are free on each disk")


def _too_full(disk: Disk, wanted: int, spills: bool) -> str:
    """Why a disk will not do, or nothing."""
    place = f"{disk.path} ({disk.what})"
    if disk.free < wanted:
        return (
            f"{_gigabytes(disk.free)} are free in {place}, wanted are {_gigabytes(wanted)} (--free-gb); make room, or "
            "take another disk" + (" (`ray start --temp-dir`, or RAY_TMPDIR)" if spills else "")
        )
    if spills and disk.free < (1 - _FULL) * disk.total:
        return (
            f"{place} is {1 - disk.free / disk.total:.0%} full, and beyond {_FULL:.0%} Ray writes nothing there; make "
            "room, or take another disk (`ray start --temp-dir`, or RAY_TMPDIR)"
        )
    return ""


def _object_store(survey: Survey) -> Iterator[Finding]:
    faults = []
    working = [(node, report) for node, report in survey.answering if node.cpus >= 1]  # no blocks on other nodes
    for node, report in working:
        wanted = max(_STORE, int(node.cpus) * _STORE_CPU)
        if node.object_store < wanted:
            faults.append(
                f"{node.address}: {_gigabytes(node.object_store)} for {node.cpus:g} CPUs, wanted are "
                f"{_gigabytes(wanted)}; `ray start --object-store-memory={wanted}`"
            )
        elif report.shared_memory is not None and report.shared_memory < node.object_store:
            faults.append(
                f"{node.address}: /dev/shm has {_gigabytes(report.shared_memory)} and the store takes "
                f"{_gigabytes(node.object_store)}, so that it lies on a disk; start the container with a larger "
                "--shm-size, on Kubernetes mount an emptyDir with medium: Memory there"
            )
    least = min((node.object_store for node, _ in working), default=None)
    fine = (
        "no node has CPUs to work with"
        if least is None
        else f"{_gigabytes(least)} or more on each node, in shared memory"
    )
    yield from _findings("object store", faults, fine)


def _gpus(survey: Survey) -> Iterator[Finding]:
    faults, advice = [], []
    for node, report in survey.answering:
        seen = len(report.gpus)
        if report.tensorflow:
            faults.append(f"{node.address}: TensorFlow did not start there: {report.tensorflow}")
        elif seen < node.gpus:
            faults.append(
                f"{node.address}: Ray hands out {node.gpus:g}, TensorFlow sees {seen}; install its CUDA libraries "
                "there (`pip install -c constraints.txt '.[gpu]'`) and the driver (`nvidia-smi` shows it)"
            )
        elif seen > node.gpus:
            advice.append(
                f"{node.address}: TensorFlow sees {seen}, Ray hands out {node.gpus:g}; `ray start --num-gpus={seen}`"
            )
    count = sum(len(report.gpus) for _, report in survey.answering)
    text = f"TensorFlow sees the {count} that Ray hands out" if count else "none: TensorFlow sees none on any node"
    yield from (Finding("GPUs", State.ADVICE, one) for one in advice)
    if faults or not advice:
        yield from _findings("GPUs", faults, text)


def _workers(survey: Survey, wanted: Wanted) -> Iterator[Finding]:
    nodes = [placement.Node(node.cpus, node.gpus) for node, _ in survey.answering]
    try:
        usable = placement.on_device(nodes, wanted.device)
        found = placement.place(
            wanted.workers, wanted.cpus_per_worker, wanted.gpus_per_worker, wanted.batch_size, usable
        )
    except InputError as error:
        yield Finding("workers", State.WRONG, str(error))
        return
    gpus = f" and {several(found.gpus, 'GPU')}" if found.gpus else ""
    yield Finding("workers", State.OK, f"room for {found.workers}, each with {several(found.cpus, 'CPU')}{gpus}")


def _findings(check: str, faults: list[str], fine: str) -> list[Finding]:
    return [Finding(check, State.WRONG, fault) for fault in faults] or [Finding(check, State.OK, fine)]


def _by_text(answers: Iterator[tuple[str, Node]]) -> list[tuple[str, list[str]]]:
    """What is wrong, and where."""
    found: dict[str, list[str]] = defaultdict(list)
    for text, node in answers:
        if text:
            found[text].append(node.address)
    return list(found.items())


def _counted(number: int) -> str:
    return f"{number} node" if number == 1 else f"{number} nodes"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
