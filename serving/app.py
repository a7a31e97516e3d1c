"""The application that Ray Serve runs: `serve run serving.app:build_app bundle=RUN`, or `serve deploy serve.yaml`."""

import os
from typing import Any

from ray import serve
from ray.serve import Application

from flowers.cluster.nodes import own_resource
from flowers.cluster.session import NO_GPU
from flowers.inference.engine import usable_cpus
from flowers.options import check_paths
from serving.metrics import FOLDER, default_folder
from serving.options import ServeOptions
from serving.service import RETRY_AFTER_S

# Beyond what a replica takes, so that the replica itself, which knows how long they would wait, refuses the rest.
_SPARE_REQUESTS = 256
# Ray Serve learns that a replica was killed when it asks the next time; by itself it asks every ten seconds.
_LOOK_S = 1.0
DEPLOYMENT = "Classifier"


# Ray looks at the annotation to make `ServeOptions` of what a config file says, so here it has to be a class, not its
# name: no `from __future__ import annotations` in this file.
def build_app(args: ServeOptions) -> Application:
    """One deployment behind Ray Serve's proxies, which speak HTTP: for clusters.

    Args:
        args: how to serve; Ray Serve makes it from `args` of a config file.

    Raises:
        InputError: a path lies in the copy that Ray makes of a working directory.
    """
    check_paths(ServeOptions, dict(args))
    from serving.replica import Classifier

    args = with_cpus(args)
    return serve.deployment(**_deployment(args))(serve.ingress()(Classifier)).bind(args.model_dump())


def build_listening_app(args: ServeOptions, port: str) -> Application:
    """One deployment whose replicas speak HTTP themselves, all at one port of this machine.

    Args:
        args: how to serve.
        port: path of the `serving.http.port.Port` that they share.
    """
    from serving.replica import ListeningClassifier

    args = with_cpus(args)
    options = _deployment(args)
    options["ray_actor_options"]["resources"] = {own_resource(): 0.001}  # a port is of one machine
    return serve.deployment(**options)(ListeningClassifier).bind(args.model_dump(), port)


def with_cpus(args: ServeOptions) -> ServeOptions:
    """The options with the CPUs of a replica, where they leave these open."""
    return args.replace(cpus=args.cpus or max(1, usable_cpus() // args.replicas))


def _deployment(args: ServeOptions) -> dict[str, Any]:
    hidden = {} if args.replica_gpus else NO_GPU  # Ray shows those of the machine to who was given none (2.60)
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "user_config": args.tuning.model_dump(),
        "max_ongoing_requests": args.max_waiting + _SPARE_REQUESTS,
        "max_queued_requests": args.max_waiting,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        "logging_config": {"enable_access_log": False},  # a tenth of a request's CPU; /metrics counts requests
        "graceful_shutdown_timeout_s": args.grace_s,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": _LOOK_S,
        "ray_actor_options": {
            "num_cpus": args.cpus,
            "num_gpus": args.replica_gpus,
            "runtime_env": {"env_vars": {FOLDER: os.environ.get(FOLDER) or default_folder(args.name)} | hidden},
        },
    }
    if args.max_replicas:
        options["autoscaling_config"] = {
            "min_replicas": args.replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.tuning.max_batch_size,
        }
    else:
        options["num_replicas"] = args.replicas
    return options
