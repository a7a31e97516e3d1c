"""Manifests: a table of photos as CSV, JSON Lines or Parquet, with the columns path, label and optionally split."""

from __future__ import annotations

import io
import json
import os

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from flowers import storage
from flowers.data.split import SUBSETS
from flowers.errors import InputError, first_line

SUFFIXES = (".csv", ".jsonl", ".parquet")
_SUBSET_NAMES = {"val": "validation", "valid": "validation", **{subset: subset for subset in SUBSETS}}

# Path, label, split, code and detail, as in `flowers.data.listing.LISTING`.
Row = tuple[str | None, ...]


def read_manifest(source: str) -> list[Row]:
    """The files that a manifest lists, in its order; a relative path starts at the manifest's folder.

    Raises:
        InputError: it cannot be read, lacks a column, or a row has no path or an unknown split.
    """
    try:
        columns = _columns(source, _parse(source, storage.read(source)))
    except (ValueError, OSError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"--data: {source} cannot be read: {first_line(error)}") from error
    folder = storage.parent(source)
    rows: list[Row] = []
    for number, (path, label, split) in enumerate(zip(*columns, strict=True), start=1):
        if not path:
            raise InputError(f"--data: row {number} of {source} has no path")
        if split and split.lower() not in _SUBSET_NAMES:
            raise InputError(
                f"--data: row {number} of {source} has the split {split!r}, allowed are {', '.join(SUBSETS)} or none"
            )
        if "://" not in path and not os.path.isabs(path):
            path = storage.join(folder, path)
        subset = _SUBSET_NAMES[split.lower()] if split else None
        code, detail = (None, None) if label else ("unlabelled", f"row {number} gives no label")
        rows.append((path, label or None, subset, code, detail))
    return rows


def _columns(source: str, table: pa.Table) -> list[list[str | None]]:
    """Path, label and split of all rows as text: a label 007 stays 007."""
    names = table.column_names
    wrong = [name for name in ("path", "label") if names.count(name) != 1] + ["split"] * (names.count("split") > 1)
    if wrong:
        raise InputError(
            f"--data: {source} has the columns {', '.join(names) or 'none'}, required are path and label, optionally "
            f"split, once each; {wrong[0]} is {'there twice' if wrong[0] in names else 'missing'}"
        )
    if "split" not in names:
        table = table.append_column("split", pa.nulls(table.num_rows))
    return [table[name].cast(pa.string()).to_pylist() for name in ("path", "label", "split")]


def _parse(source: str, data: bytes) -> pa.Table:
    stream = io.BytesIO(data)
    if storage.name(source).lower().endswith(".parquet"):
        return pq.read_table(stream)
    if storage.name(source).lower().endswith(".jsonl"):
        lines = enumerate(data.decode("utf-8-sig").split("\n"), start=1)
        rows = [_json_row(number, line) for number, line in lines if line.strip()]
        names = {name for row in rows for name in row}
        return pa.table({name: [_text(row.get(name)) for row in rows] for name in sorted(names)})
    if not data.strip():
        return pa.table({})
    layout = pyarrow.csv.ParseOptions(newlines_in_values=True)
    names = pyarrow.csv.open_csv(io.BytesIO(data), parse_options=layout).schema.names
    text = dict.fromkeys(names, pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""])
    return pyarrow.csv.read_csv(stream, parse_options=layout, convert_options=options)


def _json_row(number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object but {line[:40]!r}")
    return row


def _text(value: object) -> str | None:
    return None if value is None else str(value)
