"""Data as public sets, label tools and storage boxes leave it, recreated small."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flowers.data.listing import Listing, list_photos
from flowers.errors import InputError
from flowers.runs import FILES


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def photos(folder: Path, count: int = 3, form: str = "{}.jpg") -> None:
    touch(*(folder / form.format(number) for number in range(count)))


def listed(data: Path, **options: Any) -> Listing:
    return list_photos(str(data), **{"datasets": f"{data}.datasets", "per_class": None, "seed": 0, **options})


def counted(listing: Listing) -> Counter[tuple[Any, ...]]:
    """Files by class, side and code."""
    return Counter((row["label"], row["split"], row["code"]) for row in listing.table.to_pylist())


def test_hymenoptera(tmp_path: Path) -> None:
    """torchvision's tutorial on transfer learning."""
    for side, count in (("train", 5), ("val", 3)):
        for label in ("ants", "bees"):
            photos(tmp_path / "hymenoptera_data" / side / label, count)
    for data in (tmp_path, tmp_path / "hymenoptera_data"):
        listing = listed(data)
        assert counted(listing) == {
            ("ants", "train", None): 5, ("bees", "train", None): 5,
            ("ants", "validation", None): 3, ("bees", "validation", None): 3,
        }  # fmt: skip
        (note,) = listing.notes
        assert note.startswith("a split on disk: train/, val/ (validation)")
        assert note.endswith("above 2 classes; test is cut from train by --split")


def test_cats_and_dogs(tmp_path: Path) -> None:
    """Kaggle: the folder repeated, another spelling of the sides, and a file of its own in each."""
    for side, count in (("training_set", 6), ("test_set", 2)):
        for label in ("cats", "dogs"):
            photos(tmp_path / side / side / label, count, f"{label}.{{}}.jpg")
            touch(tmp_path / side / side / label / "_DS_Store")
    found = counted(listed(tmp_path))
    assert found["cats", "train", None] == 7, "a file of no known name is looked at later"
    assert {side for _, side, _ in found} == {"train", "test"}


def test_dogs_vs_cats(tmp_path: Path) -> None:
    """Kaggle's first: the label is in the name of the file, so the question is asked."""
    photos(tmp_path / "train", 6, "cat.{}.jpg")
    photos(tmp_path / "test1", 4)
    with pytest.raises(InputError, match=r"hold no class folders; .* or give a manifest"):
        listed(tmp_path)


def test_intel_scenes(tmp_path: Path) -> None:
    for label in ("sea", "street"):
        photos(tmp_path / "seg_train" / "seg_train" / label)
        photos(tmp_path / "seg_test" / "seg_test" / label)
    photos(tmp_path / "seg_pred" / "seg_pred")
    found = counted(listed(tmp_path))
    assert found[None, None, "unlabelled"] == 3
    assert found["sea", "train", None] == found["sea", "test", None] == 3


def test_oxford_flowers(tmp_path: Path) -> None:
    """One folder of photos, labels by number in a file, names of the numbers in another."""
    photos(tmp_path / "jpg", 6, "image_{:05}.jpg")
    lines = "".join(f"image_{number:05}.jpg,{1 + number // 3}\n" for number in range(6))
    (tmp_path / "imagelabels.csv").write_text(lines)
    (tmp_path / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "globe thistle"}))
    listing = listed(
        tmp_path / "imagelabels.csv", root=str(tmp_path / "jpg"), class_names=str(tmp_path / "cat_to_name.json")
    )
    assert counted(listing) == {("pink primrose", None, None): 3, ("globe thistle", None, None): 3}
    assert all(Path(row["path"]).exists() for row in listing.table.to_pylist())
    with pytest.raises(InputError, match="1 class"):
        listed(tmp_path)
    with pytest.raises(InputError, match="belong to a manifest"):
        listed(tmp_path, root=str(tmp_path))


def test_label_studio(tmp_path: Path) -> None:
    names = [f"{number:08x}-photo {number}.jpg" for number in range(6)]
    touch(*(tmp_path / "media" / "upload" / "3" / name for name in names))
    tasks = [
        {
            "data": {"image": f"/data/upload/3/{name}"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": ["ab"[number % 2]]}}]}],
        }
        for number, name in enumerate(names)
    ]
    export = tmp_path / "project-3.json"
    export.write_text(json.dumps([*tasks, {"data": {"image": "/data/upload/3/x.jpg"}, "annotations": []}]))
    listing = listed(export, root=str(tmp_path / "media" / "upload" / "3"))
    assert counted(listing) == {("a", None, None): 3, ("b", None, None): 3, (None, None, "unlabelled"): 1}
    assert all(Path(row["path"]).exists() for row in listing.table.to_pylist() if row["label"])


LEFT = [
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/SYNOPHOTO_0.jpg", "#recycle/old.jpg", ".@__thumb/s100.jpg",
    ".thumbnails/0.jpg", ".picasaoriginals/0.jpg", ".dtrash/0.jpg", "Thumbnails/0.jpg", "thumbs/0.jpg",
    "Originals/0.jpg",
    "CaptureOne/Cache/Proxies/0.jpg", "Catalog Previews.lrdata/0.jpg", "[Originals]/0.jpg", "$RECYCLE.BIN/0.jpg",
    "lost+found/0.jpg", "__MACOSX/._0.jpg", "._0.jpg", ".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini",
    "Picasa.ini", ".ipynb_checkpoints/0-checkpoint.jpg", ".stversions/0.jpg", "_gsdata_/0.jpg", "@Recycle/0.jpg",
]  # fmt: skip


def test_a_share_of_a_storage_box(tmp_path: Path) -> None:
    """24 photos were 72, and an original and its thumbnail lay on different sides."""
    for label in ("roses", "tulips"):
        photos(tmp_path / label, 12)
        touch(*(tmp_path / label / name for name in LEFT))
    touch(tmp_path / "@eaDir" / "roses" / "0.jpg", tmp_path / "#recycle" / "roses" / "0.jpg")
    found = counted(listed(tmp_path))
    assert found == {
        ("roses", None, None): 12,
        ("tulips", None, None): 12,
        (None, None, "hidden"): 2 * len(LEFT) + 2,
    }


def test_folders_that_could_be_classes_are(tmp_path: Path) -> None:
    for label in ("thumbs", "previews", "Originals"):
        photos(tmp_path / label)
    assert set(counted(listed(tmp_path))) == {(label, None, None) for label in ("thumbs", "previews", "Originals")}


@pytest.mark.parametrize("name", ["runs", "output/my runs"])
def test_runs_among_the_photos_are_no_class(tmp_path: Path, name: str) -> None:
    for label in ("roses", "tulips"):
        photos(tmp_path / label)
    before = listed(tmp_path, run_files=FILES)
    run = tmp_path / name / "photos-1"
    touch(*(run / file for file in FILES), run / "best" / "model.keras", run / "augmented.jpg")
    touch(run.parent / "cache" / "x.parquet", run.parent / "datasets" / "sample" / "roses" / "1.jpg")
    for storage in (str(run.parent), None):  # of this command, or of an earlier one
        assert listed(tmp_path, run_files=FILES, runs=storage).table.equals(before.table)
    assert listed(tmp_path, run_files=FILES, runs=str(tmp_path)).table.num_rows == before.table.num_rows


def test_a_class_of_a_format_that_is_not_read_is_a_class(tmp_path: Path) -> None:
    """The other one lies deeper, and must not be taken for all there is."""
    for label in ("a", "b"):
        photos(tmp_path / "roses" / label)
    photos(tmp_path / "tulips", form="{}.nef")
    assert set(counted(listed(tmp_path))) == {("roses", None, None), ("tulips", None, None)}
    photos(tmp_path / "daisy", form="{}")
    assert len(counted(listed(tmp_path))) == 3


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    for label in ("roses", "tulips"):
        photos(tmp_path / label)
    (tmp_path / "daisy").mkdir()
    (tmp_path / "roses" / "deeper").mkdir()
    (tmp_path / "@eaDir").mkdir()
    assert listed(tmp_path).warnings == ("class folders without a file: 'daisy'; left out",)


ALIKE = [
    ("café", "cafe\u0301", "U+00E9"),
    ("Roses", "roses", "'Roses' and 'roses'"),
    ("roses", "roses ", "U+0020"),
    ("dog rose", "dog\u00a0rose", "U+00A0"),
    ("dog_rose", "dog rose", "'dog_rose'"),
    ("roses", "ro\u200bses", "U+200B"),
    ("straße", "strasse", "U+00DF"),
]


@pytest.mark.parametrize(("one", "other", "shown"), ALIKE)
@pytest.mark.parametrize("manifest", [False, True])
def test_classes_that_look_alike_are_one_warning(
    tmp_path: Path, one: str, other: str, shown: str, manifest: bool
) -> None:
    for label in (one, other, "tulips"):
        photos(tmp_path / "photos" / label)
    source = tmp_path / "photos"
    if manifest:
        source = tmp_path / "m.jsonl"
        rows = [{"path": f"{label}/{n}.jpg", "label": label} for label in (one, other, "tulips") for n in range(3)]
        source.write_text("\n".join(map(json.dumps, rows)))
    if manifest and one.strip() == other.strip():
        assert listed(source).warnings == (), "blanks around a label are none of it"
        return
    (text,) = listed(source).warnings
    assert shown in text
    assert "look alike, but are 2 classes" in text


def test_groups_by_folder_and_by_name(tmp_path: Path) -> None:
    for label in ("sick", "well"):
        for patient in ("p1", "p2", "p3"):
            photos(tmp_path / label / patient, 2, f"{patient}_{{}}.jpg")
    rows = listed(tmp_path, group_by="parent").table.to_pylist()
    assert {row["group"] for row in rows} == {f"{label}/p{n}" for label in ("sick", "well") for n in (1, 2, 3)}
    rows = listed(tmp_path, group_by=r"(p\d+)_").table.to_pylist()
    assert {row["group"] for row in rows} == {"p1", "p2", "p3"}
    with pytest.raises(InputError, match="matches none of 12 paths"):
        listed(tmp_path, group_by="camera")
    with pytest.raises(InputError, match="all photos of 'sick', 'well' are one group"):
        listed(tmp_path, group_by="^[a-z]+")
    shutil.rmtree(tmp_path / "well" / "p3")
    assert len(listed(tmp_path, group_by="parent").table) == 10
