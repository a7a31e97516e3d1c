"""What is known of the machines of a cluster when they have been asked; from it `checks` says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Stands among the versions for the digest of this library's source.
CODE = "the source of flowers"


@dataclass(frozen=True)
class Disk:
    """A file system, as the folder that needs it shows it.

    Attributes:
        what: what the folder is for.
        path: of the folder, or the lowest one above it that exists.
        free: bytes that may be written.
        total: bytes of the whole.
    """

    what: str
    path: str
    free: int
    total: int


@dataclass(frozen=True)
class Report:
    """What a machine says of itself.

    Attributes:
        versions: of Python, of packages and of this library; what is not installed is missing.
        disks: where Ray and others put temporary files, and the storage if it is a local path; the first is Ray's.
        shared_memory: bytes of /dev/shm; None where there is none.
        storage: what went wrong with the probe file, or "".
        data: what is wrong with the photos as they are seen there, or "".
        gpus: as TensorFlow names them.
        tensorflow: why it could not say, or "".
    """

    versions: dict[str, str]
    disks: list[Disk]
    shared_memory: int | None
    storage: str = ""
    data: str = ""
    gpus: list[str] = field(default_factory=list)
    tensorflow: str = ""

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Report:
        """The report that a probe sent.

        Raises:
            TypeError: the probe is of another version of this library.
        """
        return cls(**{**plain, "disks": [Disk(**disk) for disk in plain["disks"]]})


@dataclass(frozen=True)
class Node:
    """A machine as the cluster lists it, and what it answered.

    Attributes:
        address: its host name or IP address.
        alive: whether the cluster counts on it.
        death: why it does not, in Ray's words.
        cpus: that Ray hands out.
        gpus: the same.
        object_store: bytes that Ray keeps for blocks of photos.
        report: its answer; None where there is none.
        failure: why there is none.
        ahead: seconds that its clock is ahead of the one here, at least; negative if it is behind.
        unreachable: what it could not connect to, and why: ``"10.0.0.2:8076 (timed out)"``.
    """

    address: str
    alive: bool = True
    death: str = ""
    cpus: float = 0.0
    gpus: float = 0.0
    object_store: float = 0.0
    report: Report | None = None
    failure: str = ""
    ahead: float = 0.0
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """All machines, and what they are compared with.

    Attributes:
        cluster: HOST:PORT of its head; "" for a Ray of this job's own.
        open: whether the cluster lets in everybody who reaches it.
        versions: of the process that asks.
        nodes: the machines, also those that have died.
    """

    cluster: str
    open: bool
    versions: dict[str, str]
    nodes: list[Node]

    @property
    def answering(self) -> list[tuple[Node, Report]]:
        """Those that have answered."""
        return [(node, node.report) for node in self.nodes if node.report is not None]
