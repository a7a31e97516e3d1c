"""Shards: listed by their small columns, read by row groups, each photo with a path that leads to it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers.data import reading, shards
from flowers.data.listing import Listing, list_files, list_photos, some
from flowers.data.shards import Place, below, file_of, place_of
from flowers.errors import BadImage, InputError
from tests.data.test_images import SAMPLES

PHOTO = SAMPLES["jpeg"]


def listed(data: object, folder: Path, **options: Any) -> Listing:
    return list_photos(str(data), datasets=str(folder / "datasets"), per_class=None, seed=0, **options)


def contents(table: pa.Table) -> list[bytes | None]:
    return list(reading.read_block(table)["bytes"].to_pylist())


def hugging_face(path: Path, count: int = 4, first: int = 0, **more: Any) -> Path:
    images = [{"bytes": PHOTO + bytes([first + number]), "path": None} for number in range(count)]
    labels = pa.array([number % 2 for number in range(count)])
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": images, "label": labels, **more})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/d/a.parquet#0/1.jpg", Place("/d/a.parquet", 0, "1.jpg")),
        ("/d/a.PARQUET#12/roses/b c#3.jpg", Place("/d/a.PARQUET", 12, "roses/b c#3.jpg")),
        ("s3://b/a.parquet#12/a%20b/1%3F.jpg?region=x", Place("s3://b/a.parquet?region=x", 12, "a b/1?.jpg")),
        ("/d/a.parquet", None),
        ("/d/a.parquet#x/1.jpg", None),
        ("/d/roses#1/1.jpg", None),
    ],
)
def test_paths_of_photos_in_shards(path: str, place: Place | None) -> None:
    assert place_of(path) == place
    assert file_of(path) == (place.shard if place else path)
    assert below(path, "/d") == (place.name if place else path.removeprefix("/d/"))
    if place:
        which, rows, names = pa.array([0]), pa.array([place.row]), pa.array([place.name])
        assert shards.paths_of([place.shard], which, rows, names).to_pylist() == [path]


def test_hugging_faces_columns(tmp_path: Path) -> None:
    """Nothing is unpacked; sides are those of the files' names, and files about the set are none of it."""
    table = listed(hugging_face(tmp_path / "a.parquet"), tmp_path).table
    assert table["label"].to_pylist() == ["cat", "dog"] * 2
    assert contents(table) == [PHOTO + bytes([number]) for number in range(4)]
    assert not (tmp_path / "datasets").exists()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    hugging_face(folder / "train-00000-of-00001.parquet")
    hugging_face(folder / "test-00000-of-00001.parquet", 2, first=9)
    found = listed(folder, tmp_path)
    assert found.notes == ("6 photos in 2 shards",)
    rows = found.table.to_pylist()
    assert [(row["label"], row["split"]) for row in rows] == [
        ("cat", "test"),
        ("dog", "test"),
        *([("cat", "train"), ("dog", "train")] * 2),
    ]
    assert some(found.table) == [str(folder / f"{side}-00000-of-00001.parquet") for side in ("test", "train")]
    backwards = found.table.take(pa.array([5, 0, 3]))
    assert contents(backwards) == [PHOTO + bytes([number]) for number in (3, 9, 1)]


def test_bytes_and_label(tmp_path: Path) -> None:
    photos = [PHOTO + bytes([number]) for number in range(6)]
    table = pa.table(
        {
            "bytes": photos,
            "label": list("aabbcc"),
            "split": ["train"] * 5 + ["test"],
            "Patient": [1, 1, 2, None, 3, 3],
            "path": ["/x/1.jpg", "/x/1.jpg", None, "", "r/5.png", "6"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = listed(tmp_path / "a.parquet", tmp_path).table.to_pylist()
    assert [(row["label"], row["split"]) for row in rows] == [*zip("aabbcc", ["train"] * 5 + ["test"], strict=True)]
    assert [row["group"] for row in rows] == ["1", "1", "2", None, "3", "3"]
    names = ["x/1.jpg", "x/1.jpg", "000000002", "000000003", "r/5.png", "6"]
    assert [row["path"] for row in rows] == [f"{tmp_path}/a.parquet#{at}/{name}" for at, name in enumerate(names)]
    pq.write_table(table.drop_columns("label"), tmp_path / "b.parquet")
    with pytest.raises(
        InputError, match=r"it has the columns bytes, split, .*; required are photos, as bytes, and a l"
    ):
        listed(tmp_path / "b.parquet", tmp_path)
    plain = list_files(str(tmp_path / "b.parquet"), datasets=str(tmp_path), labelled=False).table
    assert contents(plain) == photos
    assert plain["label"].null_count == plain["code"].null_count == 6


def test_labels_of_numbers_secret_labels_and_wrong_sides(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "a.parquet", label=pa.array([-1, 0, 1, None]))
    rows = list_files(str(path), datasets=str(tmp_path)).table.to_pylist()
    assert [(row["label"], row["code"]) for row in rows] == [
        (None, "unlabelled"), ("cat", None), ("dog", None), (None, "unlabelled")]  # fmt: skip
    pq.write_table(pa.table({"image": [PHOTO] * 4, "label": [1, 0, 1, 0]}), path)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    rows = listed(path, tmp_path, class_names=str(tmp_path / "names.txt")).table.to_pylist()
    assert [row["label"] for row in rows] == ["dog", "cat"] * 2
    with pytest.raises(InputError, match="--root belongs to a manifest"):
        listed(path, tmp_path, root=str(tmp_path))
    pq.write_table(pa.table({"image": [PHOTO] * 2, "label": ["a", "b"], "split": ["train", "moon"]}), path)
    with pytest.raises(InputError, match="has the split 'moon', allowed are train, validation and test"):
        listed(path, tmp_path)


def test_each_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = listed(hugging_face(tmp_path / "a.parquet", 8), tmp_path).table
    read: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *arguments: Any, **options: Any) -> Any:
        read.extend(options["row_groups"])
        assert options["columns"] == ["image.bytes"]
        return whole(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    assert contents(table.take(pa.array([5, 0, 4, 1, 5]))) == [PHOTO + bytes([number]) for number in (5, 0, 4, 1, 5)]
    assert read == [0, 2]


def test_what_cannot_be_read_in_a_shard(tmp_path: Path) -> None:
    """A damaged row group costs its own photos, a missing shard all of its own; each says so."""
    images = [
        {"bytes": PHOTO + bytes([number]) if number < 5 else None, "path": f"{number}.jpg"} for number in range(6)
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": images, "label": list("ababab")}),
        path,
        row_group_size=2,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    table = listed(path, tmp_path).table
    data = path.read_bytes()
    path.write_bytes(data.replace(PHOTO + b"\2", PHOTO[:-1] + bytes([PHOTO[-1] ^ 1]) + b"\2"))
    read = reading.read_block(table)
    assert read["code"].to_pylist() == [None, None, "unreadable", "unreadable", None, "empty"]
    assert read["detail"][2].as_py().startswith("a.parquet is damaged: ")
    assert read["detail"][5].as_py() == "the shard holds no bytes of it"
    beyond = reading.read_bytes(f"{path}#6/x.jpg")
    assert isinstance(beyond, BadImage)
    assert beyond.detail == "a.parquet has no such row"
    path.unlink()
    gone = reading.read_block(table)
    assert gone["code"].to_pylist() == ["unreadable"] * 6
    assert gone["detail"][0].as_py().startswith("a.parquet cannot be read: ")


def test_the_byte_cap_holds_in_shards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = listed(hugging_face(tmp_path / "a.parquet"), tmp_path).table
    monkeypatch.setattr(reading, "MAX_BYTES", len(PHOTO))
    assert reading.read_block(table)["code"].to_pylist() == ["too_large"] * 4
    assert isinstance(reading.read_bytes(table["path"][0].as_py()), BadImage)
