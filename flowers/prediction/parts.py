"""Predictions as files: parts of a fixed number of rows, each of which appears whole, and the options that made them.

What has a row in a part is done. So a job that was killed goes on, and no file has two rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowers import locks, storage
from flowers.errors import DamagedFile, InputError, first_line
from flowers.options import check_folder, said
from flowers.text import spreadsheet_safe, spreadsheet_text
from flowers.typicality import none_of_these

Format = Literal["parquet", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("parquet", "csv", "jsonl")
# Names that readers of a folder of Parquet files leave alone.
_CONFIG, _SUMMARY = "_config.json", "_summary.json"
# What of a row tells whether it says something new of a file.
_SAME = ["path", "sha256", "error"]


def changed(before: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Which options are not what they were, in a line; nothing if all are."""
    return "; ".join(
        f"{name} was {said(before.get(name))}, now {said(options.get(name))}"
        for name in sorted({*before, *options})
        if before.get(name) != options.get(name)
    )


@dataclass(frozen=True)
class Predictions:
    """A folder of predictions.

    Attributes:
        uri: where it lies.
        form: of its parts.
    """

    uri: str
    form: Format

    @property
    def config(self) -> str:
        """_config.json: the options that decide what the rows say, and the classes in the order of their scores."""
        return storage.join(self.uri, _CONFIG)

    @property
    def summary(self) -> str:
        """_summary.json, written last, which marks the folder as complete: what is in it, and when it was made."""
        return storage.join(self.uri, _SUMMARY)

    def open(self, options: Mapping[str, Any], classes: Sequence[str], created: str) -> None:
        """Makes the folder, or finds that it is one of these options.

        Args:
            options: what decides the rows.
            classes: in the order of all scores, which is noted beside them.
            created: the time.

        Raises:
            InputError: it was made with others, or is none of predictions.
        """
        if not storage.exists(self.config):
            check_folder("--out", self.uri, [_CONFIG], "folder of predictions")
            body = {"options": dict(options), "classes": list(classes), "created": created}
            storage.write(self.config, json.dumps(body, indent=2).encode())
            return
        try:
            before = dict(json.loads(storage.read(self.config))["options"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"--out: {self.config} is damaged ({first_line(error)}); choose another --out") from error
        if changes := changed(before, options):
            raise InputError(
                f"--out: {self.uri} holds predictions made with other options ({changes}); choose another --out"
            )
        storage.sweep(self.uri)

    def parts(self) -> list[str]:
        """URIs of its parts, in their order."""
        pattern = re.compile(rf"part-\d+\.{self.form}")
        return [storage.join(self.uri, name) for name in storage.names(self.uri) if pattern.fullmatch(name)]

    def done(self) -> pa.Array:
        """Paths that have a row."""
        found = [read_part(uri, ["path"])["path"].combine_chunks() for uri in self.parts()]
        return pa.concat_arrays(found) if found else pa.array([], pa.string())

    def next(self) -> int:
        """The number of the first part that is not there."""
        return max((int(storage.name(uri).partition(".")[0][5:]) for uri in self.parts()), default=-1) + 1

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a part; `table` is what `predicted` returns."""
        name = f"part-{number:05}.{self.form}"
        with storage.enough_space(f"the predictions {self.uri}"):
            storage.write(storage.join(self.uri, name), encoded(table, self.form))

    def kept(self) -> AbstractContextManager[None]:
        """Removes the _config.json that the block makes if it fails before there is a part: nothing was predicted."""
        return nullcontext() if storage.exists(self.config) else storage.withdrawn(self.config)

    def renew(self, uri: str, table: pa.Table) -> list[str | None]:
        """Writes a part anew, whole or not at all, if files that it has look otherwise now: each keeps its place.

        Args:
            uri: of the part.
            table: what `predicted` returns of some of its files.

        Returns:
            The errors that the rows had which changed; None for those that had none.
        """
        earlier = read_part(uri, _SAME)
        before = {row["path"]: row for row in earlier.to_pylist()}
        now = table.select(_SAME).to_pylist()
        changed = [before[row["path"]] != row for row in now]
        if any(changed):
            with storage.enough_space(f"the predictions {self.uri}"):
                storage.write(uri, _replaced(storage.read(uri), self.form, table.filter(pa.array(changed))))
        return [before[row["path"]]["error"] for row, other in zip(now, changed, strict=True) if other]

    def since(self) -> float:
        """Unix time at which no row was out of date: of files that changed later, it may be."""
        try:
            noted = dict(json.loads(storage.read(self.config)))
            if storage.exists(self.summary):
                noted |= json.loads(storage.read(self.summary))
            return datetime.fromisoformat(noted.get("began") or noted["created"]).timestamp()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of an earlier version, or damaged
            return 0.0

    def counts(self, unknown: bool) -> dict[str, Any]:
        """Rows of all parts; those with an error, by its code; and photos of none of the classes.

        Args:
            unknown: whether that was asked; else it is None.
        """
        rows, errors, strangers = 0, Counter[str](), 0
        for uri in self.parts():
            part = read_part(uri, ["error", "reason"] if unknown else ["error"])
            rows += part.num_rows
            errors.update(error.partition(":")[0] for error in part["error"].drop_null().to_pylist())
            strangers += part.num_rows - part["reason"].null_count if unknown else 0
        return {"rows": rows, "errors": dict(errors.most_common()), "unknown": strangers if unknown else None}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes _summary.json."""
        storage.write(self.summary, json.dumps(dict(summary), indent=2).encode())


@contextmanager
def held(uri: str) -> Iterator[None]:
    """Keeps all other processes from writing into the folder `--out`.

    Raises:
        InputError: another one is at it, or it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(storage.no_empty_folders(uri))
        try:
            storage.make_folder(storage.parent(uri))
            stack.enter_context(locks.hold(locks.beside(uri)))
        except locks.InUse as error:
            raise InputError(
                f"--out: {uri} is in use by {error}; wait until that ends, or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(f"--out: {uri} cannot be written: {error.strerror or error}") from error
        yield


def predicted(
    scored: pa.Table, classes: Sequence[str], top: int, scores: bool, unknown: float | None = None
) -> pa.Table:
    """What is said of some files.

    Args:
        scored: schema `flowers.prediction.scorer.scored_schema`.
        classes: names of the K scores.
        top: how many classes are named, the likeliest first; at most K.
        scores: whether all scores are kept, too.
        unknown: share of photos of the classes that may be taken for none of them; None: every photo gets a label.

    Returns:
        Columns path, sha256 (hexadecimal), label (what the network says), score, top (a list of label and score),
        scores if wanted (K, in the order of the classes), with `unknown` typicality and reason, and error ("code:
        detail"). Of score, top, scores and error either the last is null or the others are; of label and reason either,
        of a good photo.
    """
    good = pc.is_valid(scored["scores"]).to_numpy()
    rows = scored.filter(pa.array(good))
    values = rows["scores"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, len(classes))
    best = np.argsort(-values, axis=1, kind="stable")[:, : min(top, len(classes))]
    names = pa.array(list(classes), pa.string()).take(pa.array(best.reshape(-1)))
    likely = pa.array(np.take_along_axis(values, best, axis=1).reshape(-1), pa.float32())
    pairs = pa.StructArray.from_arrays([names, likely], ["label", "score"])
    offsets = pa.array(np.arange(rows.num_rows + 1) * best.shape[1], pa.int32())
    at = np.full(scored.num_rows, -1)
    at[good] = np.arange(rows.num_rows)
    place = pa.array(at, mask=~good)
    listed = pa.ListArray.from_arrays(offsets, pairs)
    first = pa.array(np.arange(rows.num_rows) * best.shape[1])
    columns = {
        "path": scored["path"],
        "sha256": pa.array([None if one is None else one.hex() for one in scored["sha256"].to_pylist()], pa.string()),
        "label": names.take(first).take(place),
        "score": likely.take(first).take(place),
        "top": listed.take(place),
    }
    if scores:
        columns["scores"] = scored["scores"]
    if unknown is not None:
        usual = scored["typicality"]
        reasons = [None if one is None else none_of_these(one, unknown) for one in usual.to_pylist()]
        columns |= {"typicality": usual, "reason": pa.array(reasons, pa.string())}
        columns["label"] = pc.if_else(pc.is_valid(columns["reason"]), None, columns["label"])
    columns["error"] = pc.binary_join_element_wise(scored["code"], scored["detail"], ": ")
    # A bad file whose reason has no details.
    columns["error"] = pc.coalesce(columns["error"], scored["code"])
    table = pa.table(columns)
    return table.replace_schema_metadata({"classes": json.dumps(list(classes)), "top": str(best.shape[1])})


def encoded(table: pa.Table, form: Format) -> bytes:
    """The bytes of a part."""
    if form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        return sink.getvalue().to_pybytes()
    text = io.StringIO(newline="")
    if form == "jsonl":
        for row in table.to_pylist():
            text.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        classes = json.loads(table.schema.metadata[b"classes"])
        top = int(table.schema.metadata[b"top"])
        writer = csv.writer(text)
        writer.writerow(_csv_names(table, classes, top))
        writer.writerows(_csv_row(row, classes, top) for row in table.to_pylist())
    return text.getvalue().encode("utf-8", "replace")


def _replaced(data: bytes, form: Format, table: pa.Table) -> bytes:
    """A part in which the rows of some files are others."""
    if form == "parquet":
        old = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        new = {path: old.num_rows + index for index, path in enumerate(table["path"].to_pylist())}
        order = [new.get(path, index) for index, path in enumerate(old["path"].to_pylist())]
        return encoded(pa.concat_tables([old, table.cast(old.schema)]).take(pa.array(order)), form)
    old_lines, new_lines = (_lines(part, form) for part in (data, encoded(table, form)))
    kept = [new_lines.get(path, line) for path, line in old_lines.items()]
    return "".join(kept).encode("utf-8", "replace")


def _lines(data: bytes, form: Format) -> dict[str, str]:
    """The lines of a part by the path that they begin with, in their order; of CSV the first one is that of names."""
    text = data.decode()
    if form == "jsonl":
        return {json.loads(line)["path"]: f"{line}\n" for line in text.split("\n") if line}
    found = dict[str, str]()
    for row in csv.reader(io.StringIO(text, newline="")):
        line = io.StringIO(newline="")
        csv.writer(line).writerow(row)
        found[row[0]] = line.getvalue()
    return found


def _csv_names(table: pa.Table, classes: Sequence[str], top: int) -> Iterator[str]:
    for name in table.column_names:
        if name == "top":
            yield from (f"{what}_{rank}" for rank in range(1, top + 1) for what in ("label", "score"))
        elif name == "scores":
            yield from (f"score of {one}" for one in classes)  # begins with a letter: no formula
        else:
            yield name


def _csv_row(row: Mapping[str, Any], classes: Sequence[str], top: int) -> Iterator[object]:
    for name, value in row.items():
        if name == "top":
            pairs = [cell for pair in value or () for cell in (spreadsheet_safe(pair["label"]), pair["score"])]
            yield from pairs + [None] * (2 * top - len(pairs))
        elif name == "scores":
            yield from value or [None] * len(classes)
        else:
            yield spreadsheet_safe(value) if isinstance(value, str) else value


def read_part(uri: str, columns: Sequence[str]) -> pa.Table:
    """Some of the columns path, sha256, label, reason, error (text) and score (a number) of a part.

    Raises:
        DamagedFile: it is none.
    """
    form = storage.name(uri).rpartition(".")[2]
    try:
        data = storage.read(uri)
        if form == "parquet":
            return pq.read_table(io.BytesIO(data), columns=list(columns), page_checksum_verification=True)
        rows: list[dict[str, Any]]
        if form == "jsonl":
            rows = [json.loads(line) for line in data.decode().split("\n") if line]
        else:
            cells = csv.DictReader(io.StringIO(data.decode(), newline=""))
            rows = [{name: spreadsheet_text(row[name]) or None for name in columns} for row in cells]
        types = {"score": float}
        made = {name: [row[name] and types.get(name, str)(row[name]) for row in rows] for name in columns}
        return pa.table(
            {name: pa.array(made[name], pa.float64() if name in types else pa.string()) for name in columns}
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DamagedFile(
            f"{uri} cannot be read ({first_line(error)}); remove it, and the same command predicts its files again"
        ) from error
