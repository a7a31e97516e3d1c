"""Which version answers, and how another takes its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowers.bundle import MANIFEST, MODEL, _sha256, load_bundle, save_bundle
from flowers.errors import FlowersError, InputError
from flowers.predictor import Predictor
from flowers.published import PINNED, find
from serving.inference.attempts import Attempts
from serving.inference.versions import LoadedModel, Versions, _named, _state
from serving.options import ServeOptions
from tests.toys import by_colour

SIZE, CLASSES = 8, ["red", "green", "blue"]
Publish = Callable[[int], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    made = by_colour(SIZE, CLASSES)
    save_bundle(made.model, {**made.manifest, "versions": {"keras": "3"}, "saved": 1_000}, str(folder))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def publish(bundle: Path, models: Path) -> Publish:
    def made(number: int) -> Path:
        folder = models / "flowers" / str(number)
        shutil.copytree(bundle, folder)
        return folder

    return made


def options(models: Path, **given: object) -> ServeOptions:
    return ServeOptions(bundle=str(models), watch_s=0, tuning={"max_batch_size": 2}, **given)  # type: ignore[arg-type]


def opened(models: Path, **given: object) -> Versions:
    return Versions(options(models, **given), Attempts(str(models.parent / "attempts")))


def damage(folder: Path) -> None:
    data = bytearray((folder / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MODEL).write_bytes(data)


def test_what_can_be_served(bundle: Path, models: Path, publish: Publish, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bundle, run / "best")
    assert find(str(bundle), "flowers") == {1000: str(bundle)}
    assert find(str(run), "flowers") == {1000: str(run / "best")}
    for number in (10, 9):
        publish(number)
    (models / "flowers" / "11").mkdir()  # still being written
    (models / "flowers" / "notes").mkdir()
    expected = {number: str(models / "flowers" / str(number)) for number in (9, 10)}
    assert find(str(models), "flowers") == find(str(models / "flowers"), "flowers") == expected
    assert list(find(str(models), "flowers")) == [9, 10]
    for nothing in (tmp_path / "none", tmp_path, models / "flowers" / "notes"):
        with pytest.raises(InputError, match="nothing to serve"):
            find(str(nothing), "flowers")


def test_a_new_version_takes_the_place_of_the_old(models: Path, publish: Publish) -> None:
    publish(1)
    versions = opened(models)
    old = versions.current
    assert (old.number, versions.numbers, versions.error) == (1, (1,), None)
    assert not versions.refresh()
    publish(3)
    assert versions.refresh()
    assert (versions.current.number, versions.numbers) == (3, (1, 3))
    photo = np.full((1, SIZE, SIZE, 3), (0, 200, 0), np.uint8)
    assert versions.current.predictor.run(photo)[0].argmax() == old.predictor.run(photo)[0].argmax() == 1


def test_a_damaged_version_is_refused_once_and_the_old_one_answers(
    models: Path, publish: Publish, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    versions = opened(models)
    damage(publish(2))
    assert not versions.refresh()
    assert versions.current.number == 1
    assert versions.error is not None
    assert "version 2 is refused" in versions.error
    assert "damaged" in versions.error
    loads: list[int] = []
    load = versions._load

    def counted(number: int, uri: str, state: str) -> LoadedModel:
        loads.append(number)
        return load(number, uri, state)

    monkeypatch.setattr(versions, "_load", counted)
    assert not versions.refresh()
    assert not loads, "the same files are not read again and again"
    assert not versions.refresh(again=True)
    assert loads == [2]
    assert "version 2 is refused" in (versions.error or "")
    shutil.rmtree(models / "flowers" / "2")
    publish(2)
    assert versions.refresh()
    assert versions.current.number == 2
    assert versions.error is None


def test_another_decoder_is_refused(models: Path, publish: Publish) -> None:
    publish(1)
    versions = opened(models)
    manifest = publish(2) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "decoder_version": "0"}))
    assert not versions.refresh()
    assert "decoder" in (versions.error or "")
    assert versions.current.number == 1


def test_at_the_start_the_newest_that_can_be_loaded_answers(models: Path, publish: Publish) -> None:
    for number in (1, 2):
        publish(number)
    damage(publish(3))
    versions = opened(models)
    assert versions.current.number == 2
    assert "version 3 is refused" in (versions.error or "")
    damage(models / "flowers" / "1")
    damage(models / "flowers" / "2")
    with pytest.raises(FlowersError, match="version 3 is refused"):
        opened(models)


def test_roll_back_by_version(models: Path, publish: Publish) -> None:
    for number in (1, 2, 3):
        publish(number)
    versions, other = opened(models), opened(models)
    versions.pin(2)
    assert (models / "flowers" / PINNED).read_text() == "2"
    assert versions.refresh()
    assert other.refresh(), "other servers of these versions follow"
    assert versions.current.number == other.current.number == 2
    publish(4)
    assert not versions.refresh()
    versions.pin(None)
    assert versions.refresh()
    assert versions.current.number == 4
    with pytest.raises(InputError, match=r"version 9 is not there, only 1, 2, 3, 4"):
        versions.pin(9)


def test_the_version_of_the_options_stays(models: Path, publish: Publish) -> None:
    for number in (1, 2):
        publish(number)
    versions = opened(models, version=1)
    assert versions.current.number == 1
    assert not versions.refresh()
    assert versions.error is None
    with pytest.raises(InputError, match="version 7 is wanted and not there, only 1, 2"):
        opened(models, version=7)


def test_a_folder_that_vanishes_changes_nothing(models: Path, publish: Publish) -> None:
    publish(1)
    versions = opened(models)
    models.rename(models.parent / "elsewhere")
    assert not versions.refresh()
    assert versions.current.number == 1
    assert "nothing to serve" in (versions.error or "")
    (models.parent / "elsewhere").rename(models)
    assert not versions.refresh()
    assert versions.error is None


def test_a_run_that_is_trained_again_is_a_new_version(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "run" / "best")
    versions = opened(tmp_path / "run")
    made = load_bundle(str(tmp_path / "run"))
    save_bundle(made.model, {**made.manifest, "saved": 2_000}, made.uri)
    assert versions.refresh()
    assert versions.current.number == 2_000
    with pytest.raises(InputError, match="nothing to choose"):
        versions.pin(1_000)


def test_a_version_that_answers_otherwise_than_when_it_was_saved_is_refused(models: Path, publish: Publish) -> None:
    publish(1)
    manifest = json.loads((publish(2) / MANIFEST).read_text())
    manifest["check"] = [row[::-1] for row in manifest["check"]]
    manifest["sha256"] = _sha256(manifest)
    (models / "flowers" / "2" / MANIFEST).write_text(json.dumps(manifest))
    versions = opened(models)
    assert versions.current.number == 1
    assert "version 2 is refused" in (versions.error or "")
    assert "answers otherwise than when it was saved" in (versions.error or "")


def test_a_version_of_too_many_bytes_or_too_much_memory_is_refused(
    models: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    with pytest.raises(FlowersError, match=r"version 1 is refused: the bundle '.*' has \d+ bytes; at most 1000"):
        opened(models, max_bundle_bytes=1000)
    versions = opened(models)
    publish(2)
    monkeypatch.setattr(Predictor, "warm", lambda self: len(bytearray(1 << 36)))
    assert not versions.refresh()
    assert versions.error == "version 2 is refused: it takes much more memory than it has bytes"
    assert versions.current.number == 1


def test_a_version_that_ended_the_process_is_not_loaded_again(models: Path, publish: Publish) -> None:
    for number in (1, 2):
        publish(number)
    folder = str(models / "flowers" / "2")
    attempts = Attempts(str(models.parent / "attempts"))
    with attempts.noted(_named(folder, _state(folder))):
        assert opened(models).current.number == 2  # another replica loads it just now
    if not (child := os.fork()):
        with attempts.noted(_named(folder, _state(folder))):
            os._exit(9)
    os.waitpid(child, 0)
    versions = opened(models)
    assert versions.current.number == 1
    assert "version 2 is refused: a replica ended while it loaded it" in (versions.error or "")
    assert not versions.refresh()
    assert versions.refresh(again=True)
    assert (versions.current.number, versions.error) == (2, None)
    shutil.rmtree(models / "flowers" / "1")
    assert opened(models).current.number == 2  # where there is no other, it is tried


def test_a_version_that_ended_the_process_beside_an_old_one(models: Path, publish: Publish) -> None:
    publish(1)
    versions = opened(models)
    folder = str(publish(2))
    attempts = Attempts(str(models.parent / "attempts"))
    if not (child := os.fork()):
        with attempts.noted(_named(folder, _state(folder))):
            os._exit(9)
    os.waitpid(child, 0)
    assert not versions.refresh()
    assert "version 2 is refused" in (versions.error or "")
    assert versions.current.number == 1
