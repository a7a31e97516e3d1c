"""What to label next: unsure, and not all the same; and what label tools make of the list comes back as a manifest."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from flowers.bundle import Bundle
from flowers.data.manifest import read_manifest
from flowers.errors import InputError
from flowers.prediction import tasks
from flowers.prediction.selection import choose, uncertainty

CLASSES = ["=daisy", 'a "rose" & <b>', "tulips"]
BUNDLE = Bundle("", {"classes": CLASSES, "files": {}})


def test_the_margin_is_what_counts() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.4, 0.2, 0.4], [0.1, 0.2, 0.7]], np.float32)
    assert uncertainty(scores) == pytest.approx([0.2, 1.0, 0.5])


def test_one_of_each_kind_and_none_that_is_sure() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(5), 20)
    features = (100 * np.eye(8)[kinds] + rng.normal(size=(100, 8))).astype(np.float32)
    unsure = rng.uniform(0.5, 1, 100).astype(np.float32)
    unsure[kinds == 4] = 0.0
    chosen = choose(features, unsure, 4, seed=0)
    assert sorted(kinds[chosen]) == [0, 1, 2, 3]
    assert (np.diff(unsure[chosen]) <= 0).all()
    assert choose(features, unsure, 4, seed=0).tolist() == chosen.tolist()
    assert sorted(choose(features, unsure, 500, seed=0)) == list(range(100))


def test_photos_that_are_all_the_same_are_chosen_too() -> None:
    unsure = np.linspace(1, 0, 9, dtype=np.float32)
    chosen = choose(np.ones((9, 3), np.float32), unsure, 5, seed=0)
    assert len(set(chosen.tolist())) == 5


def made(*paths: str) -> list[tasks.Task]:
    rows = pa.table({"path": list(paths), "sha256": pa.array([bytes(32)] * len(paths), pa.binary(32))})
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], np.float32)[: len(paths)]
    return tasks.described(rows, scores, CLASSES)


def test_label_studio_and_the_way_back(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/new/a b%2F+#é.jpg", f"{tmp_path}/new/b.png", f"{tmp_path}/c.jpg"]
    tasks.write(str(tmp_path), made(*paths), BUNDLE, str(tmp_path))
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert found[0]["data"]["image"] == "/data/local-files/?d=new/a%20b%252F%2B%23%C3%A9.jpg"
    assert found[0]["predictions"][0]["result"][0]["value"] == {"choices": ["=daisy"]}
    assert found[1]["predictions"][0]["score"] == 0.6
    tree = ElementTree.parse(tmp_path / "labels.xml")
    assert [one.get("value") for one in tree.iter("Choice")] == CLASSES
    choices = next(tree.iter("Choices"))
    assert {(one["from_name"], one["to_name"]) for task in found for one in task["predictions"][0]["result"]} == {
        (choices.get("name"), choices.get("toName"))
    }
    for task, label in zip(found, ["tulips", "=daisy", "tulips"], strict=True):
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        task["annotations"] = [{"was_cancelled": False, "result": [result]}]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(found))
    rows, _ = read_manifest(str(export))
    assert [row[:2] for row in rows] == list(zip(paths, ["tulips", "=daisy", "tulips"], strict=True))
    remote = json.loads(tasks.label_studio(made("s3://bucket/a%20b.jpg"), BUNDLE, "/"))
    assert remote[0]["data"]["image"] == "s3://bucket/a b.jpg"
    with pytest.raises(InputError, match=r"^--files-root: the photo /x/a.jpg does not lie in /y; give a folder above"):
        tasks.label_studio(made("/x/a.jpg"), BUNDLE, "/y")


def test_the_list_is_a_manifest_once_it_has_labels(tmp_path: Path) -> None:
    file = tmp_path / "next.csv"
    file.write_text(tasks.manifest(made("/photos/a.jpg", "/photos/b.jpg")))
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[1][:5] == ["/photos/a.jpg", "", "'=daisy", "0.5000", 'a "rose" & <b>']
    rows[1][1] = "tulips"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    found, _ = read_manifest(str(file))
    assert [row[:2] for row in found] == [("/photos/a.jpg", "tulips"), ("/photos/b.jpg", None)]
