"""Manifests: a table of photos as text, JSON or Parquet, in the forms in which people and label tools write it.

A manifest says of each photo its path and its label, and may say its side of the split and its group. Columns are known
by their names (`COLUMNS`), in any case; without a header, by what they hold.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.data import images
from flowers.data.layout import side_of
from flowers.errors import InputError, few, first_line
from flowers.text import secret_of, several, without_secrets

SUFFIXES: Final = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")

# Names of columns, without case, blanks and separators.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "path": (
        *("path", "filepath", "imagepath", "imgpath", "filename", "imagefilename", "imagefile", "file", "fname"),
        *("image", "imagename", "img", "imgname", "photo", "photopath", "imageid", "imgid", "uri", "url", "id", "name"),
    ),
    "label": (
        *("label", "labels", "class", "classname", "classlabel", "category", "categoryname", "target", "choice", "y"),
        *("species", "breed", "diagnosis", "dx", "classid", "labelid", "categoryid", "tag", "tags"),
    ),
    "split": ("split", "set", "subset", "partition", "usage", "phase"),
    "group": (
        *("group", "groupid", "groups", "patient", "patientid", "subject", "subjectid", "camera", "cameraid", "burst"),
        *("burstid", "session", "sessionid", "sequence", "sequenceid", "seqid", "video", "videoid", "lesionid"),
    ),
}
_DELIMITERS: Final = ",;\t|"
_REQUIRED: Final = "required are a path and a label in each row, optionally split and group"

# Path, label, split, group, code and detail, as in `flowers.data.listing.LISTING`.
Row = tuple[str | None, ...]


@dataclass
class _Table:
    """Columns of a manifest as text, and where each row stands.

    Attributes:
        names: of the columns; empty if there is no header.
        rows: cells; None where there is nothing.
        lines: what to call each row in a message.
    """

    names: list[str]
    rows: list[list[str | None]]
    lines: list[str] = field(default_factory=list)


def read_manifest(
    source: str, root: str | None = None, class_names: str | None = None, labelled: bool = True
) -> tuple[list[Row], list[str]]:
    """The files that a manifest lists, in its order.

    Args:
        source: the manifest.
        root: folder that relative paths start at; None takes the manifest's.
        class_names: file with the names of numbered classes: one a line, "number name", or JSON.
        labelled: whether labels count; else only paths do, each once.

    Returns:
        Rows, and lines that say what was understood of the columns.

    Raises:
        InputError: it cannot be read or understood; the text names the line, what was read and what is required.
    """
    try:
        table = _parse(source, storage.read(source))
    except (ValueError, OSError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"--data: {source} cannot be read: {first_line(error)}") from error
    if not table.rows:
        raise InputError(f"--data: {source} has no rows; {_REQUIRED}")
    roles, notes = _roles(source, table, labelled)
    paths = _paths([_cell(row, roles.path) for row in table.rows], root or storage.parent(source))
    if not labelled:
        for cells, line, path in zip(table.rows, table.lines, paths, strict=True):
            if path is None:
                raise InputError(
                    f"--data: {line} of {source} has no path: {_shown(cells)}; required is one in each row"
                )
        return [(path, None, None, None, None, None) for path in dict.fromkeys(paths)], notes
    labels = _labels(source, table, roles, class_names)
    rows: list[Row] = []
    for cells, line, path, label in zip(table.rows, table.lines, paths, labels, strict=True):
        if path is None:
            raise InputError(f"--data: {line} of {source} has no path: {_shown(cells)}; {_REQUIRED}")
        text, group = _cell(cells, roles.split), _cell(cells, roles.group)
        side = side_of(text) if text else None
        if text and side is None:
            raise InputError(
                f"--data: {line} of {source} has the split {text!r}, allowed are train, validation and test, or none"
            )
        code, detail = (None, None) if label else ("unlabelled", f"{line} gives no label")
        if side == "unlabelled":
            side, label, code, detail = None, None, "unlabelled", f"{line} is of the side {text!r}"
        rows.append((path, label, side, group, code, detail))
    return rows, notes


@dataclass(frozen=True)
class _Roles:
    """Which columns hold what; `one_hot` are the columns of classes, where there is none of labels."""

    path: int
    label: int | None = None
    split: int | None = None
    group: int | None = None
    one_hot: tuple[int, ...] = ()


def _roles(source: str, table: _Table, labelled: bool) -> tuple[_Roles, list[str]]:
    width = max(len(row) for row in table.rows)
    if not table.names:
        return _roles_by_content(source, table, width, labelled), [
            "the manifest has no header: columns are known by what they hold"
        ]
    plain = [_plain(name) for name in table.names]
    if double := sorted(name for name, count in Counter(plain).items() if count > 1 and _role(name)):
        raise InputError(
            f"--data: {source} has the columns {', '.join(table.names)}, required is each once; {double[0]} is there "
            "twice"
        )
    found: dict[str, int] = {}
    for role, names in COLUMNS.items():
        candidates = sorted((names.index(name), column) for column, name in enumerate(plain) if name in names)
        if candidates:
            found[role] = candidates[0][1]
    if "path" not in found:
        found |= _path_column(table)
    if not labelled and "path" in found:
        name = table.names[found["path"]]
        return _Roles(found["path"]), [] if name.strip().casefold() == "path" else [f"path is the column {name!r}"]
    rest = [column for column in range(len(plain)) if column not in found.values()]
    one_hot: tuple[int, ...] = ()
    if "label" not in found and len(rest) == 1:
        found["label"] = rest[0]
    elif "label" not in found and len(rest) > 1 and all(_is_flag(row, rest) for row in table.rows):
        one_hot = tuple(rest)
    if "path" not in found or ("label" not in found and not one_hot):
        missing = "path" if "path" not in found else "label"
        raise InputError(
            f"--data: {source} has the columns {', '.join(table.names)}, required are path and label, optionally split "
            f"and group; {missing} is missing"
        )
    notes = [
        f"{role} is the column {table.names[column]!r}"
        for role, column in found.items()
        if table.names[column].strip().casefold() != role
    ]
    if one_hot:
        notes.append(
            f"labels are the columns {few([table.names[column] for column in one_hot])}, one of them 1 in each row"
        )
    roles = _Roles(found["path"], found.get("label"), found.get("split"), found.get("group"), one_hot)
    return roles, [f"manifest: {', '.join(notes)}"] if notes else []


def _plain(name: str) -> str:
    """A column's name without case, blanks and separators."""
    return re.sub(r"[\W_]", "", name).casefold()


def _role(plain: str) -> str | None:
    return next((role for role, names in COLUMNS.items() if plain in names), None)


def _path_column(table: _Table) -> dict[str, int]:
    """The one column whose cells are named like pictures."""
    first = table.rows[0]
    columns = [column for column, cell in enumerate(first) if cell and _is_picture(cell)]
    return {"path": columns[0]} if len(columns) == 1 else {}


def _roles_by_content(source: str, table: _Table, width: int, labelled: bool) -> _Roles:
    found = _path_column(table)
    if not found:
        raise InputError(
            f"--data: the first row of {source} is {_shown(table.rows[0])}; {_REQUIRED}, with a header that names them"
        )
    if not labelled:
        return _Roles(found["path"])
    rest = [column for column in range(width) if column not in found.values()]
    if len(rest) > 1:
        sides = [column for column in rest if all(side_of(_cell(row, column) or "train") for row in table.rows)]
        if len(sides) == 1:
            found["split"] = sides[0]
            rest.remove(sides[0])
    if len(rest) > 1 and all(_is_flag(row, rest) for row in table.rows):
        return _Roles(found["path"], split=found.get("split"), one_hot=tuple(rest))
    if len(rest) != 1:
        raise InputError(
            f"--data: {source} has no header and {several(width, 'column')}, the first row is "
            f"{_shown(table.rows[0])}; put a header above it that says which are path and label"
        )
    return _Roles(found["path"], rest[0], found.get("split"))


def _labels(source: str, table: _Table, roles: _Roles, class_names: str | None) -> list[str | None]:
    if roles.one_hot:
        names = [table.names[column].strip() for column in roles.one_hot] if table.names else []
        if not names and class_names is None:
            raise InputError(
                f"--data: {source} has labels in {several(len(roles.one_hot), 'column')} without names; --class-names"
            )
        chosen = [next(at for at, column in enumerate(roles.one_hot) if _is_one(row[column])) for row in table.rows]
        return named([str(at) for at in chosen], class_names) if class_names else [names[at] for at in chosen]
    labels = [_cell(row, roles.label) for row in table.rows]
    return named(labels, class_names) if class_names else labels


def named(labels: Sequence[str | None], class_names: str) -> list[str | None]:
    """Names for the numbers of classes, from a file as `read_manifest` takes it."""
    names = _class_names(class_names)
    numbers = sorted({label for label in labels if label is not None})
    if all(number.isdecimal() for number in numbers) and isinstance(names, list):
        first = 1 if numbers and min(map(int, numbers)) >= 1 and max(map(int, numbers)) == len(names) else 0
        names = {str(index): name for index, name in enumerate(names, start=first)}
    if isinstance(names, list):
        names = {}
    names = {key.lstrip("0") or "0": name for key, name in names.items()}
    if unknown := [number for number in numbers if (number.lstrip("0") or "0") not in names]:
        raise InputError(
            f"--class-names: {class_names} names {several(len(names), 'class', 'classes')}, but not {few(unknown)}; "
            "required is one name a line in the order of the numbers, lines of number and name, or JSON"
        )
    return [None if label is None else names[label.lstrip("0") or "0"] for label in labels]


def _class_names(path: str) -> dict[str, str] | list[str]:
    try:
        text = decoded(storage.read(path))
        if path.lower().endswith(".json"):
            found = json.loads(text)
            if isinstance(found, dict) and all(str(value).isdecimal() for value in found.values()):
                return {str(value): str(key) for key, value in found.items()}  # from names to numbers
            return (
                {str(key): str(value) for key, value in found.items()}
                if isinstance(found, dict)
                else [*map(str, found)]
            )
    except (ValueError, OSError, TypeError) as error:
        raise InputError(f"--class-names: {path} cannot be read: {first_line(error)}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(\d+)[\s,;:]+(.+)", line) for line in lines]
    if lines and all(pairs):
        return {pair[1]: pair[2].strip() for pair in pairs if pair}
    return lines


def _paths(found: Sequence[str | None], folder: str) -> list[str | None]:
    """Absolute paths; a name without an extension gets that of the file in the folder."""
    paths: list[str | None] = []
    stems: dict[str, dict[str, str]] = {}
    for path in found:
        if path is None:
            paths.append(None)
            continue
        if "\\" in path and "/" not in path:
            path = path.replace("\\", "/")
        path = _from_label_studio(path).removeprefix("./")
        if "://" in path and ("?" in path or secret_of(path)):
            raise InputError(
                f"--data: a manifest names {without_secrets(path)!r} with options or a user, which could send what you "
                "may read to a host of its choosing; required is an address without"
            )
        if "://" not in path and not os.path.isabs(path):
            path = storage.join(folder, path)
        if not os.path.splitext(storage.name(path))[1]:
            parent = storage.parent(path)
            if parent not in stems:
                stems[parent] = {os.path.splitext(name)[0]: name for name in _names(parent) if _is_picture(name)}
            name = storage.name(path)
            path = storage.join(parent, stems[parent].get(name, name)) if name in stems[parent] else path
        paths.append(path)
    return paths


def _names(folder: str) -> list[str]:
    """What lies in a folder; nothing where there is none: its photos are unreadable, each with its path."""
    try:
        return storage.names(folder)
    except (OSError, ValueError, InputError):
        return []


def _from_label_studio(path: str) -> str:
    """A path as Label Studio serves it, as it lies on the disk."""
    try:
        address = urlsplit(path)
    except ValueError:  # brackets that hold no address
        return path
    if address.path.endswith("/data/local-files/") and (local := parse_qs(address.query).get("d")):
        return local[0]
    if address.path.startswith("/data/upload/"):
        return storage.name(address.path)
    return path


def _parse(source: str, data: bytes) -> _Table:
    name = storage.name(source).lower()
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        if double := [column for column, count in Counter(table.column_names).items() if count > 1]:
            raise InputError(f"--data: {source} has the column {double[0]} twice, required is each once")
        columns = [[_text(cell) for cell in table[column].to_pylist()] for column in table.column_names]
        return _numbered(table.column_names, [list(row) for row in zip(*columns, strict=True)], "row")
    text = decoded(data)
    if name.endswith(".jsonl"):
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return _of_records(
            [_json_row(number, line) for number, line in lines], [f"line {number}" for number, _ in lines]
        )
    if name.endswith(".json"):
        try:
            return _of_json(json.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its form is not what its first keys promise: {error!r}") from error
    return _of_text(text)


def decoded(data: bytes) -> str:
    """The text of a file: UTF-8 or UTF-16 with a byte order mark, UTF-8, or what Windows writes in Western Europe."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    for encoding in ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


def _of_text(text: str) -> _Table:
    sample = [line for line in text.splitlines()[:50] if line.strip()]
    delimiter = max(_DELIMITERS, key=lambda mark: (sum(mark in line for line in sample), mark == ","))
    blank = all(len(line.split()) == 2 and not _is_picture(line.split()[1]) for line in sample)
    if not any(delimiter in line for line in sample) and blank:
        delimiter = " "  # path and label, as in ImageNet's lists
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows, lines = list[list[str | None]](), list[str]()
    for cells in reader:
        if any(cell.strip() for cell in cells):
            rows.append([cell or None for cell in cells])
            lines.append(f"line {reader.line_num}")
    if not rows:
        return _Table([], [])
    header: list[str] = [cell or "" for cell in rows[0]]
    below = rows[1] if len(rows) > 1 else []
    named = any(_role(_plain(cell)) for cell in header) or any(_is_picture(cell or "") for cell in below)
    names = [cell.strip() for cell in header] if named and not any(map(_is_picture, header)) else []
    if names:
        rows, lines = rows[1:], lines[1:]
    width = len(names) or max(map(len, rows))
    for row, line in zip(rows, lines, strict=True):
        if len(row) > width or (names and len(row) < width):
            raise ValueError(f"{line} has {several(len(row), 'column')}, the first has {width}: {_shown(row)}")
    return _Table(names, rows, lines)


def _of_json(found: Any) -> _Table:
    """COCO's form, Label Studio's exports, a list of objects or of paths, or an object from paths to labels."""
    if isinstance(found, dict) and {"images", "annotations", "categories"} <= found.keys():
        return _of_coco(found)
    if isinstance(found, dict) and all(isinstance(value, str | int) for value in found.values()):
        return _numbered(["path", "label"], [[path, str(label)] for path, label in found.items()], "entry")
    if isinstance(found, list) and found and all(isinstance(task, dict) and "annotations" in task for task in found):
        return _numbered(["path", "label"], [_of_task(task) for task in found], "task")
    if isinstance(found, list) and found and all(isinstance(path, str) for path in found):
        return _numbered(["path"], [[path] for path in found], "entry")
    if isinstance(found, list) and all(isinstance(record, dict) for record in found):
        return _of_records(found, [f"entry {number}" for number in range(1, len(found) + 1)])
    raise ValueError("it is neither a list of objects, nor from paths to labels, nor COCO's or Label Studio's form")


def _of_coco(found: Mapping[str, Any]) -> _Table:
    names = {category["id"]: str(category["name"]) for category in found["categories"]}
    labels: dict[Any, set[str]] = {}
    for annotation in found["annotations"]:
        labels.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    rows: list[list[str | None]] = []
    for image in found["images"]:
        held = labels.get(image["id"], set())
        rows.append([str(image["file_name"]), held.copy().pop() if len(held) == 1 else None])
    return _numbered(["path", "label"], rows, "image")


def _of_task(task: Mapping[str, Any]) -> list[str | None]:
    """Path and label of a Label Studio task; no label where it has several, or none."""
    values = [value for value in task.get("data", {}).values() if isinstance(value, str)]
    path = next((value for value in values if _is_picture(urlsplit(value).path) or _is_picture(value)), None)
    chosen = {
        choice
        for annotation in task["annotations"]
        if not annotation.get("was_cancelled")
        for result in annotation.get("result", [])
        for choice in result.get("value", {}).get("choices", [])
    }
    return [path, chosen.pop() if len(chosen) == 1 else None]


def _of_records(records: Sequence[Mapping[str, Any]], lines: list[str]) -> _Table:
    names = list({name: None for record in records for name in record})
    return _Table(names, [[_text(record.get(name)) for name in names] for record in records], lines)


def _numbered(names: Iterable[str], rows: list[list[str | None]], what: str) -> _Table:
    return _Table(list(names), rows, [f"{what} {number}" for number in range(1, len(rows) + 1)])


def _json_row(number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object but {line[:40]!r}")
    return row


def _cell(row: Sequence[str | None], column: int | None) -> str | None:
    """A cell without blanks around it; None if it is empty or not there."""
    if column is None or column >= len(row):
        return None
    return (row[column] or "").strip() or None


def _is_picture(name: str) -> bool:
    return os.path.splitext(name.strip())[1].lower() in images.EXTENSIONS


def _is_flag(row: Sequence[str | None], columns: Sequence[int]) -> bool:
    """Whether one of these cells is 1 and the others are 0."""
    cells = [row[column] if column < len(row) else None for column in columns]
    return all(cell is not None and re.fullmatch(r"\s*[01](\.0+)?\s*", cell) for cell in cells) and (
        sum(map(_is_one, cells)) == 1
    )


def _is_one(cell: str | None) -> bool:
    return cell is not None and cell.strip().startswith("1")


def _shown(cells: Sequence[str | None]) -> str:
    text = ", ".join(cell or "" for cell in cells)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _text(value: object) -> str | None:
    if isinstance(value, bytes | list | tuple | dict):
        raise ValueError(f"a cell holds {str(value)[:40]!r}, required is text or a number")
    text = None if value is None else str(value)
    if text is not None:
        text.encode()  # half a character that JSON can hold is a ValueError
    return text
