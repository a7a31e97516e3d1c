"""Archives: what is in them is listed as if it lay in folders, and nothing of it lands elsewhere."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowers.data.listing import Listing, list_photos
from flowers.errors import InputError
from tests.data.test_images import SAMPLES

PHOTO = SAMPLES["jpeg"]
FILES = {f"{label}/{number}.jpg": PHOTO + bytes([number]) for label in ("cats", "dogs") for number in range(3)}


def listed(data: object, folder: Path) -> Listing:
    return list_photos(str(data), datasets=str(folder / "datasets"), per_class=None, seed=0)


def found(listing: Listing) -> dict[str, tuple[str | None, str | None]]:
    """Label and side by the name of each file."""
    rows = listing.table.to_pylist()
    return {row["path"].rpartition("/")[2]: (row["label"], row["split"]) for row in rows}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


KINDS: list[tuple[str, Any]] = [
    ("a.zip", zipped),
    ("a.ZIP", zipped),
    ("a.tar", tarred),
    ("a.tgz", partial(tarred, mode="w:gz")),
    ("a.tar.gz", partial(tarred, mode="w:gz")),
    ("a.tar.bz2", partial(tarred, mode="w:bz2")),
    ("a.tar.xz", partial(tarred, mode="w:xz")),
]


@pytest.mark.parametrize(("name", "pack"), KINDS)
@pytest.mark.parametrize("wrapper", ["", "flower photos/"])
def test_an_archive_is_its_folder(tmp_path: Path, name: str, pack: Any, wrapper: str) -> None:
    archive = pack(tmp_path / name, {wrapper + file: data for file, data in FILES.items()})
    listing = listed(archive, tmp_path)
    labels = [row["label"] for row in listing.table.to_pylist()]
    assert sorted(labels) == ["cats"] * 3 + ["dogs"] * 3
    for row in listing.table.to_pylist():
        assert Path(row["path"]).read_bytes().startswith(PHOTO)
    assert any(note.startswith("unpacked into ") for note in listing.notes)
    again = listed(archive, tmp_path)
    assert again.table.equals(listing.table)
    assert archive.exists()


def test_a_split_in_an_archive(tmp_path: Path) -> None:
    files = {f"data/{side}/{file}": data for side in ("train", "test") for file, data in FILES.items()}
    rows = listed(zipped(tmp_path / "a.zip", files), tmp_path).table.to_pylist()
    assert {(row["label"], row["split"]) for row in rows} == {
        (label, side) for label in ("cats", "dogs") for side in ("train", "test")
    }


def test_an_archive_that_changes_is_unpacked_again(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", FILES)
    listed(archive, tmp_path)
    zipped(archive, {**FILES, "birds/1.jpg": PHOTO, "birds/2.jpg": PHOTO + b"x"})
    assert "birds" in listed(archive, tmp_path).table["label"].to_pylist()


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "C:\\evil.jpg"])
def test_nothing_lands_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is refused, nothing of it is used") as caught:
        listed(tarred(tmp_path / "a.tar", {**FILES, name: PHOTO}), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil*"))
    assert not [path for path in (tmp_path / "datasets").iterdir() if path.is_dir()]


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers.data.archives._SPARE", 0)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.bmp", bytes(30 << 20))
    with pytest.raises(InputError, match=r"more than .* files or .* bytes"):
        listed(path, tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_damaged_archive_is_one_line_and_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\3\4 no archive")
    with pytest.raises(InputError, match="not a sound") as caught:
        listed(path, tmp_path)
    assert "\n" not in str(caught.value)
    assert path.exists()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_archive_on_the_network(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    zipped(tmp_path / "web" / "photos.zip", FILES)
    with served(tmp_path / "web") as address:
        rows = listed(f"{address}/photos.zip?token=1", tmp_path).table.to_pylist()
        with pytest.raises(InputError, match=r"is no archive; required is an address that ends with \.zip"):
            listed(f"{address}/photos", tmp_path)
        with pytest.raises(InputError):
            listed(f"{address}/none.zip", tmp_path)
    assert len(rows) == 6
    assert len(listed(f"{address}/photos.zip?token=1", tmp_path).table) == 6, "the server is not needed again"


def test_web_dataset(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for number, (name, data) in enumerate(FILES.items()):
        files[f"{number:06}.jpg"] = data
        files[f"{number:06}.cls"] = name.partition("/")[0].encode()
    assert set(found(listed(tarred(tmp_path / "a.tar", files), tmp_path)).values()) == {("cats", None), ("dogs", None)}
    shards = tmp_path / "shards"
    shards.mkdir()
    tarred(shards / "train-000000.tar", {name: data for name, data in files.items() if name < "000004"})
    tarred(shards / "val-000000.tar", {name: data for name, data in files.items() if name >= "000002"})
    rows = listed(shards, tmp_path).table.to_pylist()
    assert [(row["label"], row["split"]) for row in rows] == [
        *([("cats", "train")] * 3),
        ("dogs", "train"),
        ("cats", "validation"),
        *([("dogs", "validation")] * 3),
    ]
    labelled = {name.replace(".cls", ".json"): data for name, data in files.items()}
    labelled = {
        name: json.dumps({"label": data.decode()}).encode() if name.endswith(".json") else data
        for name, data in labelled.items()
    }
    assert len(listed(tarred(tmp_path / "b.tar", labelled), tmp_path).table) == 6


@pytest.mark.parametrize("data", ["hf://datasets/x/y", "ftp://host/a.zip", "nonsense://x", "s4://bucket/photos"])
def test_an_unknown_scheme_is_one_line(tmp_path: Path, data: str) -> None:
    with pytest.raises(InputError) as caught:
        listed(data, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_is_huge_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 30
    path = tmp_path / "photos.tar"
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 31)  # a hole: there is as much as it says
    tracemalloc.start()
    with pytest.raises(InputError, match=f"a header of {1 << 30} bytes"):
        listed(path, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
