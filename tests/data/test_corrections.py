"""Corrections: what a person decided comes back as it was written, and a line that cannot hold is named."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowers.data.corrections import COLUMNS, Corrections, in_words, read_corrections, written
from flowers.data.ledger import ROW, Ledger, settle
from flowers.errors import InputError


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def row(name: str, label: str, action: str = "", new_label: str = "", suggested: str = "roses") -> tuple[Any, ...]:
    return f"/photos/{name}.jpg", digest(name).hex(), "train", label, suggested, 0.25, 0.5, action, new_label


def read(folder: Path, *rows: tuple[Any, ...]) -> Corrections:
    file = folder / "suspects.csv"
    file.write_bytes(written(rows))
    return read_corrections(str(file))


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXT, TEXT, st.sampled_from(["keep", "relabel", "drop", ""]), TEXT), unique_by=lambda r: r[0])
)
def test_decisions_come_back(tmp_path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Whatever labels and paths are called: formulas, blanks, line ends; and a spreadsheet finds no formula."""
    made = [row(name, label, action, new if action == "relabel" else "") for name, label, action, new in rows]
    found = read(tmp_path, *made).decisions
    expected = {}
    for name, label, action, new in rows:
        if action:
            same = action == "relabel" and new == label
            expected[digest(name)] = (
                label,
                "keep" if same else action,
                new if action == "relabel" and not same else "",
            )
    assert {sha256: (one.label, *one.says) for sha256, one in found.items()} == expected
    cells = csv.reader(io.StringIO((tmp_path / "suspects.csv").read_text("utf-8-sig", errors="strict"), newline=""))
    assert not [cell for line in cells for cell in line if cell[:1] in tuple("=+-@\t\r\n＝＋－＠")]


def test_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """Semicolons, other letters and columns, an encoding of Windows; a suggestion that is taken needs no new label."""
    lines = [
        "SHA256;Label;Note;Action;Suggested;New Label",
        f"{digest('a').hex()};Gänseblümchen;;Relabel ;Löwenzahn;",
        f"{digest('b').hex()};Tulpe;schön;KEEP;Rose;",
        ";;;;;",
    ]
    file = tmp_path / "s.csv"
    file.write_bytes("\r\n".join(lines[:3]).encode("cp1252"))
    found = read_corrections(str(file)).decisions
    assert [(one.label, *one.says) for one in found.values()] == [
        ("Gänseblümchen", "relabel", "Löwenzahn"),
        ("Tulpe", "keep", ""),
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [row("a", "daisy"), row("b", "daisy", "delete")],
            "line 3 of .*: action is 'delete', required is keep, relabel",
        ),
        ([row("a", "daisy", "relabel", suggested="")], "line 2 of .*: relabel without a new_label"),
        ([row("a", "daisy", "", "tulips")], "line 2 of .*: new_label is 'tulips', but action is not relabel"),
        ([row("a", "daisy", "keep", "tulips")], "line 2 of .*: new_label is 'tulips', but action is not relabel"),
        ([row("a", "daisy", "drop"), row("a", "daisy", "keep")], "line 3 of .*: says something else .* than line 2"),
        ([("/a.jpg", "12", *row("a", "daisy", "keep")[2:])], "line 2 of .*: sha256 is '12', required are 64"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, rows: list[tuple[Any, ...]], words: str) -> None:
    with pytest.raises(InputError, match=f"^--relabel: {words}"):
        read(tmp_path, *rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.jpg,x\n", "has no column 'sha256'; required is a suspects.csv, with the columns path, sha256"),
        ("", "has no column 'sha256'"),
        ("sha256,label,action\n1,2\n", "line 2 of .*: 2 columns, the first line has 3"),
        ('sha256,label,action\n"1,2,3\n', "cannot be read"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=f"^--relabel: .*{words}"):
        read_corrections(str(tmp_path / "x.csv"))
    with pytest.raises(InputError, match=r"^--relabel: .*nowhere.csv cannot be read"):
        read_corrections(str(tmp_path / "nowhere.csv"))


def settled(corrections: Corrections, *more: dict[str, Any]) -> Ledger:
    rows = [
        {"path": f"/photos/{label}/{n}.jpg", "label": label, "sha256": digest(f"{label}{n}")}
        for label in ("daisy", "tulips")
        for n in range(8)
    ]
    table = pa.Table.from_pylist([*rows, *more], schema=ROW)
    return settle(table, (0.7, 0.2, 0.1), 0, 0.2, corrections=corrections)


def test_the_ledger_says_what_was_decided(tmp_path: Path) -> None:
    copy = {"path": "/photos/daisy/copy.jpg", "label": "daisy", "sha256": digest("daisy0")}
    both = {"path": "/photos/tulips/both.jpg", "label": "tulips", "sha256": digest("daisy3")}
    decisions = read(
        tmp_path,
        row("daisy0", "daisy", "relabel", "tulips"),
        row("daisy1", "daisy", "keep"),
        row("tulips2", "tulips", "drop"),
        row("daisy3", "daisy", "keep"),
        row("daisy4", "daisy"),
        row("tulips5", "daisy", "relabel", "tulips"),  # whose file was moved there meanwhile
    )
    ledger = settled(decisions, copy, both)
    rows = {one["path"].removeprefix("/photos/"): one for one in ledger.table.to_pylist()}
    assert [rows["daisy/0.jpg"][name] for name in ("label", "was", "decision")] == ["tulips", "daisy", "relabel"]
    # A copy has the same label, so nothing contradicts; under two labels a photo is still kept out.
    assert [rows["daisy/copy.jpg"][name] for name in ("label", "was", "reason")] == ["tulips", "daisy", "duplicate"]
    assert rows["daisy/3.jpg"]["reason"] == rows["tulips/both.jpg"]["reason"] == "conflict"
    assert [rows["tulips/2.jpg"][name] for name in ("status", "reason")] == ["quarantined", "dropped"]
    assert rows["tulips/2.jpg"]["detail"].startswith("by line 4 of ")
    assert [rows["daisy/1.jpg"][name] for name in ("label", "was", "decision")] == ["daisy", None, "keep"]
    assert rows["daisy/4.jpg"]["decision"] is None
    assert [rows["tulips/5.jpg"][name] for name in ("label", "was", "decision")] == ["tulips", None, "relabel"]
    assert ledger.decisions() == {"relabel": 2, "keep": 1, "drop": 1}
    assert in_words(ledger.decisions()) == "2 relabelled, 1 dropped, 1 looked at and kept"
    assert ledger.per_class()["tulips"]["train"] + ledger.per_class()["daisy"]["train"] > 8


def test_decisions_of_other_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3 of .*: no photo has the sha256 [0-9a-f]{12}\.\.\.; remove the line"):
        settled(read(tmp_path, row("daisy0", "daisy", "keep"), row("strange", "daisy", "drop")))
    with pytest.raises(InputError, match=r"line 2 of .*: /photos/daisy/0.jpg was labelled 'roses' and is .* 'daisy'"):
        settled(read(tmp_path, row("daisy0", "roses", "keep")))
    with pytest.raises(InputError, match=r"line 2 of .*: new_label is 'lilies', the classes are 'daisy', 'tulips'$"):
        read(tmp_path, row("daisy0", "daisy", "relabel", "lilies")).check_labels(["daisy", None, "tulips"])
    with pytest.raises(InputError, match=r"did you mean 'tulips' by 'Tulips ' \(U\+0020\)\?$"):
        read(tmp_path, row("daisy0", "daisy", "relabel", "Tulips ")).check_labels(["daisy", None, "tulips"])
    assert COLUMNS[-2:] == ("action", "new_label")
