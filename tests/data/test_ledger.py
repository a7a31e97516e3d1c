"""The ledger: every file has one fate, and its reason is the right one."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers.data.ledger import HARMLESS, REASONS, ROW, Ledger, mark_repeats, settle
from flowers.data.split import SUBSETS
from flowers.errors import InputError

GOOD = pc.field("code").is_null()
DEFAULT = (0.7, 0.27, 0.03)


def sha(content: object) -> bytes:
    return hashlib.sha256(str(content).encode()).digest()


def photo(path: str, label: str | None, content: object = None, **more: Any) -> dict[str, Any]:
    """One row; `content` decides the digest, by default the path does."""
    digest = sha(path if content is None else content)
    return {"path": path, "label": label, "sha256": digest, "size": 9, "format": "jpeg", **more}


def bad(path: str, label: str | None, code: str) -> dict[str, Any]:
    return {"path": path, "label": label, "code": code, "detail": f"it is {code}"}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROW)


def photos(count: int, *labels: str) -> list[dict[str, Any]]:
    return [photo(f"/d/{label}/{number}.jpg", label) for label in labels for number in range(count)]


def settled(rows: list[dict[str, Any]], **options: Any) -> Ledger:
    return settle(table(rows), **{"fractions": DEFAULT, "seed": 0, "max_bad_fraction": 1.0, **options})


def fate(ledger: Ledger, path: str) -> dict[str, Any]:
    return next(row for row in ledger.table.to_pylist() if row["path"] == path)


@st.composite
def listings(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with repeats, conflicts, bad files and manifest subsets; three classes are always usable."""
    rows = photos(4, "a", "b", "c")
    codes = sorted(set(REASONS) - {"duplicate", "conflict"})
    for number in range(draw(st.integers(0, 25))):
        path, label = f"/x/{number}", draw(st.sampled_from("abcd"))
        if draw(st.booleans()):
            code = draw(st.sampled_from(codes))
            rows.append(bad(path, None if code in ("unlabelled", "hidden") else label, code))
        else:
            subset = draw(st.sampled_from([None, *SUBSETS]))
            rows.append(photo(path, label, draw(st.integers(0, 8)), split=subset))
    return draw(st.permutations(rows))


@settings(deadline=None)
@given(listings(), st.integers(0, 9))
def test_every_file_has_one_fate(rows: list[dict[str, Any]], seed: int) -> None:
    try:
        ledger = settled(rows, seed=seed)
    except InputError:
        sides = [row["split"] for row in mark_repeats(table(rows)).filter(GOOD).to_pylist() if row["label"] == "d"]
        assert len(sides) == 1 or (sides and "train" not in sides)
        return
    out = ledger.table.to_pylist()
    assert [row["path"] for row in out] == [row["path"] for row in rows]
    assert set(ledger.counts()) <= {*SUBSETS, "quarantined"}
    assert sum(ledger.counts().values()) == len(rows)
    for before, after in zip(rows, out, strict=True):
        assert (after["status"] == "quarantined") == (after["reason"] is not None)
        assert after["reason"] is None or after["reason"] in REASONS
        assert before.get("code") is None or before["code"] == after["reason"]
        assert (after["reason"] is None) == (after["detail"] is None)
    used = ledger.used().to_pylist()
    assert len({row["sha256"] for row in used}) == len(used)
    assert {row["label"] for row in used} == set(ledger.classes)
    assert sum(len(ledger.subset(subset)) for subset in SUBSETS) == len(used) == len(ledger.split())
    assert sum(ledger.reasons().values()) == ledger.counts().get("quarantined", 0)
    assert sum(sum(subsets.values()) for subsets in ledger.per_class().values()) == len(used)


@settings(deadline=None)
@given(listings(), st.randoms(use_true_random=False))
def test_order_of_the_listing_changes_no_side(rows: list[dict[str, Any]], shuffle: random.Random) -> None:
    """Of equal photos another may stay, so subsets are compared by content; no manifest subsets here."""
    rows = [{**row, "split": None} for row in rows]
    mixed = list(rows)
    shuffle.shuffle(mixed)
    try:
        one, other = settled(rows), settled(mixed)
    except InputError:
        return
    for subset in SUBSETS:
        assert one.subset(subset)["sha256"].to_pylist() == other.subset(subset)["sha256"].to_pylist()
        assert one.subset(subset)["label"].to_pylist() == other.subset(subset)["label"].to_pylist()
        assert one.subset(subset)["sha256"].to_pylist() == sorted(one.subset(subset)["sha256"].to_pylist())
    assert one.split().select([0, 1, 2]) == other.split().select([0, 1, 2])


def test_of_equal_photos_the_first_stays() -> None:
    twins = [photo(f"/d/a/twin-{name}.jpg", "a", "twin") for name in "xyz"]
    ledger = settled([*photos(4, "a", "b"), *twins])
    assert fate(ledger, "/d/a/twin-x.jpg")["status"] in SUBSETS
    for name in "yz":
        row = fate(ledger, f"/d/a/twin-{name}.jpg")
        assert (row["reason"], row["detail"]) == ("duplicate", "same bytes as /d/a/twin-x.jpg")


def test_equal_photos_under_two_labels_are_all_kept_out() -> None:
    """Each names a photo that really has the other label."""
    rows = [photo("/d/a/1", "a", "twin"), photo("/d/a/2", "a", "twin"), photo("/d/b/3", "b", "twin")]
    ledger = settled([*photos(4, "a", "b"), *rows])
    found = [(fate(ledger, row["path"])["reason"], fate(ledger, row["path"])["detail"]) for row in rows]
    assert found == [
        ("conflict", "same bytes as /d/b/3, labelled b"),
        ("conflict", "same bytes as /d/b/3, labelled b"),
        ("conflict", "same bytes as /d/a/1, labelled a"),
    ]
    assert any("3 files have the same bytes under two labels" in text for text in ledger.warnings())


def test_bad_files_are_never_repeats() -> None:
    rows = table([{**bad("/d/a/1", "a", "truncated"), "sha256": sha(1)}, photo("/d/a/2", "a", 1)])
    assert mark_repeats(rows)["code"].to_pylist() == ["truncated", None]


@pytest.mark.parametrize("code", sorted(HARMLESS - {"duplicate"}))
def test_harmless_files_do_not_make_a_data_set_bad(code: str) -> None:
    strays = [bad(f"/d/{number}", None, code) for number in range(50)]
    twins = [photo(f"/d/a/t{number}", "a", "twin") for number in range(50)]
    ledger = settled([*photos(4, "a", "b"), *strays, *twins], max_bad_fraction=0.0)
    assert ledger.reasons() == {code: 50, "duplicate": 49}


@pytest.mark.parametrize("code", sorted(set(REASONS) - HARMLESS - {"conflict"}))
def test_one_bad_file_too_many_stops(code: str) -> None:
    with pytest.raises(InputError, match=f"1 of 9 files is unusable .1 {code}; e.g. /d/a/x.jpg: it is {code}"):
        settled([*photos(4, "a", "b"), bad("/d/a/x.jpg", "a", code)], max_bad_fraction=0.1)


@pytest.mark.parametrize(
    ("found", "count", "fraction"), [(100, 29, 0.29), (100, 57, 0.57), (10, 1, 0.1), (50, 7, 0.14)]
)
def test_the_bad_fraction_itself_is_allowed(found: int, count: int, fraction: float) -> None:
    """0.29 * 100 is 28.999999999999996 as a float."""
    good = photos((found - count) // 2, "a") + photos(found - count - (found - count) // 2, "b")
    wrong = [bad(f"/d/a/x{number}", "a", "corrupt") for number in range(count + 1)]
    assert settled(good + wrong[:count], max_bad_fraction=fraction).reasons() == {"corrupt": count}
    with pytest.raises(InputError, match="--max-bad-fraction"):
        settled(good[1:] + wrong, max_bad_fraction=fraction)


def test_conflicts_count_as_bad() -> None:
    rows = [*photos(4, "a", "b"), photo("/d/a/t", "a", "twin"), photo("/d/b/t", "b", "twin")]
    with pytest.raises(InputError, match=r"2 of 10 files are unusable .2 conflict"):
        settled(rows, max_bad_fraction=0.1)


def test_one_class_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"1 class \('roses'\), required are two or more; put .* sub-folder"):
        settled(photos(9, "roses"))


def test_a_class_of_one_is_named() -> None:
    with pytest.raises(InputError, match=r"class 'roses' has 1 usable photo, .*; 'roses' has 1 file; add photos or"):
        settled([*photos(5, "a", "b"), *photos(1, "roses")])
    with pytest.raises(InputError, match=r"class 'roses' has 1 .*; the same holds for 'tulips'; add photos"):
        settled([*photos(5, "a", "b"), *photos(1, "tulips", "roses")])


def test_a_class_of_few_usable_files_says_why() -> None:
    rows = [bad(f"/d/roses/{number}.heic", "roses", "unsupported_format") for number in range(5)]
    text = r"'roses' has 6 files, of which 5 unsupported_format \(e.g. /d/roses/0.heic: it is unsupported_format\)"
    with pytest.raises(InputError, match=text):
        settled([*photos(5, "a", "b"), *rows, *photos(1, "roses")])
    with pytest.raises(InputError, match=r"1 class \('a'\), .*'roses' has 5 files, of which 5 unsupp.*0.heic"):
        settled([*photos(5, "a"), *rows])


def test_many_classes_are_not_all_named() -> None:
    many = photos(1, *(f"c{number:03}" for number in range(149)))
    with pytest.raises(InputError, match=r"'c000' has 1 usable .* for 'c001', .* and 143 more; add") as caught:
        settled([*photos(5, "a", "b"), *many])
    assert len(str(caught.value)) < 400


def test_a_class_left_without_photos_is_a_warning() -> None:
    ledger = settled([*photos(40, "a", "b"), bad("/d/roses/1.jpg", "roses", "corrupt")], max_bad_fraction=0.1)
    assert ledger.classes == ("a", "b")
    assert "no usable photo of: roses; left out of the classes" in ledger.warnings()


def test_subsets_of_a_manifest_are_kept() -> None:
    rows = photos(30, "a", "b")
    for index, row in enumerate(rows):
        row["split"] = SUBSETS[index % 3]
    ledger = settled(rows)
    assert ledger.table["status"].to_pylist() == [row["split"] for row in rows]


def test_rows_without_a_side_fill_up_what_the_manifest_leaves() -> None:
    rows = photos(100, "a", "b")
    for row in rows[:40]:
        row["split"] = "train"
    assert settled(rows).per_class()["a"] == {"train": 70, "validation": 27, "test": 3}


def test_equal_photos_in_two_subsets_of_a_manifest_end_in_one() -> None:
    rows = [*photos(5, "a", "b"), photo("/d/a/x", "a", "t", split="test"), photo("/d/a/y", "a", "t", split="train")]
    ledger = settled(rows)
    assert [fate(ledger, path)["status"] for path in ("/d/a/x", "/d/a/y")] == ["test", "quarantined"]


def test_known_subsets_are_kept_but_a_manifest_wins() -> None:
    rows = photos(10, "a", "b")
    rows[0]["split"] = "train"
    ledger = settled(rows, known={rows[0]["sha256"]: 2, rows[1]["sha256"]: 2})
    assert [fate(ledger, rows[index]["path"])["status"] for index in (0, 1)] == ["train", "test"]


SIDES = [("train", "validation", "test"), ("train", "test"), ("train", "validation"), ("train",)]


@pytest.mark.parametrize("sides", SIDES)
def test_a_split_that_was_given_is_kept_and_what_it_lacks_is_cut_from_train(sides: tuple[str, ...]) -> None:
    rows = [
        {**row, "split": side, "path": f"{row['path']}.{side}", "sha256": sha((row["path"], side))}
        for row in photos(100, "a", "b")
        for side in sides
    ]
    found = settled(rows)
    given = {row["path"]: row["split"] for row in rows}
    counts = found.per_class()
    for row in found.table.to_pylist():
        assert row["status"] == given[row["path"]] or (given[row["path"]] == "train" and row["status"] not in sides)
    share = {"train": 0.7, "validation": 0.27, "test": 0.03}
    cut = {side: share[side] for side in SUBSETS if side == "train" or side not in sides}
    for label in "ab":
        for side in SUBSETS:
            whole = round(100 * share[side] / sum(cut.values())) if side in cut else 100
            assert abs(counts[label][side] - whole) <= 1, (side, counts)


def test_a_split_without_training_photos_is_refused() -> None:
    with pytest.raises(InputError, match="no photo for train"):
        settled([{**row, "split": "test"} for row in photos(5, "a", "b")])


def test_what_lies_on_two_sides_is_kept_where_it_tests() -> None:
    sides = [{**row, "split": "train"} for row in photos(20, "a", "b")]
    sides += [{**row, "path": f"/v{row['path']}", "split": "validation"} for row in photos(4, "a", "b")]
    sides += [{**row, "path": f"/t{row['path']}", "split": "test"} for row in photos(2, "a", "b")]
    for order in (sides, sides[::-1]):
        ledger = settled(order, max_bad_fraction=0)
        assert [fate(ledger, f"{place}/d/a/0.jpg")["status"] for place in ("", "/v", "/t")] == [
            "quarantined",
            "quarantined",
            "test",
        ]
        assert fate(ledger, "/v/d/a/2.jpg")["status"] == "validation"
        assert fate(ledger, "/d/a/2.jpg")["reason"] == "leak"
        assert fate(ledger, "/d/a/2.jpg")["detail"] == "same bytes as /v/d/a/2.jpg, which is for validation"
        assert ledger.reasons() == {"leak": 12}
        assert any(text.startswith("12 files show what is also on another side") for text in ledger.warnings())


def test_groups_stay_on_one_side() -> None:
    rows = [{**row, "group": f"g{number // 3}"} for number, row in enumerate(photos(60, "a", "b"))]
    ledger = settled(rows, fractions=(0.5, 0.3, 0.2))
    sides: dict[str, set[str]] = {}
    for row in ledger.table.to_pylist():
        sides.setdefault(row["group"], set()).add(row["status"])
    assert {len(found) for found in sides.values()} == {1}
    for counts in ledger.per_class().values():
        assert all(abs(counts[side] - whole) <= 3 for side, whole in zip(SUBSETS, (30, 18, 12), strict=True))


def test_a_group_on_two_sides_that_were_given_is_refused() -> None:
    rows = [{**row, "group": "x" if number < 2 else None} for number, row in enumerate(photos(9, "a", "b"))]
    rows = [{**row, "split": SUBSETS[number % 3]} for number, row in enumerate(rows)]
    with pytest.raises(InputError, match=r"/d/a/0.jpg and /d/a/1.jpg are of one group, .*train.*validation"):
        settled(rows)


def looking(rows: list[dict[str, Any]], *alike: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows with hashes of pictures; those at the indices of a tuple show the same one."""
    random = np.random.default_rng(0)
    hashes = [random.bytes(32) for _ in rows]
    for indices in alike:
        for index in indices[1:]:
            hashes[index] = hashes[indices[0]]
    return [{**row, "phash": value} for row, value in zip(rows, hashes, strict=True)]


def test_near_duplicates_stay_on_one_side_or_are_dropped() -> None:
    pairs = [(number, number + 30) for number in range(30)]
    rows = looking(photos(60, "a", "b"), *pairs)
    rows[30]["size"] = 1000
    grouped = settled(rows, near="group").table.to_pylist()
    assert all(grouped[one]["status"] == grouped[other]["status"] != "quarantined" for one, other in pairs)
    assert all(grouped[index]["like"] == grouped[one]["path"] for one, other in pairs for index in (one, other))
    assert all(row["like"] is None for row in grouped[60:])
    kept = settled(rows, near="keep").table.to_pylist()
    assert any(kept[one]["status"] != kept[other]["status"] for one, other in pairs), "the case is one"
    dropped = settled(rows, near="drop", max_bad_fraction=0).table.to_pylist()
    assert [dropped[index]["reason"] for index in (0, 30, 1, 31)] == ["near_duplicate", None, None, "near_duplicate"]


def test_near_duplicates_on_two_sides_that_were_given_are_kept_where_they_test() -> None:
    rows = looking(photos(30, "a", "b"), (0, 29), (1, 28), (2, 3))
    sides = ["train"] * 20 + ["validation"] * 5 + ["test"] * 5
    rows = [{**row, "split": sides[number % 30]} for number, row in enumerate(rows)]
    table = settled(rows, near="group", max_bad_fraction=0).table.to_pylist()
    assert [table[index]["reason"] for index in (0, 1, 2, 3, 28, 29)] == ["leak", "leak", None, None, None, None]
    assert table[0]["detail"] == "near-duplicate of /d/a/29.jpg, which is for test"


def test_near_duplicates_under_two_labels_are_said() -> None:
    ledger = settled(looking(photos(20, "a", "b"), (0, 20)), near="group")
    assert fate(ledger, "/d/a/0.jpg")["status"] == fate(ledger, "/d/b/0.jpg")["status"]
    assert any(
        "1 picture seems to be there under two labels, e.g. /d/a/0.jpg (a)" in text for text in ledger.warnings()
    )


def test_a_class_of_one_view_is_split_all_the_same() -> None:
    """A camera that never moves: its photos are no copies."""
    ledger = settled(looking(photos(40, "a", "b"), tuple(range(40))), near="group")
    assert ledger.per_class()["a"] == ledger.per_class()["b"]
    assert any(text.startswith("most photos of 'a' look like one picture") for text in ledger.warnings())


def test_no_files_are_no_classes() -> None:
    with pytest.raises(InputError, match=r"0 classes \(none\)"):
        settled([])


def test_warnings_of_a_small_test_side() -> None:
    assert any(text.startswith("only 3 test photos") for text in settled(photos(50, "a", "b")).warnings())
    ledger = settled(photos(500, "a", "b"))
    assert ledger.counts()["test"] == 30
    assert ledger.warnings() == []
    assert settled(photos(5, "a", "b"), fractions=(0.7, 0.3, 0.0)).warnings() == ["no test photo of: a, b"]


def test_a_class_that_nothing_is_learnt_of_is_refused() -> None:
    rows = [{**row, "split": "train"} for row in photos(4, "a", "b")] + [
        {**row, "split": side} for row in photos(2, "a", "b", "c", "d") for side in ["validation"]
    ]
    for number, row in enumerate(rows):
        row |= photo(f"/d/{number}.jpg", row["label"], number, split=row["split"])
    with pytest.raises(
        InputError, match=r"class 'c' has no photo to train on: its 2 are all for .* holds for 'd'; give"
    ):
        settled(rows)
