"""Publishing: the next number, whole or not at all, only if it is good enough, and back again."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from flowers import cli, published, storage
from flowers.bundle import MANIFEST, load_bundle
from flowers.config import PublishOptions
from flowers.errors import DamagedFile, FlowersError, GateNotMet, InputError
from flowers.pipelines.publish import publish
from flowers.published import PINNED, Record
from flowers.runs import Run
from jobs.publish import main
from serving.inference.attempts import Attempts
from serving.inference.versions import Versions
from serving.options import ServeOptions
from tests.toys import by_colour, coloured, trained

SIZE, CLASSES = 8, ["red", "green", "blue"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[str, str]]:
    """Six of each class: four of them for the test, one to train on, one to validate."""
    folder = tmp_path_factory.mktemp("photos")
    subsets = ["train", "validation", *["test"] * 4]
    found = coloured(folder, CLASSES, 6)
    return {path: (label, subsets[int(path.stem[-1])]) for path, label in found.items()}


@pytest.fixture(scope="module")
def good(photos: dict[Path, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose bundle has all test photos right."""
    return trained(tmp_path_factory.mktemp("good") / "run", by_colour(SIZE, CLASSES), photos, right=12)


@pytest.fixture(scope="module")
def bad(photos: dict[Path, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose bundle takes red for green, and green for red; another test photo trained it."""
    moved = {path: (label, "train" if path.stem == "blue-5" else subset) for path, (label, subset) in photos.items()}
    made = by_colour(SIZE, ["green", "red", "blue"])
    return trained(tmp_path_factory.mktemp("bad") / "run", made, moved, right=4)


def run(*words: object, code: int = 0) -> str:
    """What the command prints, or its line of error."""
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "console", lambda verbose: patched(printed))
        found, text = cli.outcome(main, "python -m jobs.publish", [str(word) for word in words])
    assert found == code, text
    assert "\n" not in text
    return text or "\n".join(printed)


def patched(printed: list[str]) -> Console:
    console = Console(quiet=True)
    console.print = lambda text, **_: printed.append(str(text))  # type: ignore[method-assign]
    return console


def test_versions_are_published_listed_and_rolled_back(tmp_path: Path, good: Run, bad: Run) -> None:
    model = tmp_path / "models" / "flowers"
    assert run(good.uri, "--to", model) == f"published {model}/1"
    versions = Versions(ServeOptions(bundle=str(model.parent), watch_s=0), Attempts(str(tmp_path / "attempts")))
    assert versions.current.number == 1
    run(bad.bundle, "--to", model)
    assert versions.refresh()
    assert versions.current.predictor.bundle.classes == ("green", "red", "blue"), "a server takes the new version"
    assert load_bundle(str(model / "2")).manifest == load_bundle(bad.uri).manifest
    first, second = run("--to", model, "--list").splitlines()
    assert first.split()[0] == "1"
    assert f"3 classes  test 100.0 % (75.8–100.0 %, n = 12)  from {good.uri}" in first
    assert second.endswith(f"from {bad.uri}  answers")
    assert "version 1 of" in run("--to", model, "--rollback")
    assert (model / PINNED).read_text() == "1"
    assert versions.refresh()
    assert versions.current.number == 1, "and goes back"
    assert "version 1 is pinned: 3 answers after --unpin" in run(model / "2", "--to", model)
    assert published.read_record(str(model / "3")).run == bad.uri  # type: ignore[union-attr]
    assert not versions.refresh()
    assert "there is none before it" in run("--to", model, "--rollback", code=2)
    run("--to", model, "--unpin")
    assert versions.refresh()
    assert versions.current.number == 3
    (model / "2" / "labels.txt").write_text("other\n")
    why = f"{model}/2 is damaged: labels.txt has sha256 "
    line = run("--to", model, "--list").splitlines()[1]
    assert f"  UNUSABLE: {why}" in line
    assert line.casefold().count("damaged") == 1
    assert f"--pin: version 2 cannot answer: {why}" in run("--to", model, "--pin", 2, code=2)
    shutil.copytree(model / "2", model / "4")
    refused = "is refused by servers, which go on with what they have"
    assert f"version 4 of {model} {refused}: {model / '4'} is damaged" in run("--to", model, "--unpin")
    assert f"{refused}  UNUSABLE: " in run("--to", model, "--list").splitlines()[3]
    shutil.rmtree(model / "4")
    for gate in (("--min-accuracy", 0.9), ("--not-worse-than", model), ("--mlflow", "sqlite:///x.db")):
        assert f"{gate[0]}: received" in run("--to", model, "--rollback", *gate, code=2)
    assert "version 1 of" in run("--to", model, "--rollback"), "a damaged one is passed over"
    assert [path.name for path in model.iterdir() if path.name.startswith(".")] == []


def test_publishers_at_once_get_a_number_each(tmp_path: Path, good: Run) -> None:
    model, bundle = tmp_path / "flowers", load_bundle(good.uri)
    (model / "2").mkdir(parents=True)  # somebody else's, still being written
    (model / "2" / "model.keras").touch()
    numbers: list[int] = []
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        for _ in range(3):
            number = published.publish(bundle, str(model), Record(run=name, published="now"))
            record = published.read_record(str(model / str(number)))
            assert record is not None
            assert record.run == name
            numbers.append(number)

    threads = [threading.Thread(target=work, args=(str(index),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(3, 15))
    found = published.versions(str(model))
    assert list(found) == sorted(numbers)
    for uri in found.values():
        load_bundle(uri)
    assert Counter(published.read_record(uri).run for uri in found.values()) == dict.fromkeys("0123", 3)  # type: ignore[union-attr]
    assert [path.name for path in (model / "2").iterdir()] == ["model.keras"]


def test_a_bucket(bucket: Path, good: Run) -> None:
    for number in (1, 2):
        assert run(good.uri, "--to", "mem://b/flowers") == f"published mem://b/flowers/{number}"
    assert run("--to", "mem://b/flowers", "--rollback") == "version 1 of mem://b/flowers answers: pinned"
    assert (bucket / "b" / "flowers" / PINNED).read_text() == "1"
    assert run("--to", "mem://b/flowers", "--list").splitlines()[0].endswith("pinned: answers")
    (bucket / "b" / "flowers" / "2" / "model.keras").write_bytes(b"")
    assert "UNUSABLE" in run("--to", "mem://b/flowers", "--list").splitlines()[1]


@pytest.mark.parametrize("damaged", ["model.keras", "network.bin", MANIFEST])
def test_a_damaged_bundle_is_refused_before_anything_is_written(tmp_path: Path, good: Run, damaged: str) -> None:
    source = tmp_path / "bundle"
    source.mkdir()
    for path in Path(good.bundle).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    data = bytearray((source / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (source / damaged).write_bytes(data)
    assert damaged in run(source, "--to", tmp_path / "models" / "flowers", code=1)
    assert not (tmp_path / "models").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, good: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(uri: str, data: bytes) -> None:
        if uri.endswith(MANIFEST):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(uri, data)

    write = storage.write
    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(FlowersError, match="no space left"):
        published.publish(load_bundle(good.uri), str(tmp_path), Record(run="", published=""))
    assert list(tmp_path.iterdir()) == []


def test_the_accuracy_that_is_required(tmp_path: Path, good: Run) -> None:
    model = tmp_path / "flowers"
    assert "required" in run(good.uri, "--to", model, "--min-accuracy", 0.75)
    text = run(good.uri, "--to", model, "--min-accuracy", 0.76, code=3)
    assert "test accuracy 100.0 % (75.8–100.0 %, n = 12): the lower end of the interval has to be 76.0 %" in text
    assert sorted(path.name for path in model.iterdir()) == ["1"]
    Path(good.bundle, MANIFEST).rename(tmp_path / MANIFEST)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    try:
        del manifest["sha256"]
        Path(good.bundle, MANIFEST).write_text(json.dumps({**manifest, "weights_sha256": "of another training"}))
        assert "no report on the bundle" in run(good.uri, "--to", model, "--min-accuracy", 0.1, code=2)
    finally:
        (tmp_path / MANIFEST).rename(Path(good.bundle, MANIFEST))


def test_not_worse_than_what_answers(tmp_path: Path, good: Run, bad: Run) -> None:
    model, at_first = tmp_path / "flowers", ("--not-worse-than", tmp_path / "flowers")
    assert "no version yet" in run(good.uri, "--to", model, *at_first)
    text = run(bad.uri, "--to", model, *at_first, code=3)
    assert "worse on 11 test photos: the new one has 3 right" in text
    assert "0 gained, 8 lost (p = 0.004" in text
    assert list(published.versions(str(model))) == [1]
    said = run(good.uri, "--to", model, "--not-worse-than", bad.uri)
    assert "12 test photos: the new one has 12 right" in said
    assert "1 of them the old one was trained on, which flatters it" in said
    assert list(published.versions(str(model))) == [1, 2]


def test_test_photos_that_are_gone_cannot_be_compared(tmp_path: Path, bad: Run) -> None:
    photos = {path: (label, "test") for path, label in coloured(tmp_path / "photos", CLASSES, 1).items()}
    one = trained(tmp_path / "run", by_colour(SIZE, CLASSES), photos)
    (tmp_path / "photos" / "green-0.png").write_bytes(b"another")
    text = run(one.uri, "--to", tmp_path / "flowers", "--not-worse-than", bad.uri, code=2)
    assert "green-0.png cannot be read any more: unreadable: changed since" in text
    assert not (tmp_path / "flowers").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "{}/flowers"], "received nothing to do, required is one of RUN"),
        (["{}", "--to", "{}/flowers", "--list"], "received RUN and --list"),
        (["--to", "{}/flowers", "--list", "--pin", "1"], "received --list and --pin"),
        (["--to", "{}/flowers", "--list"], "there is no version in"),
        (["{}", "--to", "{}/flowers"], "there is no bundle at"),
        (["{}"], "--to is missing"),
        (["{}", "--to", "{}/7"], "required is MODELS/NAME"),
        (["--to", "{run}", "--list"], "which is a run; required is MODELS/NAME"),
        (["--to", "{run}/best", "--list"], "which is a bundle; required"),
        (["{run}", "--to", "{}/models"], "which is a folder of models: 'flowers'"),
        (["{run}", "--to", "{}/file"], "cannot be"),
        (["{run}", "--to", "{}/photos"], "/photos holds 'roses' and is no model of this program; choose another --to"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, good: Run, words: list[str], said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "photos" / "roses").mkdir(parents=True)
    (tmp_path / "models" / "flowers" / "1").mkdir(parents=True)
    (tmp_path / "models" / "flowers" / "1" / MANIFEST).touch()
    filled = [word.replace("{}", str(tmp_path)).replace("{run}", good.uri) for word in words]
    assert said in run(*filled, code=2)


def test_errors_of_the_library_are_those_of_the_command(tmp_path: Path, good: Run) -> None:
    options = PublishOptions(to=str(tmp_path / "flowers"), min_accuracy=1)
    with pytest.raises(GateNotMet):
        publish(good.uri, options, Console(quiet=True))
    with pytest.raises(InputError):
        publish(str(tmp_path), options, Console(quiet=True))
    assert issubclass(DamagedFile, FlowersError)
