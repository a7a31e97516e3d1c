"""Placement: how many training workers of which size run on the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flowers.errors import InputError, NoRoom

# Ray counts resources in ten-thousandths.
_RAY_UNIT = 10_000
_SHOWN = 4


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster offers to Ray."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """The training processes.

    Attributes:
        workers: how many there are; the batch size is a multiple of it.
        cpus: CPUs of one worker, which are Ray's reservation and TensorFlow's threads.
        gpus: GPUs of one worker.
    """

    workers: int
    cpus: int
    gpus: float


def place(
    workers: str,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    batch_size: int,
    nodes: Sequence[Node],
) -> Placement:
    """Decides how many workers train and what each of them gets; all get the same.

    Without `cpus_per_worker` a worker gets the most CPUs with which all workers fit: those of the smallest node used,
    divided among its workers. Where GPUs compute, half the CPUs are left to read and decode.

    Args:
        workers: a decimal number from 1, or "auto": one a GPU, without GPUs one a node; of these, the largest number
            that divides the batch.
        cpus_per_worker: 1 or more, or None to choose.
        gpus_per_worker: 0 or more, or None for 1 where there is any GPU, else 0.
        batch_size: photos in one step, over all workers.
        nodes: of the cluster.

    Raises:
        NoRoom: the workers do not fit on the nodes.
        InputError: they do not divide the batch, or no worker can be given such a number of GPUs.
    """
    have_gpus = any(node.gpus >= 1 for node in nodes)
    gpus = float(have_gpus) if gpus_per_worker is None else gpus_per_worker
    if gpus and not have_gpus:
        raise NoRoom(
            f"--gpus-per-worker: received {gpus:g}, but the cluster has no GPU: {_described(nodes)}; leave the option "
            "out, or start nodes that have GPUs (--wait-s waits for those of an autoscaler)"
        )
    if gpus > 1 and gpus % 1:
        raise InputError(
            f"--gpus-per-worker: received {gpus:g}, required above 1 is a whole number: give {gpus // 1:g}"
        )
    cpus = cpus_per_worker or 1
    rooms = [_room(node, cpus, gpus) for node in nodes]
    # One worker of no wanted size is the job's own process, which reserves nothing: it may sit on a head without CPUs.
    room = sum(rooms) or int(cpus_per_worker is None and not gpus)
    if workers == "auto":
        # Without GPUs one process keeps all CPUs of a node busy by itself.
        most = room if gpus else sum(map(bool, rooms))
        count = max((number for number in range(1, most + 1) if batch_size % number == 0), default=min(room, 1))
    else:
        count = int(workers)
        if batch_size % count:
            raise InputError(
                f"--batch-size: received {batch_size}, required is a multiple of --workers ({count}), so that every "
                "worker takes the same part; --workers auto finds a number that fits"
            )
    if not 0 < count <= room:
        advice = f"give at most {room}, or auto" if room else "give each less"
        raise NoRoom(
            f"--workers: received {workers}, each with {_several(cpus, 'CPU')} (--cpus-per-worker) and "
            f"{_several(gpus, 'GPU')} (--gpus-per-worker), but the cluster has room for {room}: {_described(nodes)}; "
            f"{advice}, or start more or larger nodes (--wait-s waits for those of an autoscaler)"
        )
    return Placement(count, cpus_per_worker or _share(count, gpus, nodes), gpus)


def network_actors(wanted: str, nodes: Sequence[Node], gpus: int) -> int:
    """Actors that run a network; 0 runs it in the job's process, which is faster on one machine without GPUs.

    Without GPUs there is one for each node that has CPUs.

    Args:
        wanted: a number, or "auto".
        nodes: of the cluster.
        gpus: whole ones, of the cluster.
    """
    if wanted != "auto":
        return int(wanted)
    if gpus > 1 or (gpus and len(nodes) > 1):
        return gpus
    return sum(node.cpus >= 1 for node in nodes) if len(nodes) > 1 else 0


def actor_cpus(nodes: Sequence[Node], actors: int) -> int:
    """CPUs for the network in each of some actors: half of all, the others read and decode."""
    cpus = [int(node.cpus) for node in nodes if node.cpus >= 1]
    return max(1, min(min(cpus, default=1) // 2, sum(cpus) // (2 * actors)))


def reading_tasks(nodes: Sequence[Node], actors: int) -> int:
    """Tasks that read and decode at once.

    Where the network runs in the job's process it takes all CPUs: half of them, at Ray's low priority, feed it. Actors
    without GPUs are fed by the CPUs that they leave.
    """
    cpus = int(sum(node.cpus for node in nodes))
    if actors:
        return cpus if any(node.gpus for node in nodes) else max(1, cpus - actors * actor_cpus(nodes, actors))
    return max(1, cpus // 2)


def _room(node: Node, cpus: int, gpus: float) -> int:
    """How many workers fit on a node. Ray gives each a part of one GPU or whole ones, never parts of two."""
    room = int(node.cpus // cpus)
    if 0 < gpus < 1:
        return min(room, int(node.gpus) * (_RAY_UNIT // max(1, round(gpus * _RAY_UNIT))))
    return min(room, int(node.gpus // gpus)) if gpus else room


def _share(count: int, gpus: float, nodes: Sequence[Node]) -> int:
    """The most CPUs that each of `count` workers can have, 1 at least."""
    usable = [Node(node.cpus // 2 if gpus else node.cpus, node.gpus) for node in nodes]
    sizes = range(int(max((node.cpus for node in usable), default=1)), 1, -1)
    return next((cpus for cpus in sizes if sum(_room(node, cpus, gpus) for node in usable) >= count), 1)


def _described(nodes: Sequence[Node]) -> str:
    """The nodes in a few words, the most frequent kinds first."""
    parts = [
        f"{_several(number, 'node')} of {_several(node.cpus, 'CPU')}"
        + (f" and {_several(node.gpus, 'GPU')}" if node.gpus else "")
        for node, number in Counter(nodes).most_common()
    ]
    return few(parts) or "no node"


def _several(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def few(texts: Sequence[str]) -> str:
    """The first texts, and how many more there are."""
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join([*texts[:_SHOWN], *more])
