"""The machines of the running Ray cluster: what they offer, and whether they share the storage and the photos."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowers import storage
from flowers.cluster.placement import Node, few
from flowers.cluster.session import hide_gpus
from flowers.errors import InputError, NoRoom, first_line

_ANSWER_S = 60.0
# Tasks on a node that dies fail before Ray knows of it.
_NOTICE_S = 20.0
_LOOK_S = 0.5
UNSEEN = "what is written there is not seen here"


def cluster_nodes() -> list[Node]:
    """The nodes that are alive in the running Ray cluster; what an autoscaler may still add is not among them."""
    return [_offered(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def own_node() -> Node:
    """The node of this process."""
    return _offered(_own_resources())


def own_resource() -> str:
    """The resource that only the node of this process has: what needs a little of it runs here."""
    return next(name for name in _own_resources() if name.startswith("node:") and not name.startswith("node:__"))


def _own_resources() -> Mapping[str, float]:
    own = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return resources


def _offered(resources: Mapping[str, float]) -> Node:
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def keep_to_own_gpus() -> None:
    """Hides the GPUs of the machine from this process of Ray if it was given none: Ray shows it all of them (2.60).

    To be called before TensorFlow looks for GPUs. In a job's own process, which Ray gives nothing, it does nothing.
    """
    context = ray.get_runtime_context()
    if context.worker.mode == ray.WORKER_MODE and not context.get_accelerator_ids().get("GPU"):
        hide_gpus()


@contextmanager
def asked_for(
    bundles: Sequence[Mapping[str, float]],
    fits: Callable[[Sequence[Node]], object],
    wait_s: float,
    say: Callable[[str], None],
) -> Iterator[list[Node]]:
    """The nodes of the running Ray cluster, once an autoscaler has added those that are missing.

    It keeps them until the context is left.

    Args:
        bundles: what each worker needs, for the autoscaler, such as ``{"CPU": 2}``.
        fits: raises NoRoom as long as something is missing.
        wait_s: seconds to wait.
        say: told once what is missing.

    Raises:
        NoRoom: of `fits`, when the time is over.
    """
    deadline, asked = time.monotonic() + wait_s, False
    try:
        while True:
            nodes = cluster_nodes()
            try:
                fits(nodes)
                break
            except NoRoom as error:
                if time.monotonic() > deadline:
                    raise
                if not asked:
                    asked = True
                    say(f"waits up to {wait_s:g} s for an autoscaler; now {str(error).partition(';')[0]}")
                    request_resources(bundles=[dict(bundle) for bundle in bundles])
            time.sleep(_LOOK_S)
        yield nodes
    finally:
        if asked:
            request_resources(bundles=[])


def check_storage(uri: str) -> None:
    """Writes a small file from every node of the running Ray cluster, sees whether it is here, and removes it.

    Args:
        uri: the folder of the runs; it is made where it is missing.

    Raises:
        InputError: a node cannot write there, or writes somewhere else than in the folder seen here.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    probes = {node: storage.join(storage.absolute(uri), f".probe-{uuid.uuid4().hex}") for node in nodes}
    if len(nodes) == 1:
        wrong = {node: write_probe(probe) or take_probe(probe) for node, probe in probes.items()}
        required = "give a folder that can be written, or s3://BUCKET/FOLDER"
    else:
        wrong = {node: text or take_probe(probes[node]) for node, text in _on_nodes(write_probe, probes).items()}
        required = "required is one place that all nodes can write: on a shared file system, or s3://BUCKET/FOLDER"
        # What is not here lies on a disk of that node.
        _on_nodes(take_probe, {node: probes[node] for node, text in wrong.items() if text == UNSEEN})
    failures = [text for text in dict.fromkeys(wrong.values()) if text]
    if failures:
        parts = [f"{text} (node {few([nodes[node] for node in wrong if wrong[node] == text])})" for text in failures]
        raise InputError(f"--storage: {uri} cannot be used: {few(parts)}; {required}")


def check_files(option: str, uris: Sequence[str]) -> None:
    """Looks at some files from every node of the running Ray cluster: each has to see them as they are here.

    Args:
        option: where they were given, for the error: ``--data``.
        uris: the files; those in a bucket are the same for all.

    Raises:
        InputError: a node does not see one, or sees another one.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    paths = [storage.absolute(uri) for uri in uris if not storage.is_remote(uri)]
    here = [(path, found.size) for path in paths if (found := storage.entry(path))]
    if len(nodes) == 1 or not here:
        return
    answers = _on_nodes(look, dict.fromkeys(nodes, json.dumps(here)))
    if wrong := {node: text for node, text in answers.items() if text}:
        text = next(iter(wrong.values()))
        raise InputError(
            f"{option}: {text} (node {few([nodes[node] for node in wrong])}); required is a place that all nodes see: "
            "on a shared file system, or s3://BUCKET/FOLDER"
        )


def look(probe: str) -> str:
    """Compares files with their sizes elsewhere, pairs as JSON; returns what is wrong, or nothing."""
    for path, size in json.loads(probe):
        try:
            found = storage.entry(path)
        except (OSError, ValueError, InputError) as error:
            return f"{path} cannot be read there: {_reason(error)}"
        if found is None:
            return f"there is no {path}"
        if found.size != size:
            return f"{path} has {found.size} bytes there, here {size}"
    return ""


def write_probe(probe: str) -> str:
    """Writes a probe, which holds its own name; returns what went wrong, or nothing."""
    try:
        with storage.enough_space(storage.parent(probe)):
            storage.write(probe, probe.encode())
    except (OSError, ValueError, InputError) as error:
        return _reason(error)
    return ""


def take_probe(probe: str) -> str:
    """Reads a probe and removes it; returns what went wrong, or nothing."""
    try:
        if not storage.exists(probe) or storage.read(probe) != probe.encode():
            return UNSEEN
        storage.delete_file(probe)
    except (OSError, ValueError, InputError) as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _on_nodes(function: Callable[[str], str], probes: dict[str, str]) -> dict[str, str]:
    """Calls `function` with each probe on the node of that id; its answers, or why there is none.

    Nodes that die meanwhile are left out: they are no part of the cluster any more.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    running = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
        for node, probe in probes.items()
    }
    answers, failures = gather(running, _ANSWER_S)
    deadline, alive = time.monotonic() + _NOTICE_S, set(failures)
    while failures and (alive := alive_ids() & set(failures)) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return {**answers, **{node: failures[node] for node in alive}}


def nodes_left(before: set[str]) -> list[Node]:
    """The nodes that are alive after a process was lost: with its node, as Ray notices some time later, or alone.

    Args:
        before: `alive_ids` when the process was started.
    """
    deadline = time.monotonic() + _NOTICE_S
    while before <= alive_ids() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return cluster_nodes()


def alive_ids() -> set[str]:
    """The ids of the nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def gather(running: Mapping[str, ray.ObjectRef], limit_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What nodes answer within `limit_s` seconds in all, and of the others in a line why there is no answer.

    Args:
        running: what was asked, by node.
        limit_s: seconds to wait for all of them.
    """
    done, _ = ray.wait(list(running.values()), num_returns=len(running), timeout=limit_s) if running else ([], [])
    answers: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for node, reference in running.items():
        if reference not in done:
            failures[node] = f"no answer within {limit_s:g} s"
            continue
        try:
            answers[node] = ray.get(reference)
        except ray.exceptions.RayError as error:
            failures[node] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return answers, failures
