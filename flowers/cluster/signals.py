"""Signals are the job's: Ray neither answers them in its place nor ends before it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from flowers.cluster.lean import nothing, replaced


@contextmanager
def signals_are_ours() -> Iterator[None]:
    """Ray that starts meanwhile leaves this process its handlers; its own processes get process groups of their own.

    Ray's handler of SIGTERM ends this process with a trace (2.60). A signal to a whole process group, as `timeout` and
    terminals send it, would end Ray first, and what the job still asks of it waits up to half a minute.
    """
    from ray._private import services, utils

    popen = functools.partial(services.ConsolePopen, process_group=0)
    with replaced(services, ConsolePopen=popen), replaced(utils, set_sigterm_handler=nothing):
        yield
