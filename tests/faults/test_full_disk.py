"""The disk is full while a checkpoint is written."""

from __future__ import annotations

import resource
from pathlib import Path

from flowers.training import checkpoints
from tests.e2e.conftest import Done
from tests.faults.conftest import Place, Progress, result
from tests.faults.processes import running

# More than anything else the job writes from then on, less than a checkpoint of the tail.
LIMIT = 1 << 20


def test_full_disk(place: Place, reference: Done, tmp_path: Path) -> None:
    """Not more than so many bytes fit into a file: writing fails as on a full disk, with another number."""
    progress = Progress(place.storage / "full")
    with running(place.command("full"), tmp_path) as job:
        job.until(lambda: (progress.run / "config.json").exists())
        resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))  # not that of Ray's processes
        code = job.wait()
    err = job.err.read_text()
    assert code == 1, job.out.read_text() + err
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
