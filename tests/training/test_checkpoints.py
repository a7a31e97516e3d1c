"""Checkpoints: what was saved is read back exactly, or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowers import storage
from flowers.errors import DamagedFile, FlowersError
from flowers.training.checkpoints import ARRAYS, MANIFEST, STATE, Checkpoint, load, newest, prune, save, uri_of


def checkpoint(epoch: int, best: int | None = None) -> Checkpoint:
    """The state after an epoch, which is the best one unless another is named."""
    arrays: dict[str, Any] = {
        "head/kernel": np.random.default_rng(epoch).normal(size=(5, 3)).astype(np.float32),
        "half": np.arange(4, dtype=np.float16),
        "iterations": np.array(epoch, dtype=np.int64),
        "order": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
        "flags": np.array([True, False]),
        "nothing": np.zeros((0, 4), np.float32),
        "special": np.array([np.nan, np.inf, -0.0, 5e-324]),
    }
    state = {"best": best or epoch, "lines": [{"epoch": 1, "log_loss": 0.1 + 0.2}], "ü": None}
    return Checkpoint(epoch, arrays, state)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    assert list(one.arrays) == list(other.arrays)
    for name, array in one.arrays.items():
        assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape)
        assert array.tobytes() == other.arrays[name].tobytes()
    assert (one.epoch, one.state) == (other.epoch, other.state)
    return True


def test_round_trip(tmp_path: Path) -> None:
    uri = save(str(tmp_path / "checkpoints"), checkpoint(7))
    assert uri == str(tmp_path / "checkpoints" / "epoch-0007")
    assert same(load(uri), checkpoint(7))
    assert sorted(path.name for path in Path(uri).iterdir()) == sorted([ARRAYS, STATE, MANIFEST])
    assert [path.name for path in Path(uri).parent.iterdir()] == ["epoch-0007"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(str(tmp_path), checkpoint(7))
    other = Checkpoint(7, {"a": np.zeros(1)}, {})
    assert same(load(save(str(tmp_path), other)), other)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0007"]


def failing(monkeypatch: pytest.MonkeyPatch, where: str, error: OSError) -> None:
    """Lets one of the steps of saving fail, when half of it is done."""

    def arrays(file: Any, **_: object) -> None:
        file.write(b"half")
        raise error

    def other(*_: object, **__: object) -> None:
        raise error

    if where == "arrays":
        monkeypatch.setattr(np, "savez", arrays)
    elif where == "manifest":
        write = storage.write

        def some(uri: str, data: bytes) -> None:
            if uri.endswith(MANIFEST):
                raise error
            write(uri, data)

        monkeypatch.setattr(storage, "write", some)
    elif where == "folder":
        monkeypatch.setattr(os, "makedirs", other)
    else:
        monkeypatch.setattr(*{"publish": (storage, "publish"), "rename": (os, "rename")}[where], other)


WHERE = ["folder", "arrays", "manifest", "publish", "rename"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_one_line_and_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    save(str(tmp_path), checkpoint(1))
    save(str(tmp_path), checkpoint(2))
    with monkeypatch.context() as patch:
        failing(patch, where, OSError(number, os.strerror(number)))
        for epoch in (2, 3):  # one that is there already, too
            with pytest.raises(FlowersError) as caught:
                save(str(tmp_path), checkpoint(epoch))
            text = str(caught.value)
            assert len(text.splitlines()) == 1
            assert f"checkpoint of epoch {epoch} in {tmp_path}" in text
            assert os.strerror(number) in text
            assert not isinstance(caught.value, DamagedFile)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0002"]
    found, skipped = newest(str(tmp_path))
    assert found is not None
    assert same(found, checkpoint(2))
    assert not skipped
    assert same(load(uri_of(str(tmp_path), 1)), checkpoint(1))
    assert same(load(save(str(tmp_path), checkpoint(3))), checkpoint(3))  # there is room again


@pytest.mark.parametrize("where", WHERE)
def test_another_failure_is_passed_on_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(str(tmp_path), checkpoint(1))
    failing(monkeypatch, where, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        save(str(tmp_path), checkpoint(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest(str(tmp_path)) == (None, [])
    assert newest(str(tmp_path / "none")) == (None, [])


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("name", [ARRAYS, STATE, MANIFEST])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "flipped", "folder"])
def test_a_damaged_newest_is_skipped_with_a_line(tmp_path: Path, name: str, how: str) -> None:
    for epoch in (1, 2, 3):
        save(str(tmp_path), checkpoint(epoch))
    for epoch in (2, 3):
        file = tmp_path / f"epoch-000{epoch}" / name
        data = file.read_bytes()
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how != "missing":
            file.write_bytes({"empty": b"", "cut": data[:-1], "flipped": flip(data)}[how])
    found, lines = newest(str(tmp_path))
    assert found is not None
    assert same(found, checkpoint(1))
    assert len(lines) == 2
    for epoch, line in zip((3, 2), lines, strict=True):
        assert line.startswith("skipped a checkpoint that cannot be used: ")
        assert f"epoch-000{epoch}" in line


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([ARRAYS, STATE, MANIFEST]), st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, name: str, place: int, bit: int) -> None:
    """Either it is refused, or (blanks in the manifest) what is loaded is what was saved."""
    uri = save(str(tmp_path), checkpoint(7))
    file = Path(uri) / name
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 1 << bit
    file.write_bytes(data)
    try:
        found = load(uri)
    except DamagedFile:
        return
    assert name == MANIFEST
    assert same(found, checkpoint(7))


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "{}", '{"state.npz": 1}', "{", "\xff"])
def test_a_manifest_of_another_shape(tmp_path: Path, text: str) -> None:
    uri = save(str(tmp_path), checkpoint(7))
    (Path(uri) / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile):
        load(uri)


def test_half_written_folders_are_no_checkpoints(tmp_path: Path) -> None:
    save(str(tmp_path), checkpoint(1))
    for name in (".writing-abc", "epoch-0009.0123.old", "epoch-x", "epoch-"):
        (tmp_path / name).mkdir()
    (tmp_path / "epoch-0002").mkdir()
    (tmp_path / "epoch-0002" / ARRAYS).write_bytes(b"")
    (tmp_path / "epoch-0003").write_bytes(b"")
    found, lines = newest(str(tmp_path))
    assert found is not None
    assert found.epoch == 1
    assert len(lines) == 2


def spoil(folder: Path, epoch: int, how: str) -> None:
    """Damages the checkpoint of an epoch, or removes it."""
    target = folder / f"epoch-{epoch:04d}"
    if how == "missing":
        shutil.rmtree(target)
    else:
        (target / ARRAYS).write_bytes(flip((target / ARRAYS).read_bytes()))


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_checkpoint_whose_best_is_lost_is_skipped_as_well(tmp_path: Path, how: str) -> None:
    """The run could go on with it, but would end without what it was made for."""
    for epoch, best in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 3)):
        save(str(tmp_path), checkpoint(epoch, best))
    found, skipped = newest(str(tmp_path))
    assert found is not None
    assert (found.epoch, skipped) == (5, [])
    spoil(tmp_path, 3, how)
    found, skipped = newest(str(tmp_path))
    assert found is not None
    assert same(found, checkpoint(2))
    assert len(skipped) == (2 if how == "missing" else 3)
    assert all("epoch-0003" in line and len(line.splitlines()) == 1 for line in skipped)
    spoil(tmp_path, 2, how)
    spoil(tmp_path, 1, how)
    found, skipped = newest(str(tmp_path))
    assert found is None
    assert len(skipped) == (2 if how == "missing" else 5)


class Boom:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    """Not even with the right hash, neither in an array nor in its place."""
    inside = io.BytesIO()
    np.savez(inside, a=np.array([Boom()], dtype=object))
    for data in (inside.getvalue(), pickle.dumps(Boom())):
        uri = save(str(tmp_path), checkpoint(7))
        (Path(uri) / ARRAYS).write_bytes(data)
        manifest = json.loads((Path(uri) / MANIFEST).read_text())
        manifest[ARRAYS] = storage.sha256(data)
        (Path(uri) / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(DamagedFile):
            load(uri)


@pytest.mark.parametrize(
    ("epochs", "keep", "left"),
    [
        (range(1, 6), {2, 4, 5}, [2, 4, 5]),
        (range(1, 6), {5}, [5]),
        (range(1, 3), {0, 1, 7}, [1]),
        ([1], set(), []),
        ([], {0}, []),
        ([1, 9998, 9999, 10000, 10001], {9998, 10000, 10001}, [9998, 10000, 10001]),
    ],
)
def test_prune(tmp_path: Path, epochs: Any, keep: set[int], left: list[int]) -> None:
    for epoch in epochs:
        save(str(tmp_path), checkpoint(epoch))
    (tmp_path / "epoch-x").mkdir()
    prune(str(tmp_path), keep)
    (tmp_path / "epoch-x").rmdir()
    assert sorted(int(name[6:]) for name in storage.names(str(tmp_path))) == left
    found, _ = newest(str(tmp_path))
    assert (found.epoch if found else None) == (max(left) if left else None)
