"""Failures of workers, noted in the run's folder for the workers that are started after them.

A worker that fails alone has to crash, since the others wait for it; Ray then starts all of them again, up to
`--max-failures` times. What cannot get better by that is noted, and the new workers end at once with the note.
"""

from __future__ import annotations

from flowers import storage
from flowers.errors import FlowersError, OutOfMemory
from flowers.plan import Plan
from flowers.runs import Run
from flowers.text import several

_FAILURE, _MICROBATCHES, _LOST = "failure", "microbatches", "lost"


def note(run: Run, error: FlowersError) -> None:
    """Notes an error for good."""
    storage.write(run.note(_FAILURE), str(error).encode())


def noted(run: Run) -> FlowersError | None:
    """The error that an earlier worker noted."""
    text = _read(run, _FAILURE)
    return FlowersError(text) if text else None


def lose(run: Run) -> None:
    """Counts one more time that workers were lost."""
    storage.write(run.note(_LOST), str(losses(run) + 1).encode())


def losses(run: Run) -> int:
    """Times that workers were lost since `forget`."""
    return _number(run, _LOST) or 0


def forget(run: Run) -> None:
    """Removes the error and the losses: the command begins, or it has told of them."""
    for name in (_FAILURE, _LOST):
        storage.delete_file(run.note(name))


def microbatches(run: Run) -> int:
    """Parts in which a worker's photos of a step go through the network, after it ran out of memory."""
    return _number(run, _MICROBATCHES) or 1


def out_of_memory(plan: Plan, workers: int) -> OutOfMemory:
    """The error for it; with --auto-batch, twice as many microbatches are noted for the next attempt."""
    now, local_batch = microbatches(plan.run), plan.config.batch_size // workers
    size = -(-local_batch // now)
    if plan.config.auto_batch and now < local_batch:
        storage.write(plan.run.note(_MICROBATCHES), str(now * 2).encode())
        return OutOfMemory(
            f"out of memory with {several(size, 'photo')} at a time: going on with {-(-size // 2)}, their gradients "
            "added up, so the batch and its result stay",
            retry=True,
        )
    hint = "" if plan.config.auto_batch else ", or let --auto-batch take half as many photos at a time"
    return OutOfMemory(
        f"out of memory with {several(size, 'photo')} at a time; lower --batch-size or --image-size, or train less of "
        f"the network (--trainable){hint}"
    )


def _read(run: Run, name: str) -> str:
    uri = run.note(name)
    return storage.read(uri).decode(errors="replace").strip("\0") if storage.exists(uri) else ""


def _number(run: Run, name: str) -> int | None:
    """A note that is a number; what a damaged disk made of it is none."""
    text = _read(run, name)
    return int(text) if text.isascii() and text.isdecimal() else None
