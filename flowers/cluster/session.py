"""Starting and ending what a job stands on: Ray in this thread, TensorFlow meanwhile in another."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from flowers.cluster.access import access, joined
from flowers.cluster.lean import data_of_one_machine, processes_of_one_machine
from flowers.cluster.signals import signals_are_ours
from flowers.errors import FlowersError, first_line

T = TypeVar("T")

# Blocks on their way from the decoder to the network. Ray's default, 30 % of the memory, lets decoded photos pile up.
_OBJECT_STORE_BYTES = 1 << 30
# A head that does not answer for so long has ended; on a busy machine it takes a second.
_ANSWER_S = 6.0
# Threads of Ray Data's passes over photos, by what their names begin with, and how long they may take to end.
_DATA_THREADS = ("StreamingExecutor", "iter_threaded", "ray-data-metadata-prefetch")
_ENDS_S = 5.0
# The longest name that Ray gives to a socket, and what Linux allows.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SOCKET_NAME = 107


# What shows no GPU to a process that begins with it, nor to those that it starts.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
# With "0" Ray listens at this machine's loopback address only, as it does on Windows.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def on_one_machine() -> bool:
    """Whether the Ray of this process, or the one whose worker it is, was started by `ray_session` for one machine."""
    return os.environ.get(_CLUSTERS) == "0"


def background(function: Callable[[], T], name: str) -> Future[T]:
    """Runs `function` in a daemon thread; its result or its error waits in the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def import_tensorflow(threads: int | None = None) -> None:
    """Imports what training needs; several seconds of CPU, so it runs beside the start of Ray.

    Args:
        threads: of TensorFlow in this process; None takes all CPUs.
    """
    importlib.import_module("keras")
    tensorflow = importlib.import_module("tensorflow")
    if threads and threads != tensorflow.config.threading.get_intra_op_parallelism_threads():
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)


def hide_gpus() -> None:
    """Shows no GPU to this process, nor to those that it starts; before TensorFlow has looked for any."""
    os.environ.update(NO_GPU)


def _check_temporary_folder() -> None:
    """Raises `FlowersError` if the names of Ray's sockets would be longer than the system allows."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    room = _SOCKET_NAME - len(os.fsencode(os.path.join(folder, _SOCKET)))
    if room < 0:
        raise FlowersError(
            f"{name} is {folder!r}, {-room} bytes too long: the names of Ray's sockets in it would exceed the "
            f"{_SOCKET_NAME} bytes that the system allows; set RAY_TMPDIR to a short folder, such as RAY_TMPDIR=/tmp"
        )


def _start(options: dict[str, Any]) -> None:
    """Starts or joins Ray, which gives its own processes 30 s: too little on a very busy machine, so then once more."""
    import ray

    try:
        ray.init(**options)
    except Exception as error:
        _stop()
        if "timed out during startup" not in str(error):
            raise
        ray.init(**options)


_lost: list[str] = []


def lost() -> str | None:
    """What part of Ray has ended by itself, though this process needs it; None while all is well. May take seconds."""
    if not _lost and (what := _look()):
        _lost.append(what)
    return _lost[0] if _lost else None


def _look() -> str | None:
    import ray

    if not ray.is_initialized():
        return None
    if node().all_processes:  # started here
        ended = {kind for kind, _ in node().dead_processes()} & {"gcs_server", "raylet"}
        return f"Ray's process {min(ended)}" if ended else None
    alive: list[bool] = []

    def ask() -> None:
        own = ray.get_runtime_context().get_node_id()
        alive.extend(found["Alive"] for found in ray.nodes() if found["NodeID"] == own)

    thread = threading.Thread(target=ask, name="ask Ray", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if not alive:
        return "the head of Ray's cluster"
    return None if all(alive) else "this node of Ray's cluster"


def node() -> Any:
    """Ray's record of the processes that it started here."""
    import ray

    return ray._private.worker._global_node


def _stop() -> None:
    """Ends Ray. No garbage is collected meanwhile: a thread that frees one of Ray's references then ends the process.

    Ray's C++ code takes it for an access after the shutdown and exits with 1, without a word (2.60).
    """
    import ray

    if lost():  # the shutdown would wait for it a quarter of a minute
        node().kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
        atexit.unregister(ray.shutdown)
        _lost.clear()
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


@contextmanager
def ray_session(verbose: bool, device: str = "auto", *, data: bool = True) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in `ray job submit`), or starts Ray on this machine for this job.

    Ray that runs in this process already is used, and stays.

    Must be entered in a thread that lives as long as the session: Ray's processes end with the thread that started
    them.

    Args:
        verbose: whether what Ray logs is shown.
        device: with "cpu" this process sees no GPU from here on, nor does a Ray that it starts.
        data: whether Ray Data will be used: it is imported then, and kept as quiet.

    Raises:
        FlowersError: Ray cannot be started or joined.
    """
    if device == "cpu":
        hide_gpus()
    if not joined():
        os.environ.setdefault(_CLUSTERS, "0")  # read when Ray is imported, also by its processes
    import ray

    if data:
        import ray.data

    if ray.is_initialized():  # somebody else's, who will end it
        yield
        return
    address = joined()
    if not address:
        os.environ.pop("RAY_ADDRESS", None)  # empty, or "local"
        _check_temporary_folder()
    with (
        access(address) as place,
        data_of_one_machine() if data and not place else nullcontext(),
        _running(place, verbose),
    ):
        yield


@contextmanager
def _running(place: str, verbose: bool) -> Iterator[None]:
    """Ray, joined at `place` or, if that is empty, started here."""
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "configure_logging": True}
    if place:
        options["address"] = place
    else:
        cpus = os.cpu_count() or 1
        store = max(_OBJECT_STORE_BYTES, (64 << 20) * cpus)
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": store}
    # Ray's own default from a later version on; without it, 2.60 warns that it will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with signals_are_ours(), nullcontext() if place or verbose else processes_of_one_machine():
            _start(options)
    except Exception as error:
        where = f"the cluster at {place}" if place else "Ray on this machine"
        raise FlowersError(
            f"{where} did not answer in time or refused ({first_line(error)}); on a busy machine run the command "
            "again, elsewhere check RAY_ADDRESS; --verbose shows what Ray says"
        ) from error
    if not verbose:
        # They have handlers of their own. What Ray Data says of an error, with a trace, the job says or mends.
        for name, least in (("ray.data", logging.CRITICAL), ("ray.train", logging.ERROR)):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setLevel(least)
    try:
        yield
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        _await_data()
        _stop()


def _let_go(error: BaseException | None) -> None:
    """Ends what an error left in the middle, such as a pass over photos, while Ray is there.

    The error's traceback keeps it; ended without Ray, Ray Data would start another one.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _await_data() -> None:
    """Waits for the threads of Ray Data: the process ends at once where one of them asks a Ray that has ended."""
    deadline = time.monotonic() + _ENDS_S
    for thread in threading.enumerate():
        if thread.name.startswith(_DATA_THREADS):
            thread.join(max(0.0, deadline - time.monotonic()))
