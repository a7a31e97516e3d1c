"""The survey: a probe on every node of the running Ray cluster, all at once; nobody is waited for beyond a limit."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowers import storage
from flowers.cluster.nodes import UNSEEN, gather, take_probe
from flowers.doctor.probe import Probe, versions
from flowers.doctor.report import Node, Report, Survey

# Of Ray's reasons for the end of a node (NodeDeathInfo in its gcs.proto): it was stopped, its end was announced (a
# drain), or the autoscaler ended it because it was idle.
_MEANT = {1, 3, 4}
_SEEN_BY_TENSORFLOW = (
    "import json, tensorflow; "
    "print(json.dumps([device.name for device in tensorflow.config.list_physical_devices('GPU')]))"
)
_SPARE_S = 5.0  # for the way of an answer that says that there is none
_OLDER = "another version of flowers runs there; install this one, or submit the job with --working-dir"


def survey(cluster: str, guarded: bool, folder: str, files: Sequence[str], limit_s: float) -> Survey:
    """Asks every node of the running cluster.

    Args:
        cluster: HOST:PORT of its head; "" for a Ray of this job's own.
        guarded: whether it asks for a token.
        folder: the storage; each node writes a file there, which is gone afterwards.
        files: some of the photos.
        limit_s: seconds that a node has for its answer.
    """
    listed = {node["NodeID"]: node for node in ray.nodes()}
    alive = [node for node in listed if listed[node]["Alive"]]
    probe = ray.remote(num_cpus=0, max_restarts=0)(Probe)
    probes = {
        node: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in alive
    }
    try:
        return Survey(cluster, not guarded, versions(), _ask(listed, probes, folder, files, limit_s))
    finally:
        for actor in probes.values():
            ray.kill(actor)


def _ask(
    listed: dict[str, Any], probes: dict[str, Any], folder: str, files: Sequence[str], limit_s: float
) -> list[Node]:
    where = storage.absolute(folder)
    written = {node: storage.join(where, f".probe-{uuid.uuid4().hex}") for node in probes}
    here = json.dumps([(uri, found.size) for uri in map(storage.absolute, files) if (found := storage.entry(uri))])
    asked = {node: actor.report.remote(written[node], where, here) for node, actor in probes.items()}
    answers, failures = gather(asked, limit_s)
    seen, silent = gather(
        {node: probes[node].gpus.remote(_SEEN_BY_TENSORFLOW, limit_s) for node in answers}, limit_s + _SPARE_S
    )
    reports: dict[str, Report] = {}
    for node, answer in answers.items():
        try:
            answer["storage"] = answer["storage"] or take_probe(written[node])
            gpus, why = ([], silent[node]) if node in silent else seen[node]
            reports[node] = Report.of({**answer, "gpus": gpus, "tensorflow": why})
        except (KeyError, TypeError):
            failures[node] = _OLDER
    unseen = [node for node, report in reports.items() if report.storage == UNSEEN]
    gather({node: probes[node].remove.remote(written[node]) for node in unseen}, limit_s)
    ahead = {node: _ahead(probes[node], limit_s) for node in reports}
    unreachable = _unreachable({node: listed[node] for node in reports}, probes, limit_s)
    return [
        Node(
            address=str(found["NodeManagerAddress"]),
            alive=bool(found["Alive"]),
            death=str(found.get("DeathReasonMessage") or "it stopped answering"),
            cpus=found["Resources"].get("CPU", 0.0),
            gpus=found["Resources"].get("GPU", 0.0),
            object_store=found["Resources"].get("object_store_memory", 0.0),
            report=reports.get(node),
            failure=failures.get(node, ""),
            ahead=ahead.get(node, 0.0),
            unreachable=unreachable.get(node, ()),
        )
        for node, found in listed.items()
        if found["Alive"] or _missed(found, [listed[one] for one in probes])
    ]


def _missed(dead: dict[str, Any], alive: list[dict[str, Any]]) -> bool:
    """Whether a node ended that nobody stopped, and that has not come back."""
    return dead.get("DeathReason") not in _MEANT and dead["NodeName"] not in {node["NodeName"] for node in alive}


def _ahead(probe: Any, limit_s: float) -> float:
    """Seconds that the clock of a node is ahead of this one, less what the way of the answer may account for."""
    before = time.time()
    try:
        there = ray.get(probe.clock.remote(), timeout=limit_s)
    except ray.exceptions.RayError:
        return 0.0
    return float(min(0.0, there - before) or max(0.0, there - time.time()))


def _unreachable(listed: dict[str, Any], probes: dict[str, Any], limit_s: float) -> dict[str, tuple[str, ...]]:
    """What each node cannot connect to: Ray's own ports of the others, and one that the system chose there."""
    if len(listed) < 2:
        return {}
    opened, _ = gather({node: probes[node].listen.remote() for node in listed}, limit_s)
    places = {
        node: [
            (listed[node]["NodeManagerAddress"], port)
            for port in (listed[node]["NodeManagerPort"], listed[node]["ObjectManagerPort"], port)
        ]
        for node, port in opened.items()
    }
    others = {node: [place for other in places if other != node for place in places[other]] for node in listed}
    answers, _ = gather({node: probes[node].reach.remote(others[node]) for node in listed}, limit_s)
    return {
        node: tuple(f"{host}:{port} ({why})" for (host, port), why in zip(others[node], reasons, strict=True) if why)
        for node, reasons in answers.items()
    }
