"""A run's folder: the same command goes on with it, another one is refused, and nothing foreign is touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from flowers import runs, storage
from flowers.config import TrainConfig
from flowers.data.ledger import ROW, Ledger, settle
from flowers.data.split import SUBSETS
from flowers.errors import FlowersError, InputError
from flowers.pipelines.train import train
from flowers.runs import Run

FRACTIONS = (0.7, 0.27, 0.03)


def ledger(count: int = 20, folder: str = "/d", labels: str = "ab", seed: int = 0) -> Ledger:
    rows = [
        {
            "path": f"{folder}/{label}/{number}.jpg",
            "label": label,
            "sha256": hashlib.sha256(f"{place}/{number}".encode()).digest(),
        }
        for place, label in enumerate(labels)
        for number in range(count)
    ]
    return settle(pa.Table.from_pylist(rows, schema=ROW), FRACTIONS, seed, 0.1)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(storage=str(tmp_path / "runs"), name="mine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "mine"


def other(config: TrainConfig, **options: Any) -> TrainConfig:
    return TrainConfig(storage=config.storage, name=config.name, **options)


def opened(config: TrainConfig) -> Run:
    run = Run.of(config)
    run.open(config)
    return run


def state(config: TrainConfig) -> tuple[str, bool]:
    run = opened(config)
    return run.uri, run.finished()


def begun(config: TrainConfig, found: Ledger | None = None) -> Run:
    run = opened(config)
    assert not run.finished()
    run.begin(config, found or ledger())
    return run


def refusal(config: TrainConfig) -> str:
    with pytest.raises(InputError) as caught:
        opened(config)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_then_the_same_again_then_finished(config: TrainConfig, folder: Path) -> None:
    assert state(config) == (str(folder), False)
    begun(config)
    before = contents(folder)
    assert sorted(before) == ["config.json", "ledger.parquet", "split.parquet"]
    assert json.loads(before["config.json"])["options"] == config.identity()
    begun(config)
    assert contents(folder) == before
    (folder / "report.json").write_text('{"schema": 1}')
    assert state(config) == (str(folder), True)


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (None, "done", ""),
        (FlowersError("the disk is full"), "failed", "the disk is full"),
        (InputError("the photos changed"), "failed", "the photos changed"),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (KeyboardInterrupt(), "stopped", "the same command goes on"),
    ],
)
def test_the_status_says_how_it_ended(
    config: TrainConfig, folder: Path, error: BaseException | None, state: str, why: str
) -> None:
    run = begun(config)
    with suppress(BaseException), run.running():
        assert json.loads((folder / "status.json").read_text())["state"] == "running"
        if error:
            raise error
    found = json.loads((folder / "status.json").read_text())
    assert (found["state"], found["why"]) == (state, why)
    assert not opened(config).finished()


def test_a_run_that_was_killed_is_told_from_one_that_runs(config: TrainConfig, folder: Path) -> None:
    """A process that is killed leaves its status, and the kernel frees its lock."""
    run = begun(config)
    assert run.killed() is None
    code = "import sys; from flowers.runs import Run; run = Run(sys.argv[1])\n"
    code += "with run.held(), run.running(): print('at it', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at it\n"
        assert run.killed() is None
        process.kill()
        process.wait()
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    assert (run.killed() or "").startswith(f"process {process.pid} on ")
    assert runs.killed_runs(str(folder.parent)) == {run.name: run.killed()}
    with run.held(), run.running():
        assert run.killed() is None
    assert run.killed() is None
    (folder / "status.json").write_text("{")
    assert run.killed() is None


def test_a_full_disk_at_the_end_does_not_hide_what_ended_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = begun(config)

    def fail() -> None:
        with run.running():
            monkeypatch.setattr(storage, "write", full)
            raise FlowersError("the photo is a cat")

    with pytest.raises(FlowersError, match="the photo is a cat"):
        fail()


def test_another_process_at_the_same_run_is_named(config: TrainConfig, folder: Path) -> None:
    run = Run.of(config)
    with run.held():
        run.use(["/a", "/b"])
        assert run.used() == ["/a", "/b"]
        said = rf"--name: the run 'mine' is in use by process {os.getpid()} on \S+ since \S+; wait until that ends, or"
        with pytest.raises(InputError, match=said), Run.of(config).held():
            pytest.fail("two hold it")
        with Run.of(TrainConfig(storage=config.storage, name="other")).held():
            pass
        run.open(config)
        run.open(other(config, fresh=True))
        with pytest.raises(InputError, match="in use"), run.held():
            pytest.fail("two hold it")
    assert run.used() is None
    assert not folder.parent.exists(), "nothing was in it"


def test_fresh_deletes_no_run_for_photos_that_are_not_there(config: TrainConfig, folder: Path) -> None:
    begun(config)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match="there is nothing at"):
        train(other(config, fresh=True, data="/nowhere", weights="random"), Console(quiet=True), 0.0)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_lock_that_cannot_be_written(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(FlowersError) as caught, Run.of(config).held():
        pytest.fail("it was not written")
    assert len(str(caught.value).splitlines()) == 1
    assert ("no space left for" in str(caught.value)) == (number == errno.ENOSPC)
    assert isinstance(caught.value, InputError) == (number == errno.EACCES)


def test_a_run_that_never_began_may_change_its_mind(config: TrainConfig, folder: Path) -> None:
    opened(config)
    (folder / ".writing-x").mkdir(parents=True, exist_ok=True)
    assert state(other(config, epochs=3)) == (str(folder), False)


def test_what_is_kept_and_shown_may_change(config: TrainConfig) -> None:
    begun(config)
    assert not opened(other(config, verbose=True, feature_actors="2", workers="4", auto_batch=True)).finished()


def test_other_options_are_named_with_both_values(config: TrainConfig, folder: Path) -> None:
    begun(config)
    before = contents(folder)
    text = refusal(other(config, epochs=3, split=(0.8, 0.1, 0.1), weights="random"))
    assert "--epochs was not given, now 3" in text
    assert "--split was '0.7 0.27 0.03', now '0.8 0.1 0.1'" in text
    assert "--weights was 'imagenet', now 'random'" in text
    assert "--seed" not in text
    assert "--fresh" in text
    assert contents(folder) == before


def test_a_run_goes_on_after_an_upgrade(config: TrainConfig, folder: Path) -> None:
    begun(config)
    stored = json.loads((folder / "config.json").read_text())
    for name in ("layer_decay", "monitor"):
        del stored["options"][name]
    (folder / "config.json").write_text(json.dumps(stored))
    before = contents(folder)
    begun(config)
    assert contents(folder) == before
    text = refusal(other(config, monitor="accuracy"))
    assert "exists with other options (--monitor was 'log_loss', now 'accuracy'); choose another" in text
    stored["options"]["resize"] = "squash"
    (folder / "config.json").write_text(json.dumps(stored))
    assert "(--resize was 'squash', now there is no such option)" in refusal(config)


def test_fresh_starts_over(config: TrainConfig, folder: Path) -> None:
    begun(config)
    (folder / "report.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "x").write_text("x")
    beside = folder.parent / "cache" / "part"
    beside.parent.mkdir()
    beside.write_text("kept")
    assert state(other(config, epochs=3, fresh=True)) == (str(folder), False)
    assert contents(folder) == {}
    assert beside.read_text() == "kept"


def test_fresh_does_not_delete_what_it_is_given(config: TrainConfig, folder: Path) -> None:
    begun(config)
    suspects = folder / "suspects.csv"
    suspects.write_text("sha256,label,action\n")
    assert refusal(other(config, fresh=True, relabel=str(suspects))).startswith("--relabel: ")
    assert suspects.exists()


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("content", ["photo.jpg", "report.json", "roses/1.jpg"])
def test_a_foreign_folder_is_left_alone(config: TrainConfig, folder: Path, fresh: bool, content: str) -> None:
    (folder / content).parent.mkdir(parents=True)
    (folder / content).write_text("mine")
    text = refusal(other(config, fresh=fresh))
    assert "is not a run of this program; choose another name" in text
    assert contents(folder) == {content: b"mine"}


def test_a_storage_that_cannot_be_written(config: TrainConfig, folder: Path) -> None:
    folder.parent.write_text("a file")
    assert refusal(config).startswith("--storage: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        '{"options": 5}',
        '{"options": null}',
        '{"options": []}',
        '{"options": "x"}',
        "\xff",
    ],
)
def test_a_damaged_config(config: TrainConfig, folder: Path, text: str) -> None:
    begun(config)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json is damaged; --fresh starts over"):
        opened(config)
    assert state(other(config, fresh=True)) == (str(folder), False)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (ledger(21), "2 new, 0 gone, 0 relabelled, "),
        (ledger(19), "0 new, 2 gone, 0 relabelled, "),
        (ledger(labels="ac"), "0 new, 0 gone, 20 relabelled, "),
        (ledger(seed=1), "0 new, 0 gone, 0 relabelled, [1-9]"),
    ],
)
def test_changed_photos_are_refused(config: TrainConfig, folder: Path, now: Ledger, says: str) -> None:
    run = begun(config)
    before = contents(folder)
    with pytest.raises(InputError, match=f"photos changed since this run began .{says}.*--split-file.*--fresh"):
        run.begin(config, now)
    assert contents(folder) == before


def test_what_a_killed_process_left_half_written_is_swept(config: TrainConfig, folder: Path) -> None:
    run = begun(config)
    before = contents(folder)
    (folder / ".writing-0123").mkdir()
    (folder / ".writing-0123" / "model.keras").write_text("half")
    (folder / "split.parquet.0123456789abcdef0123456789abcdef.tmp").write_text("half")
    run.begin(config, ledger())
    assert contents(folder) == before
    assert not (folder / ".writing-0123").exists()


def test_renamed_files_are_the_same_photos(config: TrainConfig) -> None:
    run = begun(config)
    run.begin(config, ledger(folder="/elsewhere"))


def test_a_damaged_split_of_the_run_itself(config: TrainConfig, folder: Path) -> None:
    run = begun(config)
    for data in (b"", (folder / "split.parquet").read_bytes()[:-9], None):
        (folder / "split.parquet").write_bytes(data) if data is not None else (folder / "split.parquet").unlink()
        with pytest.raises(InputError, match=r"split\.parquet is damaged .*; --fresh starts over"):
            run.begin(config, ledger())


def test_the_tables_say_what_the_ledger_says(config: TrainConfig, folder: Path) -> None:
    found = ledger()
    begun(config, found)
    assert pq.read_table(folder / "ledger.parquet") == found.table
    split = pq.read_table(folder / "split.parquet")
    assert split.column_names == ["sha256", "label", "split", "path"]
    subsets = runs.read_split(str(folder / "split.parquet"))
    table = found.table.to_pylist()
    assert subsets == {row["sha256"]: SUBSETS.index(row["status"]) for row in table}


def test_a_later_run_keeps_the_subsets(config: TrainConfig, folder: Path) -> None:
    begun(config)
    known = runs.read_split(str(folder / "split.parquet"))
    rows = ledger(30).table.select(["path", "label", "sha256"]).to_pylist()
    later = settle(pa.Table.from_pylist(rows, schema=ROW), FRACTIONS, 5, 0.1, known)
    now = {row["sha256"]: SUBSETS.index(row["status"]) for row in later.table.to_pylist()}
    assert {digest: now[digest] for digest in known} == known


@pytest.mark.parametrize(
    "columns",
    [
        {"sha256": [b"\0" * 32]},
        {"split": ["train"]},
        {"sha256": [b"\0" * 32], "split": ["dev"]},
        {"sha256": [b"\0" * 32], "split": [None]},
        {"sha256": ["00" * 32], "split": ["train"]},
        {"sha256": [7], "split": ["train"]},
        {"sha256": [[b"\0" * 32]], "split": ["train"]},
    ],
)
def test_a_split_file_of_another_shape(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=r"--split-file: .*s\.parquet is not the split.parquet of a run: "):
        runs.read_split(str(tmp_path / "s.parquet"))


def test_a_split_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_text("")
    for name in ("text", "empty", "missing", "."):
        with pytest.raises(InputError, match="--split-file: ") as caught:
            runs.read_split(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 1


def test_the_hash_of_a_split() -> None:
    """It knows content, labels and subsets, not names."""
    one = runs.split_sha256(ledger())
    assert one == runs.split_sha256(ledger(folder="/elsewhere"))
    assert one not in {runs.split_sha256(now) for now in (ledger(21), ledger(labels="ac"), ledger(seed=1))}
    assert len(one) == 64
