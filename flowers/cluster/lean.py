"""Ray without what a job on one machine has no use for.

Ray has no options for it (2.60), so parts of it are replaced. One that goes by another name in a later version is an
error as soon as Ray starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Processes, by the methods that start them: the dashboard's server, which `ray.init` waits for, the autoscaler, and
# what copies the workers' logs. They take six seconds of CPU.
_PROCESSES = ("start_api_server", "start_monitor", "start_log_monitor")
# What tells an actor of Ray Data, which it starts, about each dataset: the dashboard would show it.
_TOLD = ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics")


@contextmanager
def replaced(owner: Any, **others: Any) -> Iterator[None]:
    """Gives an object other attributes in place of some that it has."""
    before = {name: vars(owner)[name] for name in others}
    for name, other in others.items():
        setattr(owner, name, other)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(owner, name, own)


def nothing(*_: Any, **__: Any) -> None:
    """In place of a method."""


@contextmanager
def processes_of_one_machine() -> Iterator[None]:
    """Ray that is started meanwhile is a head and a node, and nothing else."""
    from ray._private.node import Node

    with replaced(Node, **dict.fromkeys(_PROCESSES, nothing)):
        yield


@contextmanager
def data_of_one_machine() -> Iterator[None]:
    """Ray Data starts two actors less meanwhile, each of which imports it once more, as the first photo is waited for.

    One keeps statistics for a dashboard that is not there, the other asks an autoscaler for more machines.
    """
    import ray
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.stats import _StatsManager

    class OneMachine(ClusterAutoscaler):
        """Has what there is, and gets no more."""

        def __init__(self) -> None:
            self._all = ExecutionResources.from_resource_dict(ray.cluster_resources())

        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> ExecutionResources:
            return self._all

    with (
        replaced(_StatsManager, **dict.fromkeys(_TOLD, staticmethod(nothing))),
        replaced(streaming_executor, create_cluster_autoscaler=lambda *_, **__: OneMachine()),
    ):
        yield
