"""Placement: how many processes of which size train on the cluster, and how many run a network that is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowers.errors import InputError, NoRoom
from flowers.text import several

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


@dataclass(frozen=True)
class Pool:
    """The processes that run a network without training it.

    Attributes:
        actors: Ray actors; 0 is the job's own process, which is faster on one machine with one GPU at most.
        cpus: CPUs, and threads of the network, of each.
        gpus: GPUs of each actor.
    """

    actors: int
    cpus: int
    gpus: float = 0.0


def on_device(nodes: Sequence[Node], device: str) -> list[Node]:
    """The nodes as far as they may be used.

    Args:
        nodes: of the cluster.
        device: "auto"; "cpu", with which GPUs count for nothing; "gpu", with which there has to be one.

    Raises:
        NoRoom: there is no GPU, though one was asked for.
    """
    if device == "gpu":
        require_gpu("--device", device, nodes)
    return [replace(node, gpus=0.0) if device == "cpu" else node for node in nodes]


def require_gpu(option: str, received: str, nodes: Sequence[Node]) -> None:
    """Raises NoRoom, naming the option that asks for GPUs, if there is none."""
    if not gpu_count(nodes):
        raise NoRoom(
            f"{option}: received {received}, but the cluster has no GPU: {_described(nodes)}; leave the option out, or "
            "start nodes that have GPUs (those of an autoscaler: --wait-s of jobs.train)"
        )


def require_room(replicas: int, cpus: float, gpus: float, nodes: Sequence[Node]) -> None:
    """Raises NoRoom if so many replicas of a server do not fit on the nodes: Ray would wait, and say nothing."""
    room = sum(_room(node, cpus, gpus) for node in nodes)
    if replicas > room:
        each = f"{several(cpus, 'CPU')} (--cpus)" + (f" and {several(gpus, 'GPU')} (--gpus)" if gpus else "")
        raise NoRoom(
            f"--replicas: received {replicas}, each with {each}, but there is room for {room}: {_described(nodes)}; "
            f"{f'give at most {room}, or ' if room else ''}give each less"
        )


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
    gpus = float(gpu_count(nodes) > 0) if gpus_per_worker is None else gpus_per_worker
    if gpus:
        require_gpu("--gpus-per-worker", f"{gpus:g}", nodes)
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
            f"--workers: received {workers}, each with {several(cpus, 'CPU')} (--cpus-per-worker) and "
            f"{several(gpus, 'GPU')} (--gpus-per-worker), but the cluster has room for {room}: {_described(nodes)}; "
            f"{advice}, or start more or larger nodes (--wait-s waits for those of an autoscaler)"
        )
    return Placement(count, cpus_per_worker or _share(count, gpus, nodes), gpus)


def network_pool(wanted: str, nodes: Sequence[Node], here: int) -> Pool:
    """Decides who runs a network: an actor a GPU or, without GPUs, actors on half the CPUs; the others read and decode.

    Args:
        wanted: a number of actors, or "auto".
        nodes: of the cluster.
        here: CPUs of the job's own process, where it runs the network.
    """
    gpus = gpu_count(nodes)
    alone = len(nodes) == 1 and gpus < 2
    actors = int(wanted) if wanted != "auto" else 0 if alone else gpus or _auto_actors(nodes)
    if not actors:
        return Pool(0, here)
    if gpus:
        # So many share a GPU, each with a part of it that Ray can count: it gives nobody parts of two.
        part = _RAY_UNIT // -(-actors // gpus) / _RAY_UNIT
        usable = sum(int(node.cpus) // 2 for node in nodes if node.gpus >= 1)
        return Pool(actors, max(1, usable // max(actors, gpus)), part)
    return Pool(actors, next((size for size in _sizes(nodes) if _actors_of(size, nodes) >= actors), 1))


def pool_of_the_rest(pool: Pool, nodes: Sequence[Node]) -> Pool:
    """The same on the nodes that are left after a loss: at least one actor, no more than there were, on no new GPU."""
    usable = nodes if pool.gpus else on_device(nodes, "cpu")
    fitting = network_pool("auto", usable, pool.cpus).actors
    return network_pool(str(max(1, min(pool.actors, fitting))), usable, pool.cpus)


def _auto_actors(nodes: Sequence[Node]) -> int:
    """Actors without GPUs: as large as they can be while they use nine tenths of the CPUs that networks may have."""
    usable = _actors_of(1, nodes)
    if not usable:  # no node has two CPUs
        return int(sum(node.cpus >= 1 for node in nodes)) // 2
    size = next(size for size in _sizes(nodes) if 10 * size * _actors_of(size, nodes) >= 9 * usable)
    return _actors_of(size, nodes)


def _sizes(nodes: Sequence[Node]) -> range:
    """CPUs that an actor may have, the most first."""
    return range(int(max((node.cpus for node in nodes), default=0)) // 2, 0, -1)


def _actors_of(size: int, nodes: Sequence[Node]) -> int:
    """How many actors of so many CPUs fit on one half of each node."""
    return sum(int(node.cpus) // 2 // size for node in nodes)


def gpu_count(nodes: Sequence[Node]) -> int:
    """Whole GPUs of some nodes."""
    return sum(int(node.gpus) for node in nodes)


def reading_tasks(nodes: Sequence[Node], pool: Pool) -> int:
    """Tasks that read and decode at once.

    Where the network runs in the job's process it takes all CPUs: half of them, at Ray's low priority, feed it. Actors
    without GPUs are fed by the CPUs that they leave.
    """
    cpus = int(sum(node.cpus for node in nodes))
    if pool.actors:
        return max(1, cpus if pool.gpus else cpus - pool.actors * pool.cpus)
    return max(1, cpus // 2)


def _room(node: Node, cpus: float, gpus: float) -> int:
    """How many workers fit on a node. Ray gives each a part of one GPU or whole ones, never parts of two."""
    room = round(node.cpus * _RAY_UNIT) // max(1, round(cpus * _RAY_UNIT))
    if 0 < gpus < 1:
        return min(room, int(node.gpus) * (_RAY_UNIT // max(1, round(gpus * _RAY_UNIT))))
    return min(room, int(node.gpus // gpus)) if gpus else room


def _share(count: int, gpus: float, nodes: Sequence[Node]) -> int:
    """The most CPUs that each of `count` workers can have, 1 at least."""
    usable = [Node(node.cpus // 2 if gpus else node.cpus, node.gpus) for node in nodes]
    sizes = range(int(max((node.cpus for node in usable), default=1)), 1, -1)
    return next((cpus for cpus in sizes if sum(_room(node, cpus, gpus) for node in usable) >= count), 1)


def in_words(nodes: Sequence[Node], device: str) -> str:
    """What computes, for people: "2 CPUs", "16 CPUs and 2 GPUs of 3 nodes"."""
    gpus = gpu_count(nodes)
    said = several(int(sum(node.cpus for node in nodes)), "CPU") + (f" and {several(gpus, 'GPU')}" if gpus else "")
    asked = "" if device == "auto" else f" (--device {device})"
    return said + (f" of {len(nodes)} nodes" if len(nodes) > 1 else "") + asked


def _described(nodes: Sequence[Node]) -> str:
    """The nodes in a few words, the most frequent kinds first."""
    parts = [
        f"{several(number, 'node')} of {several(node.cpus, 'CPU')}"
        + (f" and {several(node.gpus, 'GPU')}" if node.gpus else "")
        for node, number in Counter(nodes).most_common()
    ]
    return few(parts) or "no node"


def few(texts: Sequence[str]) -> str:
    """The first texts, and how many more there are."""
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join([*texts[:_SHOWN], *more])
