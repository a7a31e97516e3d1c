"""The disk is full while a checkpoint is written."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowers.training import checkpoints
from tests.e2e.conftest import Done
from tests.faults.conftest import Place, Progress, result

# More than anything else the job writes from then on, less than a checkpoint of the tail.
LIMIT = 1 << 20


@contextmanager
def full_once(path: Path) -> Iterator[None]:
    """Not more than `LIMIT` bytes fit into a file of this process as soon as there is something at `path`.

    Writing fails as on a full disk then, with another number; Ray's processes go on as they are.
    """
    before, ended = resource.getrlimit(resource.RLIMIT_FSIZE), threading.Event()

    def limit() -> None:
        while not path.exists() and not ended.is_set():
            ended.wait(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))

    thread = threading.Thread(target=limit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(place: Place, reference: Done) -> None:
    progress = Progress(place.storage / "full")
    with full_once(progress.run / "config.json"):
        failed = place.job(place.storage, "full", *place.arguments(), code=1)
    err = failed.err
    assert err.count("\n") == 1, err
    assert "no space left for the checkpoint of epoch 4" in err
    assert "make room and run the same command again" in err
    assert not progress.writing()
    found, skipped = checkpoints.newest(str(progress.run / "checkpoints"))
    assert found is not None
    assert (found.epoch, skipped) == (3, [])
    again = place.finish("full")
    assert "going on after epoch 3" in again.out
    assert result(again) == result(reference)
