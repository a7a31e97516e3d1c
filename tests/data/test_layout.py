"""Layouts: how folders are read, by the names that people and public sets give them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.data.layout import Layout, understand
from flowers.errors import InputError


def files(*folders: str, count: int = 2) -> list[tuple[str, ...]]:
    return [(*filter(None, folder.split("/")), f"{number}.jpg") for folder in folders for number in range(count)]


def tree(sides: str, classes: str, inside: str = "{side}/{label}") -> list[tuple[str, ...]]:
    pairs = itertools.product(sides.split(), classes.split())
    return files(*(inside.format(side=side, label=label) for side, label in pairs))


def placed(layout: Layout, path: str) -> tuple[str | None, str | None]:
    return layout.place(tuple(path.split("/")))[:2]


NAMES = [
    ("train val", {"train": "train", "val": "validation"}),  # torchvision's hymenoptera tutorial
    ("train test", {"train": "train", "test": "test"}),  # CIFAR-10 as images
    ("train valid test", {"train": "train", "valid": "validation", "test": "test"}),  # Kaggle, Roboflow, fastai
    ("TRAIN Val TEST", {"TRAIN": "train", "Val": "validation", "TEST": "test"}),
    ("training testing", {"training": "train", "testing": "test"}),
    ("training_set test_set", {"training_set": "train", "test_set": "test"}),  # Kaggle cats and dogs
    (
        "Training validation evaluation",
        {"Training": "train", "validation": "validation", "evaluation": "test"},
    ),  # Food-11
    ("train eval test", {"train": "train", "eval": "validation", "test": "test"}),
    ("train2017 val2017", {"train2017": "train", "val2017": "validation"}),  # COCO
    ("seg_train seg_test", {"seg_train": "train", "seg_test": "test"}),  # Kaggle Intel scenes
    ("cub_train cub_test", {"cub_train": "train", "cub_test": "test"}),
    ("flowers-train flowers-dev", {"flowers-train": "train", "flowers-dev": "validation"}),
    ("TrainSet TestSet", {"TrainSet": "train", "TestSet": "test"}),
    ("trainset testset", {"trainset": "train", "testset": "test"}),
    ("train_images val_images", {"train_images": "train", "val_images": "validation"}),
    ("01_train 02_holdout", {"01_train": "train", "02_holdout": "test"}),
    ("train", {"train": "train"}),
    ("train1 train2 test", {"train1": "train", "train2": "train", "test": "test"}),
]


@pytest.mark.parametrize(("sides", "expected"), NAMES, ids=[sides for sides, _ in NAMES])
@pytest.mark.parametrize(
    "inside", ["{side}/{label}", "set/{side}/{label}", "a/b/{side}/{side}/{label}/deep", "{side}/images/{label}"]
)
def test_a_split_on_disk(sides: str, expected: dict[str, str], inside: str) -> None:
    layout = understand(tree(sides, "ants bees", inside))
    for side, meant in expected.items():
        assert placed(layout, inside.format(side=side, label="ants") + "/new.jpg") == ("ants", meant)
    assert layout.said is not None
    for side in set(expected.values()) - {"train"}:
        assert side in layout.said.casefold()
    for missing in {"validation", "test"} - set(expected.values()):
        assert missing in layout.said.partition("cut from train")[0]


def test_what_lies_beside_the_classes_of_a_side_has_no_label() -> None:
    layout = understand([*tree("train test", "ants bees"), *files("train", "test", "")])
    assert placed(layout, "train/0.jpg") == (None, "train")
    assert placed(layout, "0.jpg") == (None, None)
    assert placed(layout, "other/ants/0.jpg") == (None, None)


def test_an_unlabelled_side() -> None:
    paths = [*tree("seg_train seg_test", "sea street", "{side}/{side}/{label}"), *files("seg_pred/seg_pred")]
    layout = understand(paths)
    assert placed(layout, "seg_train/seg_train/sea/1.jpg") == ("sea", "train")
    assert placed(layout, "seg_pred/seg_pred/1.jpg") == (None, None)
    assert layout.said is not None
    assert "seg_pred/ (unlabelled)" in layout.said


def test_classes_above_sides() -> None:
    layout = understand(tree("train test", "cats dogs", "{label}/{side}"))
    assert placed(layout, "cats/train/1.jpg") == ("cats", "train")
    assert placed(layout, "dogs/test/1.jpg") == ("dogs", "test")


@pytest.mark.parametrize(
    "paths",
    [
        files("roses", "tulips"),
        files("roses/a", "roses/b", "tulips"),
        files("roses/train", "tulips"),  # a folder of photos of trains, for all we know
        files("training_wheels", "stabilisers"),
        files("pass", "fail"),
        files("latest", "contest"),
    ],
)
def test_plain_classes(paths: list[tuple[str, ...]]) -> None:
    layout = understand(paths)
    assert layout == Layout()
    assert all(placed(layout, "/".join(parts)) == (parts[0], None) for parts in paths)


def test_a_folder_around_the_classes() -> None:
    layout = understand(files("flower_photos/roses", "flower_photos/tulips"))
    assert placed(layout, "flower_photos/roses/0.jpg") == ("roses", None)
    assert layout.said == "the classes are the folders of flower_photos/"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (files("cars", "bikes", "test"), ["'test'", "'bikes', 'cars'"]),
        (files("bus/a", "train/a"), ["'train'", "'bus'"]),
        ([*tree("train val", "a b"), *files("extra/a")], ["'train', 'val'", "'extra'"]),
        (
            files("train", "test"),
            ["'test', 'train'", "no class folders"],
        ),  # Kaggle dogs-vs-cats: the label is in the name
        (files("training_set", "test_set"), ["no class folders"]),
    ],
)
def test_what_names_leave_open_is_asked(paths: list[tuple[str, ...]], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        understand(paths)
    assert all(word in str(caught.value) for word in [*words, "--layout classes"])
    assert "\n" not in str(caught.value)
    layout = understand(paths, "classes")
    assert all(placed(layout, "/".join(parts)) == (parts[0], None) for parts in paths)


def test_split_by_order() -> None:
    paths = [*tree("train val", "a b"), *files("extra/a")]
    layout = understand(paths, "split")
    assert placed(layout, "val/b/0.jpg") == ("b", "validation")
    assert placed(layout, "extra/a/0.jpg") == (None, None)
    with pytest.raises(InputError, match="--layout split needs folders named like train"):
        understand(files("roses", "tulips"), "split")


@given(
    st.lists(
        st.lists(st.text("abtrainvles/_. 1", min_size=1, max_size=8), min_size=1, max_size=5).map(tuple), max_size=12
    )
)
def test_every_file_has_a_place_or_the_question_is_asked(paths: list[tuple[str, ...]]) -> None:
    try:
        layout = understand(paths)
    except InputError:
        layout = understand(paths, "classes")
    for parts in paths:
        label, side, depth = layout.place(parts)
        assert label is None or label in parts[:-1]
        assert side in (None, "train", "validation", "test", "unlabelled")
        assert 0 <= depth < max(len(parts), 6)
