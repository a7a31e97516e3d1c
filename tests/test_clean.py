"""`jobs.clean`: what was not used for long goes if that is asked for; runs, and what a run in progress uses, stay."""

from __future__ import annotations

import io
import os
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from flowers import cli, storage
from flowers.config import TrainConfig
from flowers.features.cache import FeatureCache
from flowers.runs import Run
from jobs.clean import main
from tests.test_runs import ledger

DAY = 86400
HEX = "0123456789abcdef0123456789abcdef"


def cleaned(folder: object, *more: object, code: int = 0) -> str:
    """What the command prints, or its one line of error."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(cli, "_hide_logs", lambda: None)
        words = ["--storage", str(folder), *map(str, more)]
        found, text = cli.outcome(main, "python -m jobs.clean", words)
    assert found == code, (out.getvalue(), text)
    return out.getvalue() if code == 0 else text


def put(path: Path, size: int, days: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    written = time.time() - days * DAY
    os.utime(path, (written, written))
    os.utime(path.parent, (written, written))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A storage: caches of 40, 20 and 1 days, a data set of 50, leftovers of 60, and a run of 90."""
    folder = tmp_path / "runs"
    put(folder / "cache" / "features" / "old" / "part-1.parquet", 4_000_000, 40)
    put(folder / "cache" / "features" / "middle" / "part-1.parquet", 2_000_000, 20)
    put(folder / "cache" / "networks" / "new" / "network.bin", 1_000_000, 1)
    put(folder / "datasets" / "unpacked-1" / "roses" / "1.jpg", 500_000, 50)
    put(folder / "datasets" / "unpacked-1.json", 10, 50)
    os.utime(folder / "datasets" / "unpacked-1", (0, 0))
    config = TrainConfig(storage=str(folder), name="mine")
    Run.of(config).open(config)
    Run.of(config).begin(config, ledger())
    put(folder / "mine" / "checkpoints" / ".writing-1" / "state.npz", 100_000, 60)
    put(folder / "mine" / f"report.json.{HEX}.tmp", 100_000, 60)
    put(folder / f".probe-{HEX}", 3, 60)
    put(folder / "mine" / "checkpoints" / "epoch-0001" / "state.npz", 1000, 90)
    put(folder / "photos" / "x.tmp", 1000, 90)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


GONE = {
    "cache/features/old/part-1.parquet",
    "datasets/unpacked-1/roses/1.jpg",
    "datasets/unpacked-1.json",
    "mine/checkpoints/.writing-1/state.npz",
    f"mine/report.json.{HEX}.tmp",
    f".probe-{HEX}",
}


def test_it_shows_and_removes_nothing_unless_told(runs: Path) -> None:
    before = files(runs)
    said = cleaned(runs)
    assert files(runs) == before
    lines = said.splitlines()
    assert len(lines) == 8
    assert "features      4.0 MB   40 days  may go    cache/features/old" in lines
    assert "features      2.0 MB   20 days  stays     cache/features/middle" in lines
    assert "data set      0.5 MB   50 days  may go    datasets/unpacked-1" in lines
    assert "left over     0.1 MB   60 days  may go    mine/checkpoints/.writing-1" in lines
    assert lines[-1] == "7.7 MB in 7 items; 4.7 MB in 5 (not used for 30d) may go; --delete removes that"


def test_it_removes_by_age(runs: Path) -> None:
    before = files(runs)
    assert "removed   cache/features/old" in cleaned(runs, "--delete")
    assert before - files(runs) == GONE
    assert "0 kB in 0 (not used for 30d) may go" in cleaned(runs)
    cleaned(runs, "--delete", "--older-than", "0s")
    assert not [name for name in files(runs) if name.startswith(("cache", "datasets"))]
    assert "mine/checkpoints/epoch-0001/state.npz" in files(runs)
    assert "photos/x.tmp" in files(runs)


def test_it_removes_by_size_what_was_not_used_for_longest(runs: Path) -> None:
    said = cleaned(runs, "--delete", "--older-than", "8w", "--max-size", 0.0035)
    assert "(not used for 8w, or beyond 0.0035 GB) removed" in said
    left = {name for name in files(runs) if name.startswith(("cache", "datasets"))}
    assert left == {"cache/features/middle/part-1.parquet", "cache/networks/new/network.bin"}


def test_what_a_run_in_progress_uses_stays(runs: Path) -> None:
    run = Run(str(runs / "mine"))
    with run.held():
        said = cleaned(runs, "--delete", "--older-than", "0s")
        assert said.count("used by the run mine") == 7, "it does not say yet what it uses"
        run.use([str(runs / "cache" / "features" / "old"), str(runs / "datasets" / "unpacked-1" / "manifest.jsonl")])
        said = cleaned(runs, "--delete", "--older-than", "0s")
        assert said.count("used by the run mine") == 5
        assert "removed   cache/features/middle" in said
        assert "removed   cache/networks/new" in said
        assert files(runs) >= GONE
    cleaned(runs, "--delete", "--older-than", "0s")
    assert not GONE & files(runs)


def test_a_cache_that_was_used_is_young(tmp_path: Path) -> None:
    uri = tmp_path / "cache" / "features" / "one"
    cache = FeatureCache(str(uri)).open()
    cache.touch()
    assert not uri.exists()
    cache.add([bytes(32)], np.ones((1, 3), np.float32))
    cache.flush()
    for path in (*uri.iterdir(), uri):
        os.utime(path, (5, 5))
    assert "may go" in cleaned(tmp_path).splitlines()[0]
    FeatureCache(str(uri)).open().touch()
    assert "stays" in cleaned(tmp_path).splitlines()[0]


def test_a_bucket(bucket: Path) -> None:
    put(bucket / "runs" / "cache" / "features" / "old" / "part-1.parquet", 1_000_000, 40)
    put(bucket / "runs" / "cache" / "features" / "new" / "part-1.parquet", 1_000_000, 4)
    assert "1.0 MB in 1 (not used for 30d) removed" in cleaned("mem://runs", "--delete")
    assert storage.names("mem://runs/cache/features") == ["new"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--older-than", "a week"], "--older-than: received 'a week', required is a number and one of s, m, h, d, w"),
        (["--max-size", "-1"], "--max-size: received '-1', required is 0 or more"),
    ],
)
def test_wrong_options(runs: Path, words: list[str], said: str) -> None:
    assert said in cleaned(runs, *words, code=2)


def test_no_such_storage(tmp_path: Path) -> None:
    said = cleaned(tmp_path / "none", code=2)
    assert said.startswith("error: --storage: received ")
    assert len(said.splitlines()) == 1
