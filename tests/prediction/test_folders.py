"""Folders by class: whatever classes and files are called, nothing lands outside and nothing over another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.errors import InputError
from flowers.prediction import folders
from flowers.prediction.folders import Folders, file_name, folder_name

ODD = [
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "unsure",
    "Unsure",
    "%2E",
    "x" * 400,
    "é" * 200,
    "con:",
    " a",
]


def rows(*found: tuple[str, str | None, float | None]) -> pa.Table:
    return pa.table([pa.array(column) for column in zip(*found, strict=True)], ["path", "label", "score"])


@given(st.lists(st.one_of(st.sampled_from(ODD), st.text()), max_size=20, unique=True))
def test_a_class_has_a_folder_of_its_own(labels: list[str]) -> None:
    names = [folder_name(label) for label in labels]
    assert len(set(names)) == len(names)
    for name in names:
        assert name not in ("", ".", "..")
        assert name.casefold() != "unsure"
        assert not set(name) & set("/\\\0\n")
        assert len(name.encode("utf-8", "replace")) <= 255


@pytest.mark.parametrize("name", ["rose", "Wild carrot", "50-60 cm", "Löwenzahn", "花"])
def test_plain_names_stay(name: str) -> None:
    assert folder_name(name) == name


@given(st.text())
def test_a_file_stays_in_its_folder(name: str) -> None:
    for path in (f"/photos/{name}", f"s3://bucket/{name}", "s3://bucket/a%2F..%2F..%2Fx.jpg", "s3://bucket/.."):
        found = file_name(path)
        assert found not in ("", ".", "..")
        assert not set(found) & set("/\\\0")


def test_names_that_collide_are_kept_apart() -> None:
    found = rows(("/a/1.jpg", "rose", 0.9), ("/b/1.JPG", "rose", 0.8), ("/c/1.jpg", "tulip", 0.4), ("/d", None, None))
    for _ in range(2):  # the same each time
        places = list(Folders(0.5).places(found))
        assert [(folder, names[0]) for _, folder, names in places[::2]] == [("rose", "1.jpg"), ("unsure", "1.jpg")]
        assert places[1][1] == "rose"
        assert set(places[1][2]) == {f"1-{hashlib.sha256(b'/b/1.JPG').hexdigest()[:12]}.JPG"}


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    (target / "rose").mkdir(parents=True)
    (target / "rose" / "1.jpg").write_bytes(b"mine")
    (tmp_path / "1.jpg").write_bytes(b"photo")
    places = list(Folders(None).places(rows((str(tmp_path / "1.jpg"), "rose", 0.9), ("/gone.jpg", "rose", 0.9))))
    for _ in range(2):
        assert folders._sort_some(str(target), places, link=False) == 1
        assert (target / "rose" / "1.jpg").read_bytes() == b"mine"
        [copy] = [path for path in (target / "rose").iterdir() if path.name != "1.jpg"]
        assert copy.read_bytes() == b"photo"
    assert folders._sort_some(str(tmp_path / "linked"), [], link=True) == 0


@pytest.mark.usefixtures("ray")
def test_links_and_a_class_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"photo")
    places = list(Folders(None).places(rows((str(tmp_path / "1.jpg"), "rose", 0.9))))
    for _ in range(2):
        assert folders.sort_into(str(tmp_path / "sorted"), places, link=True) == 0
    assert os.readlink(tmp_path / "sorted" / "rose" / "1.jpg") == str(tmp_path / "1.jpg")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rose").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link to another place"):
        folders.sort_into(str(tmp_path / "other"), places, link=False)
