"""Files of a run are empty, cut in half or full of zeros, as a disk without power leaves them.

The same command makes them again, or names the one in a line that says what to do; nobody calls the run finished.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from flowers import cli, storage
from flowers.bundle import LABELS, MANIFEST, MODEL, SCHEMA
from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.features.cache import FeatureCache
from flowers.pipelines import train
from flowers.report.record import Report
from flowers.runs import Run
from flowers.training import checkpoints, failures
from tests.e2e.conftest import Done
from tests.faults.conftest import EPOCHS, Place, result
from tests.report.test_record import written
from tests.test_commits import checkpoint
from tests.test_runs import ledger

Tear = Callable[[Path], None]


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture(params=[empty, cut, zeros], ids=lambda tear: tear.__name__)
def tear(request: pytest.FixtureRequest) -> Tear:
    return request.param


BUNDLE = (MODEL, "network.xml", "network.bin", LABELS)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with all that it leaves, small and without a network."""
    monkeypatch.setattr(train, "list_source", lambda *_: SimpleNamespace(table=ledger().table))
    config = TrainConfig(storage=str(tmp_path), name="mine")
    run = Run.of(config)
    run.open(config)
    run.begin(config, ledger())
    for epoch in (1, 2):
        checkpoints.save(run.checkpoints, checkpoint(epoch, 1))
    files = {name: name.encode() * 100 for name in BUNDLE}
    for name, data in files.items():
        storage.write(storage.join(run.bundle, name), data)
    recorded = {name: {"sha256": storage.sha256(data), "bytes": len(data)} for name, data in files.items()}
    manifest = {"schema": SCHEMA, "decoder_version": "1", "classes": ["a"], "image_size": 32, "files": recorded}
    storage.write(storage.join(run.bundle, MANIFEST), json.dumps(manifest).encode())
    storage.write(run.report, Report.model_validate(written()).to_json().encode())
    with run.running():
        pass
    return tmp_path / "mine"


def found(run: Path) -> tuple[Report | None, str]:
    """What the command finds of it, and says."""
    out = Console(file=io.StringIO(), width=1000)
    config = TrainConfig(storage=str(run.parent), name=run.name)
    report = train.finished(Run(str(run)), config, out)
    return report, out.file.getvalue()  # type: ignore[attr-defined]


def go_on(config: TrainConfig) -> None:
    Run.of(config).open(config)
    Run.of(config).begin(config, ledger())


def test_a_whole_run_is_finished(run: Path) -> None:
    report, said = found(run)
    assert report is not None
    assert said == "The run 'mine' is finished; --fresh starts it over.\n"


@pytest.mark.parametrize("name", ["report.json", *(f"best/{name}" for name in (*BUNDLE, MANIFEST))])
def test_a_run_is_not_finished_without_a_whole_report_and_a_whole_bundle(run: Path, tear: Tear, name: str) -> None:
    tear(run / name)
    report, said = found(run)
    assert report is None
    assert said.count("\n") == 1
    assert said.startswith("warning: ")
    assert said.endswith("; it is made again\n")
    (run / name).unlink()
    assert found(run)[0] is None
    config = TrainConfig(storage=str(run.parent), name=run.name)
    go_on(config)
    assert not (run / "report.json").exists(), "were it killed now, the old report would be of another bundle"


@pytest.mark.parametrize("name", ["config.json", "split.parquet"])
def test_what_only_the_user_can_decide(run: Path, tear: Tear, name: str) -> None:
    tear(run / name)
    config = TrainConfig(storage=str(run.parent), name=run.name)
    with pytest.raises(InputError, match=rf"{name} is damaged.*; --fresh starts over$") as caught:
        go_on(config)
    assert len(str(caught.value).splitlines()) == 1
    assert cli._explained(caught.value, "x", "")[0] == cli.WRONG_INPUT
    go_on(config.replace(fresh=True))


@pytest.mark.parametrize("name", ["ledger.parquet", "status.json"])
def test_what_is_written_anew_each_time(run: Path, tear: Tear, name: str) -> None:
    whole = (run / name).read_bytes()
    tear(run / name)
    config = TrainConfig(storage=str(run.parent), name=run.name)
    go_on(config)
    with Run.of(config).running():
        pass
    assert len((run / name).read_bytes()) == len(whole)


@pytest.mark.parametrize("name", [checkpoints.ARRAYS, checkpoints.STATE, checkpoints.MANIFEST])
def test_training_goes_on_from_the_checkpoint_before(run: Path, tear: Tear, name: str) -> None:
    tear(run / "checkpoints" / "epoch-0002" / name)
    newest, skipped = checkpoints.newest(str(run / "checkpoints"))
    assert newest is not None
    assert newest.epoch == 1
    assert len(skipped) == 1
    assert len(skipped[0].splitlines()) == 1
    tear(run / "checkpoints" / "epoch-0001" / name)
    assert checkpoints.newest(str(run / "checkpoints"))[0] is None


def test_a_part_of_a_cache_is_computed_again(tmp_path: Path, tear: Tear) -> None:
    cache = FeatureCache(str(tmp_path)).open()
    for number in range(2):
        cache.add([bytes([number]) * 32], np.ones((1, 3), np.float32))
        cache.flush()
    torn = next(tmp_path.iterdir())
    tear(torn)
    again = FeatureCache(str(tmp_path)).open()
    assert again.damaged == [torn.name]
    assert len(again.digests()) == 1


def test_notes_for_workers(tmp_path: Path, tear: Tear) -> None:
    run = Run(str(tmp_path))
    failures.lose(run)
    for name in ("lost", "microbatches", "failure"):
        storage.write(run.note(name), b"8")
        tear(Path(run.note(name)))
    assert (failures.losses(run), failures.microbatches(run), failures.noted(run)) == (0, 1, None)


def test_all_that_can_be_made_again_is(place: Place, reference: Done) -> None:
    """At once: report, metrics, ledger, status, bundle, the newest checkpoint, a part of each cache, the network."""
    run = reference.run.parent / "torn"
    shutil.copytree(reference.run, run)
    for name in ("report.json", "best/network.bin", f"checkpoints/epoch-{EPOCHS:04d}/state.npz", "ledger.parquet"):
        zeros(run / name)
    for name in ("metrics.jsonl", "best/model.keras"):
        cut(run / name)
    empty(run / "status.json")
    cache = place.storage / "cache"
    for tear, path in zip((cut, zeros, empty), sorted(cache.glob("*/*/*.parquet")), strict=False):
        tear(path)
    for path in cache.glob("networks/*/network.json"):
        zeros(path)
    again = place.finish("torn")
    assert "warning: " in again.out
    assert "report.json is damaged" in again.out
    assert f"going on after epoch {EPOCHS - 1}" in again.out
    assert result(again) == result(reference)
    assert "is finished; --fresh" in place.finish("torn").out
