"""The options: a wrong one is named, and only what decides the result is part of a run's identity."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers import config as module
from flowers.config import TrainConfig, top_said
from flowers.errors import InputError
from flowers.model.registry import BACKBONES
from flowers.options import described, flag

OPTIONS = described(TrainConfig)
NAN, INF = math.nan, math.inf

WRONG: dict[str, list[Any]] = {
    "data": [""],
    "per_class": [0, -1, 1],
    "split": [
        (0.7, 0.3),
        (0.7, 0.2, 0.2),
        (0, 0.9, 0.1),
        (0.9, 0, 0.1),
        (1.2, -0.1, -0.1),
        (NAN, 0.5, 0.5),
        (),
        (0.25, 0.25, 0.25, 0.25),
    ],
    "layout": ["folders"],
    "group_by": ["(", "["],
    "near_duplicates": ["yes"],
    "max_bad_fraction": [-0.1, 1.1, NAN],
    "max_pixels": [0],
    "backbone": ["resnet18", ""],
    "image_size": [0, 31, -1],
    "precision": ["float16"],
    "augment": ["mixup", ""],
    "cache_budget": [-1, NAN, INF],
    "epochs": [0, -1],
    "head_epochs": [0, -1],
    "batch_size": [0],
    "optimizer": ["adam"],
    "learning_rate": [0, -1, INF, NAN],
    "tail_learning_rate": [0, -1, INF, NAN],
    "layer_decay": [0, -1, 1.1, NAN],
    "schedule": ["linear"],
    "warmup_epochs": [-1, NAN, INF],
    "momentum": [1, -0.1, NAN],
    "weight_decay": [-1, NAN, INF],
    "l2": [-1, NAN, INF],
    "label_smoothing": [1, -0.1, NAN],
    "dropout": [1, -0.1, NAN],
    "class_weights": ["auto"],
    "monitor": ["loss"],
    "patience": [-1],
    "min_delta": [-1, NAN, INF],
    "folds": [0, 1, -3],
    "time_limit": ["5", "0s", "1m1h"],
    "seed": [-1, 1 << 31, 1 << 64],
    "workers": ["0", "-2", "", "many", "1.5", "2..4", "1:4", "²"],
    "device": ["tpu", ""],
    "cpus_per_worker": [0, -1],
    "gpus_per_worker": [-1, NAN, INF],
    "max_failures": [-1],
    "wait_s": [-1, 0.5],
    "feature_actors": ["-1", "1.5", "", "many", "²"],
    "storage": [""],
    "name": ["", ".", "..", "a/b", "a\\b", "a\0b", "cache", "datasets"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**{name: value})
    text = str(caught.value)
    shown = " ".join(map(str, value)) if name == "split" else value
    assert text.startswith(f"{flag(name)}: received {shown!r}, required is ")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("workers", ["2..4", "1:4"])
def test_a_number_of_workers_that_changes_is_refused_with_the_reason(workers: str) -> None:
    with pytest.raises(InputError, match=r"one number: .* would change which photos share a step"):
        TrainConfig(workers=workers)


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_the_head_alone_takes_no_random_views(augment: Literal["standard", "strong"]) -> None:
    with pytest.raises(
        InputError, match=f"--augment: received '{augment}', required is none, flip or crops .*--trainable"
    ):
        TrainConfig(augment=augment)
    TrainConfig(augment=augment, trainable="stage5")
    TrainConfig(augment="flip")
    TrainConfig(augment="crops")


@pytest.mark.parametrize(("device", "gpus", "wanted"), [("cpu", 0.5, "none, or 0"), ("gpu", 0, "none, or more than 0")])
def test_gpus_beside_another_device(device: Literal["cpu", "gpu"], gpus: float, wanted: str) -> None:
    with pytest.raises(InputError, match=f"^--gpus-per-worker: .*, required is {wanted}, beside --device {device}$"):
        TrainConfig(device=device, gpus_per_worker=gpus)
    TrainConfig(device=device)


def test_every_option_has_help_a_group_and_a_word_on_the_result() -> None:
    assert TrainConfig().split == (0.7, 0.27, 0.03)
    for option in OPTIONS.values():
        assert len(option.help) > 10
        assert option.help.endswith(".")
        assert option.group
        assert option.result in (True, False), f"{option.name}: is it deciding or neutral?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("backbone", name) for name in BACKBONES],
        *[("monitor", name) for name in OPTIONS["monitor"].choices],
        ("split", [0.8, 0.2, 0]),
        ("seed", (1 << 31) - 1),
        ("feature_actors", "0"),
        ("max_bad_fraction", 0.0),
        ("per_class", 2),
        ("image_size", 32),
        ("name", "my run"),
        ("workers", "auto"),
        ("workers", "12"),
        ("cpus_per_worker", 1),
        ("gpus_per_worker", 0),
        ("gpus_per_worker", 0.25),
        ("max_failures", 0),
        ("cache_budget", 0),
        ("layer_decay", 1),
        ("trainable", "stage3"),
        ("trainable", "block_12"),
        ("trainable", "all"),
    ],
)
def test_right_values_pass(name: str, value: Any) -> None:
    TrainConfig(**{name: value})


WHERE: dict[str, Any] = {
    "storage": "x", "name": "x", "fresh": True, "verbose": True, "feature_actors": "2", "workers": "2",
    "cpus_per_worker": 2, "gpus_per_worker": 0.5, "wait_s": 60, "max_failures": 0, "cache_budget": 1,
    "auto_batch": True, "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WHERE.items())
def test_where_and_how_loud_is_no_part_of_the_identity(name: str, value: Any) -> None:
    config = TrainConfig(**{name: value})
    assert config.identity() == TrainConfig().identity()
    assert name not in config.identity()


# What somebody decided of one photo.
DECIDED = str(Path(__file__).parent / "data" / "suspects.csv")
CHANGES: dict[str, Any] = {
    "data": "elsewhere", "per_class": 9, "split": (0.8, 0.1, 0.1), "split_file": "s.parquet", "max_bad_fraction": 0.2,
    "max_pixels": 9, "backbone": "resnet50", "weights": "random", "image_size": 64, "precision": "float32",
    "engine": "tensorflow", "root": "elsewhere", "class_names": "names.txt", "layout": "split", "group_by": "parent",
    "near_duplicates": "drop", "relabel": DECIDED,
    "epochs": 9, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant",
    "warmup_epochs": 2.0, "momentum": 0.5, "weight_decay": 0.1, "l2": 0.1, "label_smoothing": 0.1, "dropout": 0.0,
    "class_weights": "balanced", "monitor": "accuracy", "patience": 3, "min_delta": 0.1, "seed": 7,
    "trainable": "stage5", "augment": "flip", "head_epochs": 9, "tail_learning_rate": 0.1, "layer_decay": 0.5,
    "folds": 5, "time_limit": "5m", "search": True,
}  # fmt: skip


def test_every_other_option_is() -> None:
    assert set(CHANGES) | set(WHERE) == set(OPTIONS), "a new option: say in CHANGES or WHERE what it decides"
    assert not set(CHANGES) & set(WHERE)
    plain = TrainConfig()
    for name, value in CHANGES.items():
        changed = TrainConfig(**{name: value})
        assert {key for key, was in plain.identity().items() if changed.identity()[key] != was} == {name}
        assert changed.run_name() != plain.run_name()


# Options that are new since: they count as their default, and the others decide what they did.
ADDED = {"folds", "search", "time_limit", "relabel"}
ADDED |= {"engine", "root", "class_names", "layout", "group_by", "near_duplicates"}
# Options that had another default: given here with it, which `differences` takes for the same where it means the same.
DEFAULTS_WERE = {"augment": "none", "label_smoothing": 0.0, "monitor": "log_loss"}
# What the dataclass that came before gave; numbers in JSON have the type that the command line gives them.
IDENTITIES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "e2a624e093efc467", "sample-resnet50v2-44136fa3"),
    ({"name": "mine", "workers": "4", "auto_batch": True}, "e2a624e093efc467", "mine"),
    (
        {
            "data": "/x/photos", "backbone": "mobilenetv2", "weights": "random", "image_size": 64, "epochs": 3,
            "per_class": 12,
        },
        "bb157ebfcecc200b",
        "photos-mobilenetv2-84457db5",
    ),
    (
        {
            "split": (0.8, 0.2, 0), "trainable": "stage5", "augment": "strong", "learning_rate": 0.5,
            "warmup_epochs": 2.0, "seed": 7, "optimizer": "sgd", "monitor": "accuracy", "split_file": "s.parquet",
        },
        "ad04045cc99a50e7",
        "sample-resnet50v2-d7db2a5b",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sha256", "name"), IDENTITIES)
def test_identity_and_name_stay(options: dict[str, Any], sha256: str, name: str) -> None:
    config = TrainConfig(**options)
    identity = {key: value for key, value in config.identity().items() if key not in ADDED}
    identity |= {key: was for key, was in DEFAULTS_WERE.items() if identity[key] is None}
    text = json.dumps(identity, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == sha256
    assert config.run_name() == name


def test_corrections_count_by_what_they_say(tmp_path: Path) -> None:
    """Another name of the file, another order, a spreadsheet's semicolons: the same run. Another decision: another."""
    config, copy = TrainConfig(relabel=DECIDED), tmp_path / "copy.csv"
    head, *rows = Path(DECIDED).read_text().splitlines()
    copy.write_text("\n".join([head, *reversed(rows)]).replace(",", ";"))
    moved = TrainConfig(relabel=str(copy))
    assert (moved.identity(), moved.run_name()) == (config.identity(), config.run_name())
    copy.write_text("")  # while a run goes on: it keeps to what it began with
    assert moved.identity() == config.identity()
    copy.write_text(Path(DECIDED).read_text().replace("tulips", "roses"))
    assert TrainConfig(relabel=str(copy)).differences(config.identity())[0].startswith("--relabel was 'decisions ")


def test_a_number_is_the_same_however_it_is_written() -> None:
    options: dict[str, Any] = {"learning_rate": "1", "split": ["0.8", "0.2", 0], "seed": "7", "name": 2024}
    written = TrainConfig(**options, warmup_epochs=2)
    assert written == TrainConfig(learning_rate=1.0, warmup_epochs=2.0, split=(0.8, 0.2, 0.0), seed=7, name="2024")


def test_a_new_option_changes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TrainConfig(epochs=3)
    known = TrainConfig.identity
    monkeypatch.setattr(TrainConfig, "identity", lambda self: {**known(self), "resize": "crop"})
    assert TrainConfig(epochs=3).run_name() == before.run_name()


def test_what_keeps_a_run_from_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=3)
    before = config.identity()
    assert config.differences(before) == []
    del before["dropout"]
    assert config.differences(before) == [], "new since then, and its default"
    assert config.replace(dropout=0.5).differences(before) == ["--dropout was 0.2, now 0.5"]
    assert config.differences({**before, "workers": "2"}) == [], "was part of the identity, is no more"
    assert config.differences({**before, "resize": "squash", "epochs": 4}) == [
        "--epochs was 4, now 3",
        "--resize was 'squash', now there is no such option",
    ]
    monkeypatch.setitem(module.REMOVED, "resize", "crop")
    assert config.differences({**before, "resize": "crop"}) == []
    assert config.differences({**before, "resize": "squash"})


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, []),  # the head alone: what is new is of a phase that there is not
        (
            {"trainable": "stage5"},
            [f"{flag(name)} was {value!r}, now not given" for name, value in DEFAULTS_WERE.items()],
        ),
        ({"trainable": "stage5", "augment": "none", "label_smoothing": 0, "monitor": "log_loss"}, []),
        ({"label_smoothing": 0.1}, ["--label-smoothing was 0.0, now 0.1"]),
        ({"augment": "flip"}, ["--augment was 'none', now 'flip'"]),
    ],
)
def test_a_run_begun_with_the_old_defaults(changes: dict[str, Any], refused: list[str]) -> None:
    """It goes on as it began, or is refused; naming what it began with lets a deeper one go on."""
    config = TrainConfig(**changes)
    before = {**config.identity(), **DEFAULTS_WERE}
    assert config.differences(before) == refused


def test_options_of_the_second_phase_do_not_keep_the_head_from_going_on() -> None:
    before = TrainConfig(head_epochs=9, tail_learning_rate=0.5, layer_decay=0.5).identity()
    assert TrainConfig().differences(before) == []
    assert len(TrainConfig(trainable="stage5").differences({**before, "trainable": "stage5"})) == 3


def test_more_classes_than_there_are() -> None:
    assert [top_said(top, classes) for top, classes in ((5, 2), (7, 7), (6, 9))] == ["", "", ""]
    assert top_said(7, 6) == "--top 7: the bundle has 6 classes, all of them are named"


def test_a_config_travels_and_does_not_change() -> None:
    config = TrainConfig(epochs=3, split=(0.8, 0.2, 0))
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(pickle.loads(pickle.dumps(config))) == hash(config)
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 4
    other = config.replace(epochs=4)
    assert (config.epochs, other.epochs, other.split) == (3, 4, config.split)
    with pytest.raises(InputError, match="--epochs: received 0, required is 1 or more"):
        config.replace(epochs=0)
    with pytest.raises(InputError, match="--augment: received 'strong'"):
        config.replace(augment="strong")


def test_the_name_is_the_same_in_every_process() -> None:
    assert TrainConfig().run_name() == TrainConfig().run_name()
    assert TrainConfig().run_name().startswith("sample-resnet50v2-")
    assert (
        TrainConfig(split=(0.7, 0.27, 0.03), head_epochs=60, workers="4").run_name()
        == TrainConfig(storage="/x").run_name()
    )
    assert TrainConfig(name="mine").run_name() == "mine"


ODD = ["/", ".", "..", "~", "s3://", "s3://bucket/a b/", ".hidden", "a" * 300, "ü" * 200, "花" * 300, "\udcff", "-"]


@settings(deadline=None)
@given(st.text(min_size=1, alphabet=st.characters()) | st.sampled_from(ODD))
def test_the_name_is_a_safe_folder_name(data: str) -> None:
    name = TrainConfig(data=data).run_name()
    assert name == Path(name).name
    assert len(os.fsencode(name)) <= 255
    assert not set(name) & set("/\\\0\n :%?#")
    assert not name.startswith(".")
    assert TrainConfig(name=name).run_name() == name


@pytest.mark.parametrize(
    ("data", "stem"), [("/data/roses/", "roses"), ("s3://bucket/photos.csv", "photos"), (".", "data"), ("/", "data")]
)
def test_the_name_says_which_data(data: str, stem: str) -> None:
    assert TrainConfig(data=data).run_name().rsplit("-", 2)[0] == stem
