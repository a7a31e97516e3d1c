"""Train workers are killed: the job goes on by itself, or says how to go on."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Done
from tests.faults.conftest import HEAD_EPOCHS, Place, Progress, nearly, result
from tests.faults.processes import end, running

TWO = {"workers": 2, "cpus_per_worker": 1}


def test_without_another_try_it_says_how_to_go_on_and_with_one_it_does(
    place: Place, reference: Done, tmp_path: Path
) -> None:
    """The same run twice: its second command finds what the first one left, and loses workers as well."""
    progress = Progress(place.storage / "workers")
    with running(place.command("workers", **TWO, max_failures=0), tmp_path) as job:
        job.until(lambda: progress.checkpoint() >= 1, pause=0.02)
        assert not job.train_workers(), "the head is trained before workers have started"
        job.until(lambda: progress.checkpoint() > HEAD_EPOCHS and len(job.train_workers()) == 2, pause=0.02)
        end(max(job.train_workers()))
        code = job.wait()
    out, err = job.out.read_text(), job.err.read_text()
    assert code == 1, out + err
    assert "workers   2; this process trains the head by itself" in out
    assert err.count("\n") == 1, err
    assert err.startswith("error: training failed: a worker ended unexpectedly")
    assert "lower --batch-size" not in err
    assert "the same command goes on from the last finished epoch" in err
    assert not (progress.run / "report.json").exists()

    before = len(progress.lines())
    with running(place.command("workers", **TWO), tmp_path) as job:
        job.until(lambda: len(progress.lines()) > before and progress.in_the_middle(first=before + 1), pause=0.02)
        first = job.train_workers()
        assert len(first) == 2
        end(min(first))
        done = len(progress.lines())

        job.until(lambda: progress.checkpoint() > done, pause=0.02)
        second = job.train_workers()
        assert len(second) == 2
        assert not first & second, "a lost worker ends the others as well"
        code = job.wait()
    out, err = job.out.read_text(), job.err.read_text()
    assert code == 0, out + err
    assert err == ""
    assert "going on after epoch" in out
    assert "raylet" not in out, "Ray's own words reached the terminal"
    assert out.count("workers were lost; new ones went on from the newest checkpoint (1 x)") == 1
    assert not list(progress.run.glob(".*")), "a working file is left behind"
    again = Done(code, out, err, progress.run)
    assert again.report["workers"] == 2
    assert nearly(result(again), result(reference))
