"""Corrections: what a person decided of doubtful labels, as a table that one job writes and the others take.

A decision is about a photo, known by its bytes: it holds for all files that have them, wherever they lie.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from flowers import storage
from flowers.data.look_alikes import did_you_mean
from flowers.data.manifest import decoded
from flowers.errors import InputError, few, first_line
from flowers.text import several, spreadsheet_safe, spreadsheet_text

ACTIONS: Final = ("keep", "relabel", "drop")
# `label` is what the data says, `suggested` what other photos say; `score` is the probability of the label, and
# `suggested_score` that of the suggestion. A person fills in the last two.
COLUMNS: Final = ("path", "sha256", "subset", "label", "suggested", "score", "suggested_score", "action", "new_label")
_REQUIRED: Final = ("sha256", "label", "action")
_DELIMITERS: Final = ",;\t"


@dataclass(frozen=True)
class Decision:
    """What was decided of a photo.

    Attributes:
        sha256: of its bytes.
        label: what the data said.
        action: one of `ACTIONS`.
        new_label: what it is instead, to relabel; else "".
        line: where it stands, for messages.
    """

    sha256: bytes
    label: str
    action: str
    new_label: str = ""
    line: int = 0

    @property
    def says(self) -> tuple[str, str]:
        """What it does to the photo."""
        return self.action, self.new_label


@dataclass(frozen=True)
class Corrections:
    """Decisions, one a photo.

    Attributes:
        source: the file that they were read from.
        decisions: by the SHA-256 of the photo's bytes.
    """

    source: str
    decisions: dict[bytes, Decision]

    @property
    def digest(self) -> str:
        """Hash of what is decided, however the file is written."""
        said = sorted((one.sha256.hex(), one.label, *one.says) for one in self.decisions.values())
        return storage.sha256(json.dumps(said).encode())

    def check_labels(self, known: Iterable[str | None]) -> None:
        """Raises `InputError` if a new label is none of the classes that are `known`."""
        labels = {label for label in known if label is not None}
        for one in self.decisions.values():
            if one.action == "relabel" and one.new_label not in labels:
                hint = did_you_mean([one.new_label], labels)
                what = f"new_label is {one.new_label!r}, the classes are {few(sorted(labels))}"
                raise self.wrong(one, what + (f"; {hint}" if hint else ""))

    def wrong(self, one: Decision, what: str) -> InputError:
        """The error of a decision that does not fit the photos."""
        return _wrong(self.source, one.line, what)

    def apply(self, rows: pa.Table, *, some: bool = False) -> tuple[pa.Table, pa.Array, pa.Array]:
        """Decides what is decided.

        Args:
            rows: of files, with the columns path, label, sha256, code and detail.
            some: whether these are only some of the photos of which something was decided.

        Returns:
            The rows, relabelled, dropped photos with the code "dropped"; for each row what its label was, null if that
            did not change; and its action, null where nothing was decided.

        Raises:
            InputError: a photo is not there, or has yet another label by now.
        """
        labels, codes, details = (rows[name].to_pylist() for name in ("label", "code", "detail"))
        was: list[str | None] = [None] * rows.num_rows
        actions: list[str | None] = [None] * rows.num_rows
        places: dict[bytes, list[int]] = {}
        for index, digest in enumerate(rows["sha256"].to_pylist()):
            if digest in self.decisions:
                places.setdefault(digest, []).append(index)
        for digest, one in self.decisions.items():
            indices = places.get(digest)
            if indices is None and some:
                continue
            if indices is None:
                raise self.wrong(one, f"no photo has the sha256 {digest.hex()[:12]}...; remove the line")
            found = {labels[index] for index in indices}
            if not found & {one.label, one.new_label or one.label}:
                raise self.wrong(
                    one,
                    f"{rows['path'][indices[0]]} was labelled {one.label!r} and is labelled {labels[indices[0]]!r} by "
                    "now; look at it again, or remove the line",
                )
            for index in indices:
                actions[index] = one.action
                if one.action == "relabel" and labels[index] not in (None, one.new_label):
                    was[index], labels[index] = labels[index], one.new_label
                elif one.action == "drop" and codes[index] is None:
                    codes[index], details[index] = "dropped", f"by line {one.line} of {self.source}"
        for name, values in (("label", labels), ("code", codes), ("detail", details)):
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
        return rows, pa.array(was, pa.string()), pa.array(actions, pa.string())


def read_corrections(uri: str, option: str = "--relabel") -> Corrections:
    """The decisions of a file that `written` made and a person filled in, perhaps with a spreadsheet.

    Args:
        uri: path or URI.
        option: that named it, for messages.

    Raises:
        InputError: it cannot be read, or a line cannot be understood: the text names the line.
    """
    source = storage.absolute(uri)
    try:
        text = decoded(storage.read(source))
        head = text.lstrip("\r\n").split("\n", 1)[0]
        delimiter = max(_DELIMITERS, key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(cells, reader.line_num) for cells in reader if any(cells)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{option}: {source} cannot be read: {first_line(error)}") from error
    names = [name.strip().casefold().replace(" ", "_") for name in lines[0][0]] if lines else []
    if missing := [name for name in _REQUIRED if name not in names]:
        raise InputError(
            f"{option}: {source} has no column {missing[0]!r}; required is a suspects.csv, with the columns "
            f"{', '.join(COLUMNS)}"
        )
    decisions: dict[bytes, Decision] = {}
    for cells, line in lines[1:]:
        if len(cells) != len(names):
            raise _wrong(source, line, f"{several(len(cells), 'column')}, the first line has {len(names)}", option)
        row = {name: spreadsheet_text(cell) for name, cell in zip(names, cells, strict=True)}
        one = _decision(source, line, row, option)
        if one is None:
            continue
        other = decisions.setdefault(one.sha256, one)
        if (other.says, other.label) != (one.says, one.label):
            raise _wrong(source, line, f"says something else of the same photo than line {other.line}", option)
    return Corrections(source, decisions)


def _decision(source: str, line: int, row: dict[str, str], option: str) -> Decision | None:
    """What a row says; None if nothing was decided."""
    try:
        digest = bytes.fromhex(row["sha256"])
    except ValueError:
        digest = b""
    action, new_label = row["action"].strip().casefold(), row.get("new_label", "")
    if len(digest) != 32:
        raise _wrong(source, line, f"sha256 is {row['sha256']!r}, required are 64 hexadecimal digits", option)
    if action not in (*ACTIONS, ""):
        raise _wrong(source, line, f"action is {row['action']!r}, required is {', '.join(ACTIONS)} or nothing", option)
    if action == "relabel":
        new_label = new_label or row.get("suggested", "")
        if not new_label:
            raise _wrong(source, line, "relabel without a new_label", option)
    elif new_label:
        raise _wrong(source, line, f"new_label is {new_label!r}, but action is not relabel", option)
    if not action:
        return None
    if new_label == row["label"]:
        action, new_label = "keep", ""
    return Decision(digest, row["label"], action, new_label, line)


def _wrong(source: str, line: int, what: str, option: str = "--relabel") -> InputError:
    return InputError(f"{option}: line {line} of {source}: {what}")


def in_words(decisions: Mapping[str, int]) -> str:
    """How many photos were relabelled, dropped and kept after a look; "" for none."""
    said = {"relabel": "relabelled", "drop": "dropped", "keep": "looked at and kept"}
    return ", ".join(f"{decisions[action]} {words}" for action, words in said.items() if decisions.get(action))


def cells_of(row: Sequence[Any]) -> list[str]:
    """The values of a row in the order of `COLUMNS` as cells of a CSV file."""
    return [
        "" if value is None else f"{value:.4f}" if isinstance(value, float) else spreadsheet_safe(str(value))
        for value in row
    ]


def written(rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as a CSV file.

    Args:
        rows: values in the order of `COLUMNS`; `sha256` as hexadecimal digits.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    writer.writerows(map(cells_of, rows))
    # Spreadsheets take a file without this mark for one in the encoding of the country.
    return text.getvalue().encode("utf-8-sig", "replace")
