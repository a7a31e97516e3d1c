"""Files of predictions: what they hold in each format, and what is known of them again."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers.errors import DamagedFile, InputError
from flowers.prediction.parts import FORMATS, Format, Predictions, encoded, predicted, read_part
from flowers.prediction.scorer import scored_schema
from flowers.text import spreadsheet_safe, spreadsheet_text

CLASSES = ["daisy", "=cmd()", "tulip"]
SCORES = [[0.1, 0.7, 0.2], None, [0.25, 0.25, 0.5]]


def scored() -> pa.Table:
    rows = [
        {
            "path": f"/photos/{index}.jpg",
            "sha256": bytes(31) + bytes([index]) if scores else None,
            "code": None if scores else "truncated",
            "detail": None if scores else "ends early",
            "scores": scores,
        }
        for index, scores in enumerate(SCORES)
    ]
    return pa.Table.from_pylist(rows, scored_schema(3))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_the_same(form: Format, bucket: Path) -> None:
    (bucket / "x" / "out").mkdir(parents=True)  # a real one needs no folders
    out = Predictions("mem://x/out", form)
    out.write(out.next(), predicted(scored(), CLASSES, top=2, scores=True))
    out.write(out.next(), predicted(scored().slice(0, 1), CLASSES, top=2, scores=True))
    first, second = out.parts()
    assert [first[-len(form) - 6 :], second[-len(form) - 6 :]] == [f"00000.{form}", f"00001.{form}"]
    table = read_part(first, ["path", "label", "score"])
    assert table["path"].to_pylist() == [f"/photos/{index}.jpg" for index in range(3)]
    assert table["label"].to_pylist() == ["=cmd()", None, "tulip"]
    assert table["score"].to_pylist() == [pytest.approx(0.7), None, 0.5]
    assert out.done().to_pylist() == [*(f"/photos/{index}.jpg" for index in range(3)), "/photos/0.jpg"]
    assert out.counts(unknown=False) == {"rows": 4, "errors": {"truncated": 1}, "unknown": None}
    (bucket / first.removeprefix("mem://")).write_bytes(b"\xff broken")
    with pytest.raises(DamagedFile, match="remove it"):
        out.done()


@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_replaced_where_they_stand(form: Format, tmp_path: Path) -> None:
    out, arguments = Predictions(str(tmp_path), form), (CLASSES, 2, True)
    before = predicted(scored(), *arguments)
    out.write(0, before)
    whole = (tmp_path / f"part-00000.{form}").read_bytes()
    assert out.renew(out.parts()[0], before.slice(1)) == []
    assert (tmp_path / f"part-00000.{form}").read_bytes() == whole
    now = scored().to_pylist()[:2]
    now[0] |= {"scores": [0.0, 0.25, 0.75], "sha256": b"a" * 32}
    now[1] |= {"scores": [1.0, 0.0, 0.0], "sha256": b"b" * 32, "code": None, "detail": None}
    new = predicted(pa.Table.from_pylist(now[::-1], scored_schema(3)), *arguments)
    assert out.renew(out.parts()[0], new) == ["truncated: ends early", None]
    expected = predicted(pa.Table.from_pylist([*now, scored().to_pylist()[2]], scored_schema(3)), *arguments)
    found = (tmp_path / f"part-00000.{form}").read_bytes()
    if form == "parquet":  # whose bytes depend on how often it was read
        table, wanted = (pq.read_table(io.BytesIO(data)) for data in (found, encoded(expected, form)))
        assert table.equals(wanted, check_metadata=True)
    else:
        assert found == encoded(expected, form)


def test_what_a_row_says() -> None:
    table = predicted(scored(), CLASSES, top=9, scores=False)
    assert table.column_names == ["path", "sha256", "label", "score", "top", "error"]
    good, bad, tied = table.to_pylist()
    assert [pair["label"] for pair in good["top"]] == ["=cmd()", "tulip", "daisy"]
    assert good["top"][0]["score"] == good["score"] == pytest.approx(0.7)
    assert good["sha256"] == "00" * 32
    assert good["error"] is None
    assert bad == {**dict.fromkeys(table.column_names), "path": "/photos/1.jpg", "error": "truncated: ends early"}
    assert [pair["label"] for pair in tied["top"]] == ["tulip", "daisy", "=cmd()"]  # of equal scores the first class


def test_a_spreadsheet_sees_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(encoded(predicted(scored(), CLASSES, 2, True), "csv").decode(), newline="")))
    assert rows[0] == [
        *("path", "sha256", "label", "score", "label_1", "score_1", "label_2", "score_2"),
        *("score of daisy", "score of =cmd()", "score of tulip", "error"),
    ]
    assert rows[1][2] == rows[1][4] == "'=cmd()"
    assert float(rows[1][3]) == pytest.approx(0.7)  # a number stays a number
    assert rows[2] == ["/photos/1.jpg", *[""] * 10, "truncated: ends early"]
    lines = encoded(predicted(scored(), CLASSES, 2, True), "jsonl").decode().splitlines()
    assert json.loads(lines[0])["label"] == "=cmd()"
    np.testing.assert_allclose(json.loads(lines[0])["scores"], [0.1, 0.7, 0.2], rtol=1e-6)


@given(st.text("'=+-@\t\r\n＝ax", max_size=4))
def test_what_is_told_apart_from_a_formula_is_had_again(text: str) -> None:
    cell = spreadsheet_safe(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
    assert spreadsheet_text(cell) == text


def test_a_folder_is_of_one_set_of_options(tmp_path: Path) -> None:
    out = Predictions(str(tmp_path / "out"), "csv")
    out.open({"--bundle": "1", "--top": 5}, CLASSES, "now")
    out.open({"--bundle": "1", "--top": 5}, CLASSES, "later")
    assert json.loads(Path(out.config).read_text())["classes"] == CLASSES
    with pytest.raises(InputError, match=r"other options \(--bundle was '1', now '2'; --top was 5, now 3\)"):
        out.open({"--bundle": "2", "--top": 3}, CLASSES, "later")
    with pytest.raises(InputError, match=r"\(--scores was not given, now given; --top was 5, now not given\)"):
        out.open({"--bundle": "1", "--top": None, "--scores": True}, CLASSES, "later")
    (tmp_path / "out" / "_config.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        out.open({}, [], "later")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"holds 'thesis.doc' and is no folder of predictions"):
        Predictions(str(tmp_path / "mine"), "csv").open({}, [], "now")
