"""The job's process is killed; the same command goes on and ends with the same result, bit by bit.

Nobody else writes into its folder meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Done
from tests.faults.conftest import EPOCHS, Place, Progress, result
from tests.faults.processes import running


def test_killed_in_mid_epoch_and_then_while_a_checkpoint_is_written(
    place: Place, reference: Done, tmp_path: Path
) -> None:
    progress = Progress(place.storage / "killed")
    with running(place.command("killed"), tmp_path / "1") as job:
        job.until(lambda: progress.checkpoint() >= 1, pause=0.05)
        for more in ([], ["--fresh"], ["--epochs", "9"]):
            with job.halted():
                refused = place.job(place.storage, "killed", *place.arguments(), *more, code=2)
            assert f"the run 'killed' is in use by process {job.pid} on " in refused.err
            assert refused.err.count("\n") == 1
        assert progress.checkpoint() >= 1
        job.kill_while(lambda: progress.in_the_middle(first=4), pause=0.005)
    first = progress.checkpoint()
    assert 4 <= first < EPOCHS

    with running(place.command("killed"), tmp_path / "2") as job:
        job.until(lambda: f"going on after epoch {first}" in job.out.read_text(), pause=0.05)
        job.kill_while(lambda: bool(progress.writing()) and progress.checkpoint() >= first, pause=0.002)
    assert progress.writing()
    second = progress.checkpoint()
    assert first <= second < EPOCHS

    assert (place.storage / ".killed.lock").exists(), "kill -9 leaves the file, and nobody holds it"
    again = place.finish("killed")
    assert not list(place.storage.glob(".*"))
    assert f"going on after epoch {second}" in again.out
    assert result(again) == result(reference)
