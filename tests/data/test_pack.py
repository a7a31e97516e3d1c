"""Packs: the same shards for the same photos, listed from the index, and nothing else taken for them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers import storage
from flowers.data import pack, reading
from flowers.data.listing import list_files
from flowers.data.pack import CARD, INDEX, LEFT_OUT, MANIFEST, SOURCE, filled
from flowers.errors import InputError
from tests.data.test_images import SAMPLES

PHOTO = SAMPLES["jpeg"]
# Name, label, side, group, code: as they are listed.
FILES = [
    *((f"train/roses/{number}.jpg", "roses", "train", f"g{number}", None) for number in range(5)),
    ("train/roses/.hidden.jpg", None, None, None, "hidden"),
    ("train/gone.jpg", "daisies", "train", None, None),
    ("test/daisies/ü ?#.jpg", "daisies", "test", None, None),
    ("test/1.txt", None, None, None, "unlabelled"),
]


def packed(folder: Path, target: str, shard_bytes: int = 2 * len(PHOTO)) -> pa.Table:
    """Packs FILES, as the job does; returns their listing, without those of no label."""
    rows = []
    for name, label, split, group, code in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "gone" not in name:
            path.write_bytes(PHOTO + name.encode())
        rows.append((str(path), label, split, group, code, code and "so listed", name, len(PHOTO)))
    columns = dict(zip(pack.PLANNED, map(list, zip(*rows, strict=True)), strict=True))
    files = pa.table(
        {name: pa.array(values, pa.int64() if name == "size" else pa.string()) for name, values in columns.items()}
    )
    planned = np.flatnonzero([code != "hidden" for *_, code in FILES])
    numbers = filled([len(PHOTO)] * len(planned), shard_bytes, 100)
    chosen = files.take(pa.array(planned))
    for name in ("code", "detail"):
        chosen = chosen.set_column(chosen.schema.get_field_index(name), name, pa.nulls(chosen.num_rows, pa.string()))
    classes, written, plans = ["daisies", "roses"], [], []
    for number in range(numbers[-1] + 1):
        plan = chosen.filter(pa.array(numbers == number))
        plans.append(plan.num_rows)
        written.append(pack.write_shard(plan, f"{target}/{pack.shard_name(number)}", classes))
    pack.finish(
        target, pack.index_of(files, planned, plans, pa.concat_tables(written)), pa.concat_tables(written), classes
    )
    return files


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_is_listed_again_and_every_photo_read(tmp_path: Path) -> None:
    target = tmp_path / "pack"
    packed(tmp_path / "photos", str(target))
    found = list_files(str(target), datasets=str(tmp_path))
    assert found.notes == ("a pack of 7 photos in 4 shards",)
    rows = found.table.to_pylist()
    assert [(row["label"], row["split"], row["group"]) for row in rows] == [row[1:4] for row in FILES]
    codes = [row["code"] for row in rows]
    assert codes == [None] * 5 + ["hidden", "unreadable", None, "unlabelled"]
    assert rows[6]["detail"] == "No such file or directory"
    places = {0: "0#0", 1: "0#1", 2: "1#0", 4: "2#0", 7: "3#0", 8: "3#1"}
    for at, place in places.items():
        assert rows[at]["path"] == f"{target}/shard-0000{place.replace('#', '.parquet#')}/{FILES[at][0]}"
    read = reading.read_block(found.table)
    assert [data and data[len(PHOTO) :].decode() for data in read["bytes"].to_pylist()] == [
        name if code is None else None for (name, *_), code in zip(FILES, codes, strict=True)
    ]
    plain = list_files(str(target), datasets=str(tmp_path), labelled=False).table
    assert plain["code"].to_pylist() == [*codes[:-1], None]
    assert plain["label"].null_count == plain.num_rows
    with (target / LEFT_OUT).open(newline="") as file:
        assert [(row["path"], row["reason"]) for row in csv.DictReader(file)] == [
            ("train/roses/.hidden.jpg", "hidden"),
            ("train/gone.jpg", "unreadable"),
        ]


def test_the_same_photos_make_the_same_shards(tmp_path: Path) -> None:
    packed(tmp_path / "one", str(tmp_path / "a"))
    packed(tmp_path / "another", str(tmp_path / "b"))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert SOURCE not in files_of(tmp_path / "a"), "which only the job writes"


def test_shards_are_what_other_programs_take(tmp_path: Path) -> None:
    """Hugging Face's features are in the metadata; bytes lie as they are, and pages have checksums."""
    packed(tmp_path / "photos", str(tmp_path / "pack"), 1 << 30)
    file = pq.ParquetFile(tmp_path / "pack" / "shard-00000.parquet")
    assert file.schema_arrow.names == ["image", "label", "split", "group", "sha256", "size", "path"]
    assert file.schema_arrow.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == file.schema_arrow.names
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["daisies", "roses"], "_type": "ClassLabel"}
    rows = file.read().to_pylist()
    assert [row["label"] for row in rows] == [1] * 5 + [0, None]
    assert rows[5]["image"]["path"] == "ü ?#.jpg"
    assert rows[5]["path"] == "test/daisies/ü ?#.jpg"
    for row in rows:
        assert row["sha256"] == storage.sha256(row["image"]["bytes"])
        assert row["size"] == len(row["image"]["bytes"])
    assert file.metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
    about = json.loads((tmp_path / "pack" / MANIFEST).read_text())
    assert about["columns"] == file.schema_arrow.names
    assert (about["photos"], about["left_out"]) == (7, {"hidden": 1, "unreadable": 1})


def test_parts_are_filled_in_order() -> None:
    assert filled([3, 3, 3, 9, 1], 6, 9).tolist() == [0, 0, 1, 2, 3]
    assert filled([1] * 5, 99, 2).tolist() == [0, 0, 1, 1, 2]
    assert filled([], 1, 1).tolist() == []


def test_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "GROUP_BYTES", 2 * len(PHOTO))
    packed(tmp_path / "photos", str(tmp_path / "pack"), 1 << 30)
    about = pq.ParquetFile(tmp_path / "pack" / "shard-00000.parquet").metadata
    # Of eight files by their sizes, one of which is gone.
    assert [about.row_group(number).num_rows for number in range(about.num_row_groups)] == [2, 2, 1, 2]


def test_a_shard_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    packed(tmp_path / "photos", str(tmp_path / "pack"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "pack").glob("shard-*")}
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "pack" / MANIFEST).unlink()
    packed(tmp_path / "photos", str(tmp_path / "pack"))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert json.loads((tmp_path / "pack" / MANIFEST).read_text())["photos"] == 7


def damaged(folder: Path, how: str) -> str:
    """Damages a pack; returns what is said of it."""
    shard = folder / "shard-00001.parquet"
    if how == "missing":
        shard.unlink()
        return "lacks shard-00001.parquet .1 of 4 shards.; copy it again, or pack anew"
    if how == "another":
        shutil.copy(folder / "shard-00002.parquet", shard)
    elif how == "as long":
        data = bytearray(shard.read_bytes())
        data[-40] ^= 1
        shard.write_bytes(data)
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif how == "unfinished":
        (folder / MANIFEST).unlink()
        (folder / SOURCE).write_text("{}")
        return "is no whole pack: there is no pack.json yet; run the same jobs.pack again"
    elif how == "index":
        (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-1])
        return "_index.parquet is damaged: its hash is another one"
    elif how == "no json":
        (folder / MANIFEST).write_text("{")
        return "pack.json is damaged"
    elif how == "another folder":
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace("shard-00001", "../shard-00001"))
        return "pack.json is damaged"
    elif how == "no place":
        index = pq.read_table(folder / INDEX)
        pq.write_table(index.set_column(6, "shard", pa.nulls(index.num_rows, pa.int32())), folder / INDEX)
        about = json.loads((folder / MANIFEST).read_text())
        about["index"] = storage.file_sha256(str(folder / INDEX))
        (folder / MANIFEST).write_text(json.dumps(about))
        return "a file is neither in a shard nor left out"
    else:
        (folder / MANIFEST).write_text(json.dumps({"pack": 99}))
        return "is a pack of version 99, known are those up to 1"
    return "shard-00001.parquet is not the shard that was packed .1 of 4 differ from pack.json."


@pytest.mark.parametrize(
    "how",
    [
        *("missing", "another", "as long", "cut", "unfinished", "index", "no json", "another folder", "no place"),
        "a later version",
    ],
)
def test_another_shard_than_was_packed_is_one_line(tmp_path: Path, how: str) -> None:
    packed(tmp_path / "photos", str(tmp_path / "pack"))
    said = damaged(tmp_path / "pack", how)
    with pytest.raises(InputError, match=said) as caught:
        list_files(str(tmp_path / "pack"), datasets=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_bytes_cost_their_row_group(tmp_path: Path) -> None:
    packed(tmp_path / "photos", str(tmp_path / "pack"))
    shard = tmp_path / "pack" / "shard-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 1
    shard.write_bytes(data)
    rows = reading.read_block(list_files(str(tmp_path / "pack"), datasets=str(tmp_path)).table).to_pylist()
    assert [row["code"] for row in rows[:3]] == ["unreadable", "unreadable", None]
    assert rows[0]["detail"].startswith("shard-00000.parquet is damaged: ")


def test_a_pack_in_a_bucket(tmp_path: Path, bucket: Path) -> None:
    """Names are quoted as in any URI, and photos found again."""
    (bucket / "packs" / "one").mkdir(parents=True)
    files: Any = packed(tmp_path / "photos", "mem://packs/one")
    assert sorted(path.name for path in (bucket / "packs" / "one").iterdir()) == [
        CARD, INDEX, LEFT_OUT, MANIFEST, *(f"shard-0000{number}.parquet" for number in range(4))]  # fmt: skip
    found = list_files("mem://packs/one", datasets=str(tmp_path)).table
    assert found["path"][7].as_py() == "mem://packs/one/shard-00003.parquet#0/test/daisies/%C3%BC%20%3F%23.jpg"
    read = reading.read_block(found)["bytes"].to_pylist()
    assert read[7] == PHOTO + FILES[7][0].encode()
    assert found.num_rows == files.num_rows
