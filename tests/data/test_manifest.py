"""Manifests in the forms in which people and label tools write them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from flowers.data.manifest import read_manifest
from flowers.errors import InputError

# What all of them say: four photos of two classes.
WANTED = [("a.jpg", "cat"), ("b.jpg", "cat"), ("c.jpg", "dog"), ("d.jpg", "dog")]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]


def read(folder: Path, name: str, body: str | bytes, **options: Any) -> tuple[list[tuple[str | None, ...]], list[str]]:
    path = folder / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    rows, notes = read_manifest(str(path), **options)
    return [(str(row[0]).removeprefix(f"{folder}/"), *row[1:]) for row in rows], notes


def pairs(separator: str, *header: str, rows: Any = WANTED, end: str = "\n") -> str:
    return end.join([*([separator.join(header)] if header else []), *(separator.join(row) for row in rows)]) + end


def tasks(path: str) -> list[dict[str, Any]]:
    """Label Studio's JSON."""
    return [
        {
            "id": number,
            "data": {"image": path.format(name=name), "note": "x"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}],
        }
        for number, (name, label) in enumerate(WANTED)
    ]


COCO = {
    "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(WANTED)],
    "annotations": [
        {"image_id": number, "category_id": 7 if label == "cat" else 9}
        for number, (_, label) in enumerate(WANTED)
        for _ in range(2)
    ],
    "categories": CATEGORIES,
}
ONE_HOT = [(name, *(("1", "0") if label == "cat" else ("0", "1"))) for name, label in WANTED]
FORMS: list[tuple[str, str, str | bytes]] = [
    ("plain", "m.csv", pairs(",", "path", "label")),
    ("other names", "m.csv", pairs(",", "Filename", "Class")),
    ("names of a database", "m.csv", pairs(",", "image_id", "Category Name")),
    ("the other way round", "m.csv", pairs(",", "label", "file", rows=[row[::-1] for row in WANTED])),
    ("semicolons", "m.csv", pairs(";", "image", "label")),
    ("tabs", "m.csv", pairs("\t", "image", "label")),
    ("tsv", "m.tsv", pairs("\t", "path", "label")),
    ("bars", "m.txt", pairs("|", "path", "label")),
    ("blanks", "m.txt", pairs(" ")),
    ("blanks after commas", "m.csv", pairs(", ", "path", "label")),
    ("Windows", "m.csv", pairs(",", "path", "label", end="\r\n")),
    ("quotes", "m.csv", '"path","label"\n' + pairs(",", rows=[(f'"{a}"', f'"{b}"') for a, b in WANTED])),
    ("UTF-8 with a mark", "m.csv", pairs(",", "path", "label").encode("utf-8-sig")),
    ("UTF-16", "m.csv", pairs("\t", "path", "label").encode("utf-16")),
    ("no header", "m.csv", pairs(",")),
    ("no header, label first", "m.csv", pairs(",", rows=[row[::-1] for row in WANTED])),
    ("a header of other words", "m.csv", pairs(",", "foto", "sorte")),
    ("more columns", "m.csv", pairs(",", "id", "path", "width", "label", rows=[("9", a, "5", b) for a, b in WANTED])),
    ("empty lines", "m.csv", "\n" + pairs(",", "path", "label").replace("\n", "\n\n")),
    ("dots", "m.csv", pairs(",", "path", "label", rows=[(f"./{a}", b) for a, b in WANTED])),
    ("one-hot", "m.csv", pairs(",", "filename", " cat", " dog", rows=ONE_HOT)),
    ("one-hot of floats", "m.csv", pairs(",", "image", "cat", "dog", rows=ONE_HOT).replace("1,0", "1.0,0.0")),
    ("JSON lines", "m.jsonl", "\n".join(json.dumps({"file": a, "target": b}) for a, b in WANTED)),
    ("JSON list", "m.json", json.dumps([{"image": a, "label": b} for a, b in WANTED])),
    ("JSON object", "m.json", json.dumps(dict(WANTED))),
    ("COCO", "m.json", json.dumps(COCO)),
    ("Label Studio", "m.json", json.dumps(tasks("{name}"))),
    ("Label Studio, uploaded", "m.json", json.dumps(tasks("/data/upload/3/{name}"))),
    ("Label Studio, local", "m.json", json.dumps(tasks("/data/local-files/?d={name}"))),
    ("Label Studio, short", "m.json", json.dumps([{"image": a, "choice": b, "id": 1} for a, b in WANTED])),
    ("Label Studio, CSV", "m.csv", pairs(",", "image", "id", "choice", rows=[(a, "1", b) for a, b in WANTED])),
]


@pytest.mark.parametrize(("name", "body"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_forms(tmp_path: Path, name: str, body: str | bytes) -> None:
    rows, _ = read(tmp_path, name, body)
    assert [row[:2] for row in rows] == WANTED
    assert {row[2:] for row in rows} == {(None, None, None, None)}


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", pairs(",", "path", "label"))[1] == []
    assert read(tmp_path, "b.csv", pairs(",", "Datei.jpg name", "Sorte"))[1][0].startswith("manifest: ")
    assert read(tmp_path, "c.csv", pairs(","))[1] == ["the manifest has no header: columns are known by what they hold"]
    (note,) = read(tmp_path, "d.csv", pairs(",", "filename", "cat", "dog", rows=ONE_HOT))[1]
    assert "labels are the columns 'cat', 'dog', one of them 1 in each row" in note


def test_split_and_group(tmp_path: Path) -> None:
    body = "image,label,Set,Patient ID\na.jpg,x,Training,p1\nb.jpg,x,VALID,p2\nc.jpg,y,PublicTest,\nd.jpg,y,,p1\n"
    rows, _ = read(tmp_path, "m.csv", body)
    assert [row[2:4] for row in rows] == [("train", "p1"), ("validation", "p2"), ("test", None), (None, "p1")]
    rows, _ = read(tmp_path, "n.csv", "a.jpg,train,x\nb.jpg,test,y\n")
    assert [row[:3] for row in rows] == [("a.jpg", "x", "train"), ("b.jpg", "y", "test")]
    rows, _ = read(tmp_path, "o.csv", "path,label,split\na.jpg,x,train\nb.jpg,y,unlabelled\n")
    assert [(row[1], row[4]) for row in rows] == [("x", None), (None, "unlabelled")]


def test_latin_1(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "m.csv", "path,label\nblüte.jpg,Löwenzahn\nb.jpg,Gänseblümchen\n".encode("latin-1"))
    assert [row[:2] for row in rows] == [("blüte.jpg", "Löwenzahn"), ("b.jpg", "Gänseblümchen")]


def test_paths(tmp_path: Path) -> None:
    elsewhere = tmp_path / "photos"
    elsewhere.mkdir()
    (elsewhere / "0007.png").touch()
    body = "path,label\nset\\a.jpg,x\n/abs/b.jpg,x\ns3://bucket/c.jpg,x\n0007,x\n0008,x\n"
    rows, _ = read(tmp_path, "m.csv", body, root=str(elsewhere))
    assert [row[0] for row in rows] == [
        "photos/set/a.jpg",
        "/abs/b.jpg",
        "s3://bucket/c.jpg",
        "photos/0007.png",
        "photos/0008",
    ]


NAMES = [
    ("names.txt", "pink primrose\nglobe thistle\n"),
    ("names.csv", "0,pink primrose\n1,globe thistle\n"),
    ("names.txt", "0 pink primrose\n1 globe thistle\n"),
    ("names.json", '["pink primrose", "globe thistle"]'),
    ("names.json", '{"0": "pink primrose", "1": "globe thistle"}'),
    ("names.json", '{"pink primrose": 0, "globe thistle": 1}'),
]


@pytest.mark.parametrize(("name", "text"), NAMES)
def test_numbers_get_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    rows, _ = read(tmp_path, "m.csv", "path,label\na.jpg,0\nb.jpg,1\nc.jpg,0\n", class_names=str(tmp_path / name))
    assert [row[1] for row in rows] == ["pink primrose", "globe thistle", "pink primrose"]


def test_numbers_from_one(tmp_path: Path) -> None:
    """As in the labels of Oxford's flowers."""
    names = tmp_path / "names.txt"
    names.write_text("pink primrose\nglobe thistle\n")
    rows, _ = read(tmp_path, "m.csv", "path,label\na.jpg,1\nb.jpg,2\n", class_names=str(names))
    assert [row[1] for row in rows] == ["pink primrose", "globe thistle"]
    with pytest.raises(InputError, match=r"--class-names: .* names 2 classes, but not '3'"):
        read(tmp_path, "m.csv", "path,label\na.jpg,0\nb.jpg,3\n", class_names=str(names))
    rows, _ = read(tmp_path, "m.csv", "a.jpg,1,0\nb.jpg,0,1\n", class_names=str(names))
    assert [row[1] for row in rows] == ["pink primrose", "globe thistle"]


def test_several_labels_are_none(tmp_path: Path) -> None:
    two = {**COCO, "annotations": [{"image_id": 0, "category_id": 7}, {"image_id": 0, "category_id": 9}]}
    rows, _ = read(tmp_path, "m.json", json.dumps(two))
    assert {(row[1], row[4]) for row in rows} == {(None, "unlabelled")}


def test_a_photo_in_two_rows_is_read_twice_and_counts_once(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "m.csv", "path,label\na.jpg,x\na.jpg,x\n")
    assert len(rows) == 2


@pytest.mark.parametrize(
    "body",
    ["5", '"x"', "[1, 2]", '{"a": []}', '{"images": [], "annotations": [{"image_id": 1}], "categories": []}', "["],
)
def test_other_json(tmp_path: Path, body: str) -> None:
    with pytest.raises(InputError, match=r"--data: .*m\.json") as caught:
        read(tmp_path, "m.json", body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["s3://bucket/a.jpg?endpoint_override=evil.example", "s3://key:word@bucket/a.jpg", "http://evil.example/?a.jpg"],
)
def test_an_address_that_chooses_who_is_asked_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="of its choosing") as caught:
        read(tmp_path, "a.csv", f"path,label\n{path},rose\n")
    assert "word" not in str(caught.value)


SEEDS = [
    b"path,label\na.jpg,rose\nb.jpg,tulip\n",
    b"\xef\xbb\xbfpath;label;split\r\na.jpg;rose;train\r\n",
    b"a.jpg\trose\nb.jpg\ttulip\n",
    b'{"path":"a.jpg","label":"rose"}\n{"path":"b.jpg","label":1}\n',
    b'[{"image":"a.jpg","label":"r"},{"image":"b.jpg","label":null}]',
    b'{"images":[{"id":1,"file_name":"a.jpg"}],"annotations":[{"image_id":1,"category_id":2}],'
    b'"categories":[{"id":2,"name":"x"}]}',
    b'[{"data":{"image":"/data/upload/1/a.jpg"},"annotations":[{"result":[{"value":{"choices":["rose"]}}]}]}]',
    b"filename,daisy,rose\na.jpg,1,0\nb.jpg,0,1\n",
]
PIECES = [b",", b"\n", b'"', b"[", b"]", b"{", b"}", b"null", b"1e999", b"\0", b"\xff\xfe", b"../", b"s3://", b"NaN"]


def test_any_bytes_are_rows_or_one_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(1500):
        data = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 6)):
            at = rng.randint(0, len(data))
            data[at : at + rng.choice((0, 0, 1, 8))] = rng.choice((*PIECES, bytes([rng.randrange(256)]), b""))
        try:
            read(tmp_path, rng.choice(("a.csv", "a.tsv", "a.json", "a.jsonl")), bytes(data))
        except InputError as error:
            said = str(error)
            if "\n" in said:
                pytest.fail(f"{bytes(data)!r}: {said}")


@pytest.mark.parametrize("path", ["s3://[x/a", "b\0/a", "//", "a" * 300 + "/a"])
def test_odd_paths_are_paths(tmp_path: Path, path: str) -> None:
    assert read(tmp_path, "a.jsonl", json.dumps({"path": path, "label": "rose"}) + "\n")[0][0][1] == "rose"
