"""Starting and ending what a job stands on: Ray in this thread, TensorFlow meanwhile in another."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from flowers.errors import FlowersError, first_line

T = TypeVar("T")

# Blocks on their way from the decoder to the network. Ray's default, 30 % of the memory, lets decoded photos pile up.
_OBJECT_STORE_BYTES = 1 << 30


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


def joined() -> bool:
    """Whether a job joins a cluster of others, rather than starting Ray for itself."""
    return bool(os.environ.get("RAY_ADDRESS"))


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


def _stop() -> None:
    """Ends Ray. No garbage is collected meanwhile: a thread that frees one of Ray's references then ends the process.

    Ray's C++ code takes it for an access after the shutdown and exits with 1, without a word (2.60).
    """
    import ray

    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


@contextmanager
def ray_session(verbose: bool) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in `ray job submit`), or starts Ray on this machine for this job.

    Ray that runs in this process already is used, and stays.

    Must be entered in a thread that lives as long as the session: Ray's processes end with the thread that started
    them.

    Raises:
        FlowersError: Ray cannot be started or joined.
    """
    import ray
    import ray.data

    if ray.is_initialized():  # somebody else's, who will end it
        yield
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "configure_logging": True}
    if not joined():
        cpus = os.cpu_count() or 1
        store = max(_OBJECT_STORE_BYTES, (64 << 20) * cpus)
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": store}
    # Ray's own default from a later version on; without it, 2.60 warns that it will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if here else None
    try:
        _start(options)
    except Exception as error:
        place = f"the cluster at {address}" if (address := os.environ.get("RAY_ADDRESS")) else "Ray on this machine"
        raise FlowersError(
            f"{place} did not answer in time or refused ({first_line(error)}); on a busy machine run the command "
            "again, elsewhere check RAY_ADDRESS; --verbose shows what Ray says"
        ) from error
    if before is not None:  # Ray's own handler ends the process without a word
        signal.signal(signal.SIGTERM, before)
    if not verbose:
        for name in ("ray.data", "ray.train"):  # they have handlers of their own
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _stop()
