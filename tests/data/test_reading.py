"""Reading and decoding blocks: as plain functions on real files, and the same through Ray."""

from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs as pafs

from flowers import storage
from flowers.data import images, reading
from flowers.data.listing import LISTING
from flowers.data.reading import BYTES, PIXELS, decode_block, digests_array, read_block
from flowers.errors import FlowersError

SIZE = 16
NONE = digests_array([])


def encoded(seed: int, form: str = "JPEG", side: int = 40) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, form)
    return out.getvalue()


def listing(*paths: object, **codes: str) -> pa.Table:
    rows = [{"path": str(path), "label": "a", "code": codes.get(Path(str(path)).stem)} for path in paths]
    return pa.Table.from_pylist([{**row, "detail": row["code"] and "listed so"} for row in rows], schema=LISTING)


def both(table: pa.Table, **options: Any) -> pa.Table:
    return decode_block(read_block(table), **{"size": SIZE, "max_pixels": 10_000, "known": NONE, **options})


def result(path: Path, data: bytes | None = None, **options: Any) -> dict[str, Any]:
    """The row of one file."""
    if data is not None:
        path.write_bytes(data)
    (row,) = both(listing(path), **options).to_pylist()
    assert (row["code"] is None) == (row["detail"] is None)
    assert row["code"] is None or (row["pixels"] is None and len(row["detail"].splitlines()) == 1)
    return row


@pytest.mark.parametrize(
    ("name", "form", "sniffed"),
    [
        ("a.jpg", "JPEG", "jpeg"),
        ("a.png", "PNG", "png"),
        ("a.jpg", "PNG", "png"),
        ("a", "JPEG", "jpeg"),
        ("a b\nü.txt", "GIF", "gif"),
    ],
)
def test_a_photo_whatever_it_is_called(tmp_path: Path, name: str, form: str, sniffed: str) -> None:
    data = encoded(0, form)
    row = result(tmp_path / name, data)
    assert row["code"] is None
    assert (row["size"], row["format"]) == (len(data), sniffed)
    assert row["sha256"] == hashlib.sha256(data).digest()
    assert row["pixels"] == images.decode(data, SIZE).tobytes()
    assert len(row["pixels"]) == SIZE * SIZE * 3


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("text.jpg", b"hello", "not_a_photo"),
        ("text.JPG", b"hello", "not_a_photo"),
        ("notes.txt", b"hello", "side_file"),
        ("notes", b"hello", "side_file"),
        ("empty.jpg", b"", "empty"),
        ("empty.txt", b"", "side_file"),
        ("cut.jpg", encoded(0)[:600], "truncated"),
        ("cut.txt", encoded(0)[:600], "truncated"),
        ("raw.tif", b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 99, "unsupported_format"),
        ("photo.tga", b"\0\0\2" + b"\0" * 99, "unsupported_format"),
        ("photo.nef", b"nothing known", "unsupported_format"),
        ("photo.psd", b"8BPS\0\1" + b"\0" * 99, "unsupported_format"),
        ("photo.jxl", b"", "empty"),
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR" + b"\0" * 40, "corrupt"),
        ("many.png", encoded(0, "PNG", side=101), "too_many_pixels"),
    ],
)
def test_a_file_that_is_no_use(tmp_path: Path, name: str, data: bytes, code: str) -> None:
    row = result(tmp_path / name, data)
    assert row["code"] == code
    assert row["sha256"] == hashlib.sha256(data).digest()
    assert row["size"] == len(data)


def test_the_pixel_cap_is_allowed_itself(tmp_path: Path) -> None:
    assert result(tmp_path / "a.png", encoded(0, "PNG", side=100))["code"] is None


@pytest.mark.timeout(20)
def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "dir.jpg").mkdir()
    wrong = [tmp_path / name for name in ("pipe.jpg", "loop.jpg", "zero.jpg", "dir.jpg", "gone.jpg")]
    for path in [*wrong, "http://x/y.jpg", "nope://x", "a\0b.jpg", "/" + "x" * 300]:
        row = result(path)  # type: ignore[arg-type]
        assert (row["code"], row["sha256"], row["size"]) == ("unreadable", None, None)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(0))

    def locked(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", locked)
    row = result(tmp_path / "a.jpg")
    assert (row["code"], row["detail"]) == ("unreadable", "Permission denied")


def test_the_byte_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(0)
    monkeypatch.setattr(reading, "MAX_BYTES", len(data))
    assert result(tmp_path / "a.jpg", data)["code"] is None
    row = result(tmp_path / "a.jpg", data + b"\0")
    assert (row["code"], row["sha256"]) == ("too_large", None)
    assert str(len(data)) in row["detail"]


def test_order_and_schema(tmp_path: Path) -> None:
    """Rows that come with a reason are passed on unread; a block of nothing is one too."""
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number) if number % 3 else b"no")
    table = listing(*(tmp_path / f"{number}.jpg" for number in range(9)), **{"4": "hidden", "9": "hidden"})
    read = read_block(table)
    assert read.schema == BYTES
    assert read.select(["path", "label", "split"]) == table.select(["path", "label", "split"])
    decoded = decode_block(read, size=SIZE, max_pixels=10_000, known=NONE)
    assert decoded.schema == PIXELS
    assert decoded.select(["path", "sha256", "size"]) == read.select(["path", "sha256", "size"])
    no = "not_a_photo"
    assert decoded["code"].to_pylist() == [no, None, None, no, "hidden", None, no, None, None]
    assert read["bytes"][4].as_py() is None
    assert decoded["detail"][4].as_py() == "listed so"
    assert both(table.slice(0, 0)).schema == PIXELS
    assert both(pa.concat_tables([table.slice(5), table.slice(0, 5)]))["path"].to_pylist() == [
        *table["path"].to_pylist()[5:], *table["path"].to_pylist()[:5]]  # fmt: skip


def test_known_photos_are_not_decoded(tmp_path: Path) -> None:
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(encoded(number))
    every = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    known = digests_array([every[4], every[1], b"\0" * 32, b"\xff" * 32])
    out = both(listing(*paths), known=known)
    assert [index for index, pixels in enumerate(out["pixels"]) if not pixels.is_valid] == [1, 4]
    assert out["code"].null_count == 6


def test_digests_that_end_in_zeros_are_told_apart() -> None:
    """NumPy drops zeros at the end of a byte string."""
    base = hashlib.sha256(b"x").digest()
    found = [base[: 32 - zeros] + b"\0" * zeros for zeros in (0, 1, 2, 31)] + [b"\0" * 31 + b"\1", b"\0" * 32]
    photo = encoded(0)
    rows = [{"path": "x.jpg", "sha256": digest, "bytes": photo} for digest in found]
    block = pa.Table.from_pylist(rows, schema=BYTES)
    for known in ([1], [2, 3], [4], [5], [0, 5], []):
        out = decode_block(block, size=SIZE, max_pixels=10_000, known=digests_array([found[index] for index in known]))
        assert [index for index, pixels in enumerate(out["pixels"]) if not pixels.is_valid] == known


def test_files_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by threads, in order; one filesystem per bucket; a local path may lie between."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.jpg").write_bytes(encoded(number + (name == "two") * 20, side=8))
    local = storage.resolve

    def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
        if not uri.startswith("mem://"):
            return local(uri)
        bucket, _, path = uri.removeprefix("mem://").partition("/")
        return pafs.SubTreeFileSystem(str(tmp_path / bucket), pafs.LocalFileSystem()), path

    monkeypatch.setattr(storage, "resolve", resolve)
    uris = [f"mem://{name}/{number}.jpg" for number in range(20) for name in ("one", "two")]
    uris += [f"{tmp_path}/one/3.jpg", "mem://one/none.jpg", "mem://three/0.jpg"]
    out = read_block(listing(*uris))
    contents = out["bytes"].to_pylist()
    files = [tmp_path / uri.removeprefix("mem://") for uri in uris[:41]]  # of an absolute path, itself
    assert contents[:41] == [file.read_bytes() for file in files]
    assert out["code"].to_pylist()[41:] == ["unreadable", "unreadable"]
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    assert read_block(listing("mem://one/0.jpg"))["code"].to_pylist() == ["too_large"]


@pytest.mark.usefixtures("ray")
def test_ray_streams_the_same_rows_in_order(tmp_path: Path) -> None:
    """Sizes differ, so blocks do not end in the order in which they begin."""
    paths = []
    for number in range(60):
        paths.append(tmp_path / f"{(number * 37) % 60:02d}.jpg")
        data = encoded(number, side=90 if number < 10 else 9)
        paths[-1].write_bytes(b"text" if number % 11 == 5 else data)
    table = listing(*paths, *[tmp_path / "gone.jpg"])
    known = digests_array([hashlib.sha256(paths[3].read_bytes()).digest()])
    options: dict[str, Any] = {"size": SIZE, "max_pixels": 10_000, "known": known}
    streamed = list(reading.tables(reading.stream_pixels(table, readers=2, **options)))
    assert len(streamed) > 3
    assert pa.concat_tables(streamed).combine_chunks() == both(table, **options).combine_chunks()
    again = list(reading.tables(reading.stream_blocks(table, reading.read_block, readers=2), 25))
    assert [part.num_rows for part in again] == [25, 25, 11]
    assert pa.concat_tables(again).combine_chunks() == read_block(table).combine_chunks()


def test_detached_columns_share_no_memory_with_their_table() -> None:
    table = pa.table({"path": ["a", "b"], "code": pa.array([None, "empty"])})
    own = {buffer.address for column in table.columns for buffer in column.chunk(0).buffers() if buffer}
    copies = reading.detached(table, ["path", "code"])
    assert not own & {buffer.address for column in copies.columns for buffer in column.chunk(0).buffers() if buffer}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("error", [FlowersError("no space left"), RuntimeError("unforeseen")])
def test_what_a_task_raises_on_purpose_is_raised_here(error: Exception) -> None:
    def fail(_: pa.Table) -> pa.Table:
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        list(reading.tables(reading.stream_blocks(listing("a", "b"), fail, readers=1)))
    assert (str(caught.value) == str(error)) is isinstance(error, FlowersError)


@pytest.mark.usefixtures("ray")
def test_ray_rests_while_nobody_takes_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks at once are more than the object store holds, and the first one is kept until Ray rests."""
    import ray

    rests: list[float] = []
    sleep = time.sleep

    def rest(seconds: float) -> None:
        if seconds == reading._REST_S:
            rests.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("flowers.data.reading.time.sleep", rest)
    each = int(ray.cluster_resources()["object_store_memory"]) // 8

    def large(block: pa.Table) -> pa.Table:
        return block.append_column("b", pa.array([bytes(each)], pa.large_binary()))

    blocks = [pa.table({"a": [number]}) for number in range(16)]
    deadline, found = time.monotonic() + 60, []
    for table in reading.tables(reading.stream_tables(blocks, large, readers=2)):
        while not rests:
            assert time.monotonic() < deadline
            sleep(0.01)
        found += table["a"].to_pylist()
    assert found == list(range(16))


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(("known", "largest"), [(20_000, reading.READ_ROWS), (19_999, reading.DECODED_ROWS)])
def test_blocks_are_larger_where_all_photos_are_known(tmp_path: Path, known: int, largest: int) -> None:
    missing = listing(*(tmp_path / f"{number}.jpg" for number in range(20_000)))
    digests = digests_array([number.to_bytes(32) for number in range(known)])
    photos = reading.stream_pixels(missing, size=SIZE, max_pixels=10, readers=2, known=digests)
    found = list(reading.tables(photos))
    assert max(table.num_rows for table in found) == largest
    assert [path for table in found for path in table["path"].to_pylist()] == missing["path"].to_pylist()
