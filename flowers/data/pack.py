"""Packs: photos in a folder of Parquet shards, with an index from which a million of them are listed in a second.

    shard-00000.parquet ...  the bytes, the label, the side, the group, the digest and the name of each photo
    _index.parquet           the same without bytes and digests, and every file that was left out: the listing
    left_out.csv             files that were left out, for people
    README.md                by which Hugging Face's `datasets` finds the shards among these files
    _source.json             what it is made from, written first
    pack.json                what there is, with hashes, written last: without it this is no pack

The same photos always make the same shards: each takes the next files of the listing, up to its size.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowers import storage
from flowers.data import shards
from flowers.data.reading import read_block
from flowers.errors import InputError, first_line
from flowers.text import several, spreadsheet_safe

MANIFEST, INDEX, LEFT_OUT, SOURCE = "pack.json", "_index.parquet", "left_out.csv", "_source.json"
CARD: Final = "README.md"
_CARD: Final = """---
configs:
- config_name: default
  data_files: shard-*.parquet
---
Photos packed by `python -m jobs.pack` of flowers. `pack.json` says what there is, `left_out.csv` what is not here.
"""
VERSION: Final = 1
_SHARD: Final = re.compile(r"shard-\d{5,}\.parquet")
# A row group: large enough for a bucket, small enough to read one photo of it; so many rows of tiny ones.
GROUP_BYTES, GROUP_ROWS = 2_000_000, 128
# What is known of every file, in the order of the listing; shard (its number) and row are null for one left out.
_INDEX: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("name", "label", "split", "group", "code", "detail")),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)
# What is packed of a file: columns of `flowers.data.listing.LISTING`, its name, and its bytes as they were counted.
PLANNED: Final = ("path", "label", "split", "group", "code", "detail", "name", "size")
# What `write_shard` says of a shard: `at` are the places in its plan of files that were left out, with the reasons.
WRITTEN: Final = pa.schema(
    [
        *(("name", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64())),
        *(("sha256", pa.string()), ("footer", pa.string())),
        *(("at", pa.list_(pa.int64())), ("codes", pa.list_(pa.string())), ("details", pa.list_(pa.string()))),
    ]
)
_FACTS: Final = ("name", "rows", "bytes", "sha256", "footer")
_ABOUT: Final = b"flowers"  # in the metadata of a shard


def is_pack(names: Collection[str]) -> bool:
    """Whether a folder that holds these names is a pack, or one that is not whole."""
    return SOURCE in names or (MANIFEST in names and shard_name(0) in names)


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:05}.parquet"


def is_own(name: str) -> bool:
    """Whether a file in a pack's folder is of that name because this program writes such."""
    own = name in (MANIFEST, INDEX, LEFT_OUT, SOURCE, CARD) or _SHARD.fullmatch(name) is not None
    return own or storage.is_left_over(name)


def schema_of(classes: Sequence[str]) -> pa.Schema:
    """The schema of shards, which Hugging Face's `datasets` takes for photos and class labels.

    Args:
        classes: names of the classes, sorted; a label is an index of one, null for a photo without.
    """
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        **{name: text for name in ("split", "group", "sha256")},
        "size": {"dtype": "int64", "_type": "Value"},
        "path": text,
    }
    fields = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        *((name, pa.string()) for name in ("split", "group", "sha256")),
        ("size", pa.int64()),
        ("path", pa.string()),
    ]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def filled(sizes: Sequence[int], most: int, rows: int) -> npt.NDArray[np.int64]:
    """The part of each file, int64 [n]: parts are of at most `most` bytes and `rows` files, or of one file."""
    numbers, part, held, count = np.empty(len(sizes), np.int64), 0, 0, 0
    for index, size in enumerate(sizes):
        if count and (held + size > most or count == rows):
            part, held, count = part + 1, 0, 0
        held, count = held + size, count + 1
        numbers[index] = part
    return numbers


def write_shard(plan: pa.Table, uri: str, classes: Sequence[str]) -> pa.Table:
    """Reads the files of a shard and writes it, unless it is there: then it is whole.

    Args:
        plan: columns `PLANNED`.
        uri: of the shard.
        classes: as of `schema_of`.

    Returns:
        A row of schema `WRITTEN`.

    Raises:
        OSError: it cannot be written.
    """
    if storage.exists(uri):
        with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # a damaged one is written anew
            return _found(uri)
    _write(plan, uri, schema_of(classes))
    return _found(uri)


def _found(uri: str) -> pa.Table:
    """The row of schema `WRITTEN` of a shard that is there."""
    with shards.opened(uri) as file:
        left_out = json.loads(file.metadata.metadata[_ABOUT])["left_out"]
        rows = file.metadata.num_rows
    size, sha256 = _sum(uri)
    at, codes, details = ([one[column] for one in left_out] for column in range(3))
    row = {"name": storage.name(uri), "rows": rows, "bytes": size, "sha256": sha256, "footer": footer_sha256(uri)}
    return pa.Table.from_pylist([{**row, "at": at, "codes": codes, "details": details}], schema=WRITTEN)


def _write(plan: pa.Table, uri: str, schema: pa.Schema) -> None:
    index = {name: number for number, name in enumerate(_classes(schema))}
    small = ["label", "split", "group", "sha256", "size", "path", "image.path"]
    left_out: list[tuple[int, str, str]] = []
    with (
        storage.writing(uri) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression={**dict.fromkeys(small, "zstd"), "image.bytes": "none"},
            use_dictionary=["label", "split", "group"],
            write_statistics=["label", "split", "group", "sha256", "size", "path"],
            write_page_checksum=True,
        ) as writer,
    ):
        for start, rows in _row_groups(plan["size"].to_pylist()):
            part = plan.slice(start, rows).combine_chunks()
            read = read_block(part)
            for at, code in enumerate(read["code"].to_pylist()):
                if code is not None:
                    left_out.append((start + at, code, read["detail"][at].as_py()))
            good = pc.is_null(read["code"])
            table = _rows(read.filter(good), part["name"].filter(good), index, schema)
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata({_ABOUT: json.dumps({"pack": VERSION, "left_out": left_out})})


def _classes(schema: pa.Schema) -> list[str]:
    return list(json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"])


def _row_groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first file of each row group, and how many it has."""
    numbers = filled(sizes, GROUP_BYTES, GROUP_ROWS)
    _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    yield from zip(first.tolist(), counts.tolist(), strict=True)


def _rows(read: pa.Table, names: pa.ChunkedArray, index: Mapping[str, int], schema: pa.Schema) -> pa.Table:
    photos = [
        {"bytes": data, "path": storage.name(name)}
        for data, name in zip(read["bytes"].to_pylist(), names.to_pylist(), strict=True)
    ]
    columns = {
        "image": photos,
        "label": [None if label is None else index[label] for label in read["label"].to_pylist()],
        "split": read["split"],
        "group": read["group"],
        "sha256": [digest.hex() for digest in read["sha256"].to_pylist()],
        "size": read["size"],
        "path": names,
    }
    return pa.table(columns, schema=schema)


def _sum(uri: str) -> tuple[int, str]:
    """Bytes of a file, and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def footer_sha256(uri: str) -> str:
    """The SHA-256 of a Parquet file's footer: it holds the least and largest digest of each row group."""
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as file:
        size = file.size()
        end = file.read_at(8, max(0, size - 8))
        length = int.from_bytes(end[:4], "little") + 8
        return storage.sha256(file.read_at(length, max(0, size - length)))


def index_of(listing: pa.Table, planned: npt.NDArray[np.int64], plans: Sequence[int], written: pa.Table) -> pa.Table:
    """The index of a pack.

    Args:
        listing: all files, in their order: columns name, label, split, group, code and detail.
        planned: int64 [m], those of them that were to be packed.
        plans: how many of these were planned for each shard.
        written: a row of schema `WRITTEN` for each shard.
    """
    codes, details = listing["code"].to_pylist(), listing["detail"].to_pylist()
    numbers: list[int | None] = [None] * listing.num_rows
    rows: list[int | None] = [None] * listing.num_rows
    start = 0
    for number, (count, shard) in enumerate(zip(plans, written.to_pylist(), strict=True)):
        files = planned[start : start + count].tolist()
        start += count
        for at, code, detail in zip(shard["at"], shard["codes"], shard["details"], strict=True):
            codes[files[at]], details[files[at]] = code, detail
        gone = set(shard["at"])
        for row, file in enumerate(file for at, file in enumerate(files) if at not in gone):
            numbers[file], rows[file] = number, row
    kept = {name: listing[name] for name in ("name", "label", "split", "group")}
    return pa.table({**kept, "code": codes, "detail": details, "shard": numbers, "row": rows}, schema=_INDEX)


def finish(uri: str, index: pa.Table, written: pa.Table, classes: Sequence[str]) -> None:
    """Writes what makes a folder of shards a pack, pack.json last; what is left of others goes.

    Raises:
        OSError: it cannot be written.
    """
    sink = io.BytesIO()
    pq.write_table(index, sink, compression="zstd", write_page_checksum=True)
    text = io.StringIO(newline="")
    csv.writer(text).writerow(["path", "label", "split", "group", "reason", "detail"])
    left_out = index.filter(pc.is_null(index["shard"]))
    for row in left_out.select(["name", "label", "split", "group", "code", "detail"]).to_pylist():
        csv.writer(text).writerow([spreadsheet_safe(cell or "") for cell in row.values()])
    names = set(written["name"].to_pylist())
    for name in storage.names(uri):
        if is_own(name) and name not in names | {SOURCE}:
            storage.delete_file(storage.join(uri, name))
    storage.write(storage.join(uri, CARD), _CARD.encode())
    storage.write(storage.join(uri, INDEX), sink.getvalue())
    storage.write(storage.join(uri, LEFT_OUT), text.getvalue().encode("utf-8", "replace"))
    about = {
        "pack": VERSION,
        "photos": sum(written["rows"].to_pylist()),
        "left_out": dict(Counter(left_out["code"].to_pylist()).most_common()),
        "bytes": sum(written["bytes"].to_pylist()),
        "classes": list(classes),
        "columns": schema_of(classes).names,
        "index": storage.sha256(sink.getvalue()),
        "shards": written.select(list(_FACTS)).to_pylist(),
    }
    storage.write(storage.join(uri, MANIFEST), json.dumps(about, indent=1).encode())


def read_about(uri: str) -> dict[str, Any]:
    """What pack.json says.

    Raises:
        InputError: it is not there or damaged, or of a later version.
    """
    try:
        about = dict(json.loads(storage.read(storage.join(uri, MANIFEST))))
        if about["pack"] > VERSION:
            raise InputError(
                f"--data: {uri} is a pack of version {about['pack']}, known are those up to {VERSION}; update the "
                "program"
            )
        for name in ("photos", "left_out", "bytes", "classes", "index"):
            about[name]
        for number, shard in enumerate(about["shards"]):
            if shard["name"] != shard_name(number) or not shard.keys() >= set(_FACTS):
                raise ValueError(f"shard {number} is {shard}")
    except FileNotFoundError as error:
        raise InputError(
            f"--data: {uri} is no whole pack: there is no {MANIFEST} yet; run the same jobs.pack again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--data: {storage.join(uri, MANIFEST)} is damaged ({first_line(error)}); pack anew"
        ) from error
    return about


def list_pack(uri: str, *, labelled: bool) -> tuple[pa.Table, dict[str, Any]]:
    """Lists the files of a pack, from its index.

    Args:
        uri: the folder.
        labelled: whether labels count.

    Returns:
        Columns path, label, split, group, code and detail (`flowers.data.listing.LISTING`), in the order of the
        listing that was packed, and what pack.json says.

    Raises:
        InputError: it is not whole, a shard is missing or is another one than was packed.
    """
    about = read_about(uri)
    _check(uri, about["shards"])
    try:
        data = storage.read(storage.join(uri, INDEX))
        if storage.sha256(data) != about["index"]:
            raise ValueError("its hash is another one than in pack.json")
        index = pq.read_table(io.BytesIO(data))
        absent, unlabelled = pc.is_null(index["shard"]), pc.equal(index["code"], "unlabelled").fill_null(False)
        if pc.any(pc.and_(absent, pc.or_(pc.is_null(index["code"]), unlabelled))).as_py():
            raise ValueError("a file is neither in a shard nor left out")
        files = [storage.join(uri, shard["name"]) for shard in about["shards"]]
        paths = shards.paths_of(files, index["shard"], index["row"], index["name"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"--data: {storage.join(uri, INDEX)} is damaged: {first_line(error)}; pack anew") from error
    folder, options = storage.cut(storage.join(uri, ""))
    names = shards.quoted(index["name"]) if storage.is_remote(uri) else index["name"]
    outside = pc.binary_join_element_wise(folder, names, options, "")
    listed = {"path": pc.coalesce(paths, outside)}
    nothing = pa.nulls(index.num_rows, pa.string())
    listed |= {name: index[name] if labelled else nothing for name in ("label", "split", "group")}
    for name in ("code", "detail"):
        listed[name] = index[name] if labelled else pc.if_else(unlabelled, pa.scalar(None, pa.string()), index[name])
    return pa.table(listed), about


def _check(uri: str, named: Sequence[Mapping[str, Any]]) -> None:
    """Makes sure that the shards are those that were packed, without reading them."""
    there = {entry.name: entry for entry in storage.entries(uri)}
    if missing := [shard["name"] for shard in named if shard["name"] not in there]:
        raise InputError(
            f"--data: the pack {uri} lacks {missing[0]} ({len(missing)} of {several(len(named), 'shard')}); copy it "
            "again, or pack anew"
        )

    def differs(shard: Mapping[str, Any]) -> bool:
        with suppress(OSError):
            same_size = there[shard["name"]].size == shard["bytes"]
            return not same_size or footer_sha256(storage.join(uri, shard["name"])) != shard["footer"]
        return True

    with ThreadPoolExecutor(16) as pool:
        wrong = [shard["name"] for shard, is_other in zip(named, pool.map(differs, named), strict=True) if is_other]
    if wrong:
        raise InputError(
            f"--data: {storage.join(uri, wrong[0])} is not the shard that was packed ({len(wrong)} of {len(named)} "
            "differ from pack.json); copy it again, or pack anew"
        )
