"""What a folder or a manifest lists, however odd, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from flowers import storage
from flowers.data.listing import LISTING, Listing, list_files, list_photos
from flowers.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three files; nothing here is ever opened, so they are empty."""
    root = tmp_path / "photos"
    for label in ("roses", "tulips"):
        for number in range(3):
            touch(root / label / f"{number}.jpg")
    return root


def touch(path: Path | bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").close()


def listed(data: object, **options: Any) -> Listing:
    return list_photos(str(data), **{"datasets": f"{data}.datasets", "per_class": None, "seed": 0, **options})


def rows(data: object, **options: Any) -> list[tuple[Any, ...]]:
    """(path, label, split, code) of each row."""
    table = listed(data, **options).table
    assert table.schema == LISTING
    assert table["code"].is_null().equals(table["detail"].is_null())
    return [(row["path"], row["label"], row["split"], row["code"]) for row in table.to_pylist()]


def extra(folder: Path) -> list[tuple[Any, ...]]:
    """(path below the folder, label, code) of what was put beside the six photos of the fixture."""
    plain = {str(folder / label / f"{number}.jpg") for label in ("roses", "tulips") for number in range(3)}
    found = rows(folder)
    assert plain <= {row[0] for row in found}
    return [(row[0].removeprefix(f"{folder}/"), row[1], row[3]) for row in found if row[0] not in plain]


def refusal(data: object, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        listed(data, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    text.encode()
    return text


def test_the_first_folder_is_the_class(folder: Path) -> None:
    touch(folder / "roses" / "2024" / "may" / "x.JPG")
    touch(folder / "roses" / "0.txt")
    assert extra(folder) == [("roses/0.txt", "roses", None), ("roses/2024/may/x.JPG", "roses", None)]
    listing = listed(folder)
    assert (listing.source, listing.listed, listing.drawn) == (str(folder), 8, False)


def test_the_listing_is_ordered_whatever_the_disk_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(folder / "roses" / "deep" / "x.jpg")
    plain, walk = rows(folder), os.walk

    def backwards(*arguments: Any, **options: Any) -> Any:
        for root, folders, files in walk(*arguments, **options):
            folders.reverse()
            yield root, folders, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert rows(folder) == plain


def test_files_beside_the_class_folders_have_no_label(folder: Path) -> None:
    touch(folder / "README.txt")
    touch(folder / "0.jpg")
    assert extra(folder) == [("0.jpg", None, "unlabelled"), ("README.txt", None, "unlabelled")]


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "roses/.DS_Store",
        "roses/._0.jpg",
        ".git/config",
        "roses/.ipynb_checkpoints/0.jpg",
        "__MACOSX/roses/0.jpg",
        "roses/Thumbs.db",
        "tulips/desktop.ini",
    ],
)
def test_hidden_files_are_listed_as_such(folder: Path, name: str) -> None:
    touch(folder / name)
    assert extra(folder) == [(name, None, "hidden")]


@pytest.mark.timeout(20)
def test_what_is_no_file_is_unreadable_and_hangs_nothing(folder: Path) -> None:
    os.mkfifo(folder / "roses" / "pipe.jpg")
    (folder / "roses" / "broken.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "roses" / "self.jpg").symlink_to(folder / "roses" / "self.jpg")
    (folder / "roses" / "zero.jpg").symlink_to("/dev/zero")
    names = ("broken", "pipe", "self", "zero")
    assert extra(folder) == [(f"roses/{name}.jpg", "roses", "unreadable") for name in names]


def test_a_linked_class_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "d.jpg")
    touch(tmp_path / "elsewhere" / "e.jpg")
    (folder / "daisy").symlink_to(tmp_path / "elsewhere")
    assert extra(folder) == [("daisy/d.jpg", "daisy", None), ("daisy/e.jpg", "daisy", None)]


@pytest.mark.timeout(20)
def test_a_link_to_where_it_lies_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "roses" / "up").symlink_to(folder)
    (folder / "roses" / "here").symlink_to(folder / "roses")
    touch(tmp_path / "out" / "o.jpg")
    (folder / "tulips" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(folder / "tulips")
    assert extra(folder) == [("tulips/out/o.jpg", "tulips", None)]


def test_a_second_name_of_a_class_is_not_entered(folder: Path) -> None:
    """Under both names the photos would be conflicts, under "all" alone they would be mislabelled."""
    (folder / "all").symlink_to(folder / "roses")
    assert extra(folder) == []


def test_each_real_folder_is_listed_once(folder: Path) -> None:
    """Eight folders that all link to each other were listed 109,600 times."""
    names = [f"f{number}" for number in range(8)]
    for name in names:
        touch(folder / "tulips" / name / "x.jpg")
    for name in names:
        for other in set(names) - {name}:
            (folder / "tulips" / name / other).symlink_to(folder / "tulips" / other)
    outside = folder.parent / "outside"
    touch(outside / "y.jpg")
    (folder / "tulips" / "one").symlink_to(outside)
    (folder / "tulips" / "two").symlink_to(outside)
    found = extra(folder)
    assert [row[0] for row in found] == [*(f"tulips/{name}/x.jpg" for name in names), "tulips/one/y.jpg"]


def test_a_folder_that_cannot_be_listed_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(folder / "secret" / "0.jpg")
    scandir = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert extra(folder) == [("secret", None, "unreadable")]


@pytest.mark.parametrize("name", ["a b.jpg", "ü花.jpg", "a\nb.jpg", "%41?#.jpg", "-.jpg", "'\".jpg", "noextension"])
def test_odd_names_are_kept(folder: Path, name: str) -> None:
    touch(folder / "dog rose, ü" / name)
    touch(folder / "roses" / name)
    found = [(f"dog rose, ü/{name}", "dog rose, ü", None), (f"roses/{name}", "roses", None)]
    with pytest.raises(InputError, match="class 'dog rose, ü' has 1"):
        listed(folder)
    touch(folder / "dog rose, ü" / "z")
    assert set(extra(folder)) == {*found, ("dog rose, ü/z", "dog rose, ü", None)}


def test_names_that_are_no_text_are_unreadable(folder: Path) -> None:
    """In a class folder, and a class folder itself."""
    try:
        touch(os.fsencode(folder) + b"/roses/\xff.jpg")
        touch(os.fsencode(folder) + b"/\xfe/0.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert set(extra(folder)) == {
        ("roses/\\udcff.jpg", "roses", "unreadable"),
        ("\\udcfe/0.jpg", "\\udcfe", "unreadable"),
    }


def test_a_file_uri_is_a_folder(folder: Path) -> None:
    moved = folder.rename(folder.with_name("my photos"))
    assert rows(f"file://{moved}") == rows(f"file://{folder.parent}/my%20photos/") == rows(moved)


def test_paths_of_a_bucket_are_uris(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with `%`, `#` or `?` must be quoted, or another file would be opened."""
    touch(folder / "dog rose" / "50%20#?.jpg")
    touch(folder / "dog rose" / "ü.jpg")
    bucket = pafs.SubTreeFileSystem(str(folder.parent), pafs.LocalFileSystem())
    local = storage.resolve
    monkeypatch.setattr(storage, "resolve", lambda uri: (bucket, "photos") if uri.startswith("mem://") else local(uri))
    found = rows("mem://photos?region=x")
    assert found[:2] == [
        ("mem://photos/dog%20rose/50%2520%23%3F.jpg?region=x", "dog rose", None, None),
        ("mem://photos/dog%20rose/%C3%BC.jpg?region=x", "dog rose", None, None),
    ]
    assert len(found) == 8


def test_no_such_place(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none")
    assert "there is nothing at" in text
    assert "sample, flower_photos" in text
    assert "cannot be opened" in refusal("ftp://x/y")
    assert "cannot be opened" in refusal("\udcff")


@pytest.mark.timeout(20)
def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    touch(tmp_path / "a.docx")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.docx", "pipe"):
        text = refusal(tmp_path / name)
        assert name in text
        assert "required is a folder, a manifest" in text
        assert ".jsonl" in text


def test_nothing_to_train_on(tmp_path: Path) -> None:
    assert "found no photos" in refusal(tmp_path)
    touch(tmp_path / "0.jpg")
    touch(tmp_path / "1.jpg")
    touch(tmp_path / ".x" / "1.jpg")
    text = refusal(tmp_path)
    assert "(3 files)" in text
    assert "put the photos of each class into a sub-folder of its own" in text


def test_one_class_folder(folder: Path) -> None:
    shutil.rmtree(folder / "roses")
    assert "received usable photos of 1 class ('tulips')" in refusal(folder)
    (folder / "tulips" / "deeper").mkdir()
    (folder / "tulips" / "0.jpg").rename(folder / "tulips" / "deeper" / "0.jpg")
    assert "received usable photos of 1 class ('tulips')" in refusal(folder)


def test_class_folders_one_level_deeper(folder: Path) -> None:
    touch(folder / "LICENSE.txt")
    outer = folder.parent / "outer"
    outer.mkdir()
    folder.rename(outer / "flower photos")
    found = listed(outer)
    assert found.notes == ("the classes are the folders of flower photos/",)
    assert {(row["label"], row["code"]) for row in found.table.to_pylist()} == {
        ("roses", None),
        ("tulips", None),
        (None, "unlabelled"),
    }


def test_a_class_of_one_file(folder: Path) -> None:
    touch(folder / "daisy" / "0.jpg")
    assert "class 'daisy' has 1 usable photo" in refusal(folder)


# Manifests


def manifest(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_parquet(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


CONTENT = {
    "path": ["a.jpg", "sub dir/b.jpg", "/abs/c.jpg", "s3://bucket/d.jpg"],
    "label": ["007", "NA", "007", "NA"],
    "split": ["train", "VAL", None, "test"],
}


def every_kind(tmp_path: Path) -> list[Path]:
    lines = [dict(zip(CONTENT, row, strict=True)) for row in zip(*CONTENT.values(), strict=True)]
    table = "\n".join([",".join(CONTENT), *(",".join(value or "" for value in line.values()) for line in lines)])
    return [
        manifest(tmp_path / "m.csv", table),
        manifest(tmp_path / "bom.CSV", b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode() + b"\r\n"),
        manifest(tmp_path / "m.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"),
        manifest(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode()),
        as_parquet(tmp_path / "m.parquet", **CONTENT),
    ]


def test_every_kind_of_manifest_says_the_same(tmp_path: Path) -> None:
    for path in every_kind(tmp_path):
        assert rows(path) == [
            (f"{tmp_path}/a.jpg", "007", "train", None),
            (f"{tmp_path}/sub dir/b.jpg", "NA", "validation", None),
            ("/abs/c.jpg", "007", None, None),
            ("s3://bucket/d.jpg", "NA", "test", None),
        ]
        assert listed(path).source == str(path)


@pytest.mark.parametrize("label", ["NA", "null", "nan", "None", "007", "1e3", "true", "2020-01-01", "-", "N/A", "0x10"])
def test_labels_stay_text(tmp_path: Path, label: str) -> None:
    body = f"path,label\na.jpg,{label}\nb.jpg,{label}\nc.jpg,x\nd.jpg,x\n"
    assert [row[1] for row in rows(manifest(tmp_path / "m.csv", body))] == [label, label, "x", "x"]


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    lines = [{"path": f"{number}.jpg", "label": number % 2} for number in range(4)]
    assert [row[1] for row in rows(manifest(tmp_path / "m.jsonl", "\n".join(map(json.dumps, lines))))] == list("0101")
    path = as_parquet(tmp_path / "m.parquet", path=list("abcd"), label=pa.array([0, 1, 0, 1]).dictionary_encode())
    assert [row[1] for row in rows(path)] == list("0101")


def test_quotes_and_newlines_of_a_csv(tmp_path: Path) -> None:
    body = 'label,path,note\n"a, b","x, ""y"".jpg",1\n"a, b","new\nline.jpg",\nc,1.jpg,\nc,2.jpg,\n'
    found = [(row[0].removeprefix(f"{tmp_path}/"), row[1]) for row in rows(manifest(tmp_path / "m.csv", body))]
    assert found == [('x, "y".jpg', "a, b"), ("new\nline.jpg", "a, b"), ("1.jpg", "c"), ("2.jpg", "c")]


def test_line_separators_inside_json_strings(tmp_path: Path) -> None:
    names = ["a\u2028b.jpg", "a\x85b.jpg", "c.jpg", "d.jpg"]
    lines = [json.dumps({"path": name, "label": name[0] < "c"}, ensure_ascii=False) for name in names]
    assert [row[0] for row in rows(manifest(tmp_path / "m.jsonl", "\n".join(lines)))] == [
        f"{tmp_path}/{name}" for name in names
    ]


def test_a_row_without_label_is_unlabelled(tmp_path: Path) -> None:
    body = 'path,label\na.jpg,x\nb.jpg,x\nc.jpg,y\nd.jpg,y\ne.jpg,\nf.jpg,""\n'
    table = listed(manifest(tmp_path / "m.csv", body)).table.to_pylist()[4:]
    assert [(row["label"], row["code"], row["detail"]) for row in table] == [
        (None, "unlabelled", "line 6 gives no label"),
        (None, "unlabelled", "line 7 gives no label"),
    ]


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("m.csv", "path,size,note\na,7,b\n", "the columns path, size, note, required are path.*label is missing"),
        ("m.csv", "a;b\n", "the first row of .* is 'a, b'; required are a path and a label"),
        ("m.csv", "a.jpg,b,c\n", "no header and 3 columns, the first row is 'a.jpg, b, c'; put a header"),
        ("m.csv", "", "has no rows; required are a path and a label"),
        ("m.csv", "path,label,label\na,b,c\n", "label is there twice"),
        ("m.csv", "path,label,split,split\na,b,,\n", "split is there twice"),
        ("m.csv", "path,label\n", "has no rows"),
        ("m.csv", "path,label\na,b\nc\n", "cannot be read: line 3 has 1 column, the first has 2: 'c'"),
        ("m.csv", "path,label\n,b\n", "line 2 of .* has no path"),
        ("m.csv", "path,label,split\na,b,train\nc,b,x\n", "line 3 of .* has the split 'x', allowed are train, val"),
        ("m.jsonl", "", "has no rows"),
        ("m.jsonl", '{"path": "a", "label": "b"}\n{"path": \n', "cannot be read: line 2: "),
        ("m.jsonl", '{"path": "a", "label": "b"}\n5\n', "line 2 is no JSON object but '5'"),
        ("m.jsonl", "null", "line 1 is no JSON object"),
        ("m.jsonl", '["a", "b"]', "line 1 is no JSON object"),
        ("m.jsonl", "[" * 100_000, "cannot be read"),
        ("m.jsonl", b"\xff\xfe\x00", "cannot be read: .*utf-16"),
        ("m.jsonl", '{"path": "a"}', "the columns path, .*label is missing"),
        ("m.jsonl", '{"path": null, "label": "b"}', "line 1 of .* has no path"),
        ("m.jsonl", '{"path": "\\ud800", "label": "b"}', "cannot be read"),
        ("m.parquet", "PAR1 no", "cannot be read"),
        ("m.parquet", "", "cannot be read"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used(tmp_path: Path, name: str, body: str | bytes, says: str) -> None:
    assert re.search(says, refusal(manifest(tmp_path / name, body)))


def test_a_parquet_of_other_types(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(as_parquet(tmp_path / "a.parquet", path=["a"], label=[["x"]]))
    assert "cannot be read" in refusal(as_parquet(tmp_path / "b.parquet", path=[b"\xff"], label=["x"]))
    whole = as_parquet(tmp_path / "c.parquet", path=["a"] * 99, label=["x"] * 99)
    whole.write_bytes(whole.read_bytes()[:-20])
    assert "cannot be read" in refusal(whole)


# --per-class


def many(root: Path, *labels: str, count: int = 30) -> Path:
    for label in labels:
        for number in range(count):
            touch(root / label / f"{label}-{number}.jpg")
    return root


def chosen(root: Path, per_class: int, seed: int = 0) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, label, _, code in rows(root, per_class=per_class, seed=seed):
        if code is None:
            found.setdefault(label, set()).add(Path(path).name)
    return found


def test_a_subset_is_seeded(tmp_path: Path) -> None:
    root = many(tmp_path / "x", "a", "b")
    first = chosen(root, 10)
    assert {label: len(names) for label, names in first.items()} == {"a": 10, "b": 10}
    assert chosen(root, 10) == first
    assert chosen(root, 10, seed=1) != first
    assert listed(root, per_class=10).listed == 60
    assert chosen(root, 99) == chosen(root, 30)


def test_a_subset_depends_on_nothing_around_it(tmp_path: Path) -> None:
    """Not on other classes, not on where the folder lies; a larger one holds a smaller one; order is kept."""
    one = chosen(many(tmp_path / "x", "a", "b"), 10)
    other = chosen(many(tmp_path / "else" / "where", "0", "a", "c", "b"), 10)
    assert (other["a"], other["b"]) == (one["a"], one["b"])
    assert one["a"] < chosen(tmp_path / "x", 15)["a"]
    paths = [row[0] for row in rows(tmp_path / "x", per_class=10)]
    assert paths == sorted(paths)


def test_a_subset_moves_little_when_a_photo_comes(tmp_path: Path) -> None:
    root = many(tmp_path / "x", "a", "b")
    before = chosen(root, 10)["a"]
    touch(root / "a" / "new.jpg")
    assert len(before - chosen(root, 10)["a"]) <= 1


def test_a_subset_keeps_what_has_a_reason(tmp_path: Path) -> None:
    root = many(tmp_path / "x", "a", "b")
    touch(root / "stray.txt")
    touch(root / "a" / ".hidden")
    (root / "a" / "broken.jpg").symlink_to("nowhere")
    codes = Counter(row[3] for row in rows(root, per_class=5))
    assert codes == {None: 10, "unlabelled": 1, "hidden": 1, "unreadable": 1}


def test_the_named_set_sample(tmp_path: Path) -> None:
    listing = listed("sample", datasets=str(tmp_path / "datasets"))
    assert listing.drawn
    assert listing.listed == listing.table.num_rows == 200
    assert set(Counter(listing.table["label"].to_pylist()).values()) == {40}
    assert listing.table["code"].null_count == 200
    assert all(os.path.isfile(path) for path in listing.table["path"].to_pylist())


def unlabelled(data: object, **options: Any) -> list[tuple[str, str | None]]:
    """Names and codes of what is listed where labels do not count."""
    table = list_files(str(data), datasets="unused", labelled=False, **options).table
    assert table["label"].null_count == table["split"].null_count == table.num_rows
    return [
        (storage.name(path), code)
        for path, code in zip(*map(pa.ChunkedArray.to_pylist, table.columns[::4]), strict=True)
    ]


def test_without_labels_folders_mean_nothing(folder: Path) -> None:
    (folder / "roses").rename(folder / "train")  # half a split on disk, which training would ask about
    touch(folder / "flat.jpg")
    touch(folder / "@eaDir" / "flat.jpg")
    names = [("0.jpg", None), ("1.jpg", None), ("2.jpg", None)]
    assert unlabelled(folder) == [("flat.jpg", None), ("flat.jpg", "hidden"), *names, *names]
    assert unlabelled(folder / "flat.jpg") == [("flat.jpg", None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a 1.jpg\nb 2.jpg\n"),
        ("a.csv", "Image,Width\na 1.jpg,5\nb 2.jpg,6\na 1.jpg,7\n"),
        ("a.csv", "path,label,split\na 1.jpg,,whatever\nb 2.jpg,x,\n"),
        ("a.json", '["a 1.jpg", "b 2.jpg"]'),
        ("a.jsonl", '{"path": "a 1.jpg"}\n{"path": "b 2.jpg"}\n'),
    ],
)
def test_a_manifest_of_paths_alone(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert unlabelled(tmp_path / name) == [("a 1.jpg", None), ("b 2.jpg", None)]
    (tmp_path / name).write_text("path,label\n,rose\n")
    if name == "a.csv":
        with pytest.raises(InputError, match=r"line 2 of .* has no path"):
            unlabelled(tmp_path / name)
