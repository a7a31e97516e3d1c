"""The ledger: one row for every file found, saying what became of it and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data import near_duplicates
from flowers.data.corrections import Corrections
from flowers.data.groups import by_name, connected
from flowers.data.split import SUBSETS, assign
from flowers.errors import InputError, few
from flowers.text import several

REASONS = {
    "unlabelled": "lies in no class folder, or the manifest gives no label",
    "hidden": "a hidden file or folder",
    "side_file": "neither named nor built like a picture",
    "not_a_photo": "named like a picture, but its content is none",
    "unsupported_format": "a picture of a format that is not read",
    "empty": "no bytes",
    "unreadable": "could not be read",
    "too_large": "more bytes than a photo has",
    "truncated": "the data ends early",
    "corrupt": "the decoder fails",
    "too_many_pixels": "more pixels than --max-pixels",
    "too_complex": "built so that decoding takes too long or too much memory",
    "duplicate": "same bytes as another photo of the class",
    "conflict": "same bytes under two labels",
    "leak": "the same picture is on another side of the split that was given",
    "near_duplicate": "the same picture as another photo of the class, by --near-duplicates drop",
    "dropped": "by the file of --relabel",
}
Near = Literal["keep", "group", "drop"]
# Where it tests, a photo that lies on several sides stays.
_SIDE: dict[str | None, int] = {None: -1, **{subset: index for index, subset in enumerate(SUBSETS)}}
# So many photos of a class or more, and more than half of it, in one group of near-duplicates: they are no copies.
_UNIFORM = 8
# A second copy, a stray file or a sidecar does not make a data set bad, nor does what somebody left out.
HARMLESS = frozenset({"duplicate", "hidden", "unlabelled", "side_file", "leak", "near_duplicate", "dropped"})

# What reading a file yields; `code` is null for a good photo, `phash` (`near_duplicates.perceptual_hash`) also for one
# that was not decoded.
ROW = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("sha256", pa.binary(32)),
        ("size", pa.int64()),
        ("format", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
        ("phash", pa.binary(near_duplicates.BYTES)),
    ]
)


@dataclass(frozen=True)
class Ledger:
    """Every file found, settled.

    Attributes:
        table: columns path, label, group, sha256 (32 bytes), size (bytes), format, status (train, validation, test or
            quarantined), reason (a key of `REASONS`), detail, like (path of the first of its near-duplicates; null
            for a photo without any), was (the label that the data gives, where it was relabelled) and decision (keep,
            relabel or drop, where somebody looked).
        classes: the labels in use, sorted: a label's index here is that of the model's output.
        doubts: what looks wrong with the photos, a line each.
    """

    table: pa.Table
    classes: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def used(self) -> pa.Table:
        """Rows of all photos in one of the three subsets."""
        return self.table.filter(pc.not_equal(self.table["status"], "quarantined"))

    def subset(self, subset: str) -> pa.Table:
        """Rows of one subset, in the order of their content hash, which no renaming of files changes."""
        rows = self.table.filter(pc.equal(self.table["status"], subset))
        return rows.sort_by("sha256")

    def split(self) -> pa.Table:
        """The split: columns sha256, label, split, path, ordered by sha256."""
        used = self.used()
        columns = {"sha256": used["sha256"], "label": used["label"], "split": used["status"], "path": used["path"]}
        return pa.table(columns).sort_by("sha256")

    def counts(self) -> dict[str, int]:
        """Files by status."""
        return dict(Counter(self.table["status"].to_pylist()))

    def reasons(self) -> dict[str, int]:
        """Quarantined files by reason, the most frequent first."""
        found = Counter(reason for reason in self.table["reason"].to_pylist() if reason is not None)
        return dict(found.most_common())

    def decisions(self) -> dict[str, int]:
        """Photos that somebody looked at, by what was decided: all that is used, and what was dropped."""
        rows = self.table.filter(pc.is_in(self.table["reason"], pa.array([None, "dropped"], pa.string())))
        return dict(Counter(rows["decision"].drop_null().to_pylist()))

    def per_class(self) -> dict[str, dict[str, int]]:
        """Photos of each class in each subset."""
        used = self.used()
        pairs = Counter(zip(used["label"].to_pylist(), used["status"].to_pylist(), strict=True))
        return {label: {subset: pairs[label, subset] for subset in SUBSETS} for label in self.classes}

    def warnings(self) -> list[str]:
        """What the user should know before trusting the numbers."""
        found = list(self.doubts)
        counts, per_class = self.counts(), self.per_class()
        for subset in SUBSETS:
            missing = [label for label in self.classes if per_class[label][subset] == 0]
            if missing:
                found.append(f"no {subset} photo of: {_named(missing)}")
        if 0 < counts.get("test", 0) < 30:
            found.append(f"only {several(counts['test'], 'test photo')}: look at the interval, not at the value")
        lost = sorted(set(self.table["label"].drop_null().to_pylist()) - set(self.classes))
        if lost:
            found.append(f"no usable photo of: {_named(lost)}; left out of the classes")
        reasons = self.reasons()
        if conflicts := reasons.get("conflict", 0):
            found.append(f"{conflicts} files have the same bytes under two labels; all are kept out")
        if leaks := reasons.get("leak", 0):
            found.append(
                f"{several(leaks, 'file shows', 'files show')} what is also on another side of the split: "
                "left out where it trains, kept where it tests"
            )
        return found

    def near_duplicates(self) -> list[tuple[str, ...]]:
        """Paths of each group of near-duplicates that is in use, the largest groups first."""
        used = self.used()
        groups: dict[str, list[str]] = {}
        for path, like in zip(used["path"].to_pylist(), used["like"].to_pylist(), strict=True):
            if like is not None:
                groups.setdefault(like, []).append(path)
        return sorted((tuple(paths) for paths in groups.values() if len(paths) > 1), key=lambda paths: -len(paths))


def _named(labels: list[str], most: int = 8) -> str:
    """Some classes by name, and how many more there are."""
    more = f" and {several(len(labels) - most, 'more class', 'more classes')}" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def settle(
    rows: pa.Table,
    fractions: tuple[float, float, float],
    seed: int,
    max_bad_fraction: float,
    known: Mapping[bytes, int] | None = None,
    near: Near = "keep",
    corrections: Corrections | None = None,
) -> Ledger:
    """Decides the fate of every file: duplicates, conflicts and leaks out, the rest split.

    A split that was given for all photos is kept; a side that it lacks is cut from its training photos.

    Args:
        rows: a table of schema `ROW`, in the order of the listing.
        fractions: of training, validation and test.
        seed: of the split.
        max_bad_fraction: unusable files allowed, of all found (`HARMLESS` reasons do not count).
        known: subsets of photos assigned by an earlier run, by digest.
        near: what to do with near-duplicates: keep each on its own, keep each group on one side, or drop all of a
            group but the largest file of each class.
        corrections: of labels, which count before anything else.

    Raises:
        InputError: corrections of other photos, too many bad files, fewer than two classes, a class too small to split,
            or a group on two sides of the split that was given.
    """
    was = decision = pa.nulls(rows.num_rows, pa.string())
    if corrections is not None:
        rows, was, decision = corrections.apply(rows)
    rows = mark_repeats(rows)
    check_bad_fraction(rows, max_bad_fraction)
    rows, alike, doubts = _mark_near_duplicates(rows, near)
    check_classes(rows)
    good = pc.is_null(rows["code"]).to_numpy()
    photos, positions = rows.filter(pa.array(good)), np.flatnonzero(good)
    groups = _groups(photos, alike[positions])
    digests, labels = photos["sha256"].to_pylist(), photos["label"].to_pylist()
    given = np.array([_SIDE[side] for side in photos["split"].to_pylist()], np.int8)
    _check_groups(photos, groups, given)
    shares, divided = list(fractions), np.arange(len(digests))
    fixed = dict(known or {})
    if (given >= 0).all():  # the split was given: a side that it lacks is cut from its training photos
        shares = [fractions[0], *(0.0 if subset in given else fractions[subset] for subset in (1, 2))]
        shares = [share / sum(shares) for share in shares]
        divided = np.flatnonzero((given == 0) & (shares[0] < 1))
    else:  # photos without a side fill up to the fractions
        fixed |= {digest: int(subset) for digest, subset in zip(digests, given, strict=True) if subset >= 0}
    assigned = given.copy()
    assigned[divided] = assign(
        [digests[index] for index in divided],
        [labels[index] for index in divided],
        shares,
        seed,
        fixed,
        [int(groups[index]) for index in divided],
    )
    status = np.full(rows.num_rows, "quarantined", dtype=object)
    status[positions] = np.asarray(SUBSETS, dtype=object)[assigned]
    table = rows.select(["path", "label", "group", "sha256", "size", "format"])
    table = table.append_column("status", pa.array(status, pa.string()))
    table = table.append_column("reason", rows["code"]).append_column("detail", rows["detail"])
    table = table.append_column("like", _first_alike(rows, alike))
    table = table.append_column("was", was).append_column("decision", decision)
    ledger = Ledger(table, tuple(sorted(set(labels))), tuple(doubts))
    for subset in ("train", "validation"):
        if not ledger.counts().get(subset):
            raise InputError(
                f"the split leaves no photo for {subset}; change --split, the manifest or the --split-file"
            )
    per_class = ledger.per_class()
    untaught = [label for label in per_class if not per_class[label]["train"]]
    if untaught:
        count, others = sum(per_class[untaught[0]].values()), f"; the same holds for {few(untaught[1:])}"
        raise InputError(
            f"class {untaught[0]!r} has no photo to train on: its {count} are all for validation or testing"
            f"{others if len(untaught) > 1 else ''}; give some of them to training, or remove the class"
        )
    return ledger


def mark_repeats(rows: pa.Table) -> pa.Table:
    """Marks identical bytes.

    Under one label all but the first are duplicates, or leaks if they lie on another side of the split that was given:
    then the one that tests stays. Under two labels all are conflicts.
    """
    good = np.flatnonzero(pc.is_null(rows["code"]).to_numpy())
    digests = rows["sha256"].take(pa.array(good)).to_pylist()
    first: dict[bytes, int] = {}
    groups: dict[bytes, list[int]] = {}
    for index, digest in zip(good.tolist(), digests, strict=True):
        if digest in first:
            groups.setdefault(digest, [first[digest]]).append(index)
        else:
            first[digest] = index
    paths, labels, sides = rows["path"], rows["label"], rows["split"]
    marks: dict[int, tuple[str, str]] = {}
    for indices in groups.values():
        names = {labels[index].as_py() for index in indices}
        if len(names) > 1:
            for index in indices:
                other = next(other for other in indices if labels[other] != labels[index])
                marks[index] = "conflict", f"same bytes as {paths[other]}, labelled {labels[other]}"
            continue
        kept = max(indices, key=lambda index: (_SIDE[sides[index].as_py()], -index))
        for index in set(indices) - {kept}:
            side = sides[index].as_py()
            leaks = side is not None and side != sides[kept].as_py()
            where = f", which is for {sides[kept]}" if leaks else ""
            marks[index] = "leak" if leaks else "duplicate", f"same bytes as {paths[kept]}{where}"
    return _marked(rows, marks)


def _marked(rows: pa.Table, marks: Mapping[int, tuple[str, str]]) -> pa.Table:
    """`rows` with a code and a detail at some of them."""
    if not marks:
        return rows
    codes, details = rows["code"].to_pylist(), rows["detail"].to_pylist()
    for index, (code, detail) in marks.items():
        codes[index], details[index] = code, detail
    rows = rows.set_column(rows.schema.get_field_index("code"), "code", pa.array(codes, pa.string()))
    return rows.set_column(rows.schema.get_field_index("detail"), "detail", pa.array(details, pa.string()))


def _mark_near_duplicates(rows: pa.Table, near: Near) -> tuple[pa.Table, npt.NDArray[np.int64], list[str]]:
    """Rows with near-duplicates marked, the group of near-duplicates of each row, and what is doubtful about them."""
    alone = np.arange(rows.num_rows, dtype=np.int64)
    if near == "keep":
        return rows, alone, []
    good = pc.is_null(rows["code"]).to_pylist()
    hashes = [phash if usable else None for phash, usable in zip(rows["phash"].to_pylist(), good, strict=True)]
    alike = near_duplicates.group(hashes)
    labels, sides, paths = (rows[name].to_pylist() for name in ("label", "split", "path"))
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(good).tolist():
        groups.setdefault(int(alike[index]), []).append(index)
    sizes = Counter(label for label, usable in zip(labels, good, strict=True) if usable)
    doubts, marks = list[str](), dict[int, tuple[str, str]]()
    mixed = [indices for indices in groups.values() if len({labels[index] for index in indices}) > 1]
    uniform = set[str]()
    for indices in groups.values():
        held = Counter(labels[index] for index in indices)
        large = {label for label, count in held.items() if count >= _UNIFORM and 2 * count > sizes[label]}
        if large:  # photos of one camera that never moves: nothing tells copies from others
            uniform |= large
            alike[indices] = indices
            continue
        if len(indices) < 2:
            continue
        best = max(_SIDE[sides[index]] for index in indices)
        kept = next(index for index in indices if _SIDE[sides[index]] == best)
        for index in indices:
            if sides[index] is not None and _SIDE[sides[index]] < best:
                marks[index] = "leak", f"near-duplicate of {paths[kept]}, which is for {SUBSETS[best]}"
        if near == "drop":
            marks.update(_dropped(rows, [index for index in indices if index not in marks]))
    if uniform:
        doubts.append(
            f"most photos of {few(sorted(uniform))} look like one picture, so near-duplicates among them cannot be "
            "told and are split one by one; if they are bursts of a camera, say so by --group-by"
        )
    mixed = [indices for indices in mixed if alike[indices[0]] == alike[indices[-1]]]
    if mixed:
        one = mixed[0][0]
        other = next(index for index in mixed[0] if labels[index] != labels[one])
        doubts.append(
            f"{several(len(mixed), 'picture seems', 'pictures seem')} to be there under two labels, "
            f"e.g. {paths[one]} ({labels[one]}) and {paths[other]} ({labels[other]}); look which is right"
        )
    return _marked(rows, marks), alike, doubts


def _dropped(rows: pa.Table, indices: list[int]) -> dict[int, tuple[str, str]]:
    """Marks for all of a group of near-duplicates but the largest file of each class."""
    marks = {}
    by_label: dict[str, list[int]] = {}
    for index in indices:
        by_label.setdefault(rows["label"][index].as_py(), []).append(index)
    for same in by_label.values():
        kept = max(same, key=lambda index: (rows["size"][index].as_py(), -index))
        for index in set(same) - {kept}:
            marks[index] = "near_duplicate", f"near-duplicate of {rows['path'][kept]}"
    return marks


def _groups(photos: pa.Table, alike: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number for each photo, the same for those of one named group and for near-duplicates."""
    first: dict[int, int] = {}
    pairs = [(first.setdefault(group, index), index) for index, group in enumerate(alike.tolist())]
    return connected(photos.num_rows, [*pairs, *by_name(photos["group"].to_pylist())])


def _check_groups(photos: pa.Table, groups: npt.NDArray[np.int64], given: npt.NDArray[np.int8]) -> None:
    """Raises `InputError` if a named group lies on two sides of the split that was given."""
    side: dict[int, int] = {}
    for index, group in enumerate(groups.tolist()):
        if given[index] >= 0 and side.setdefault(group, index) != index and given[side[group]] != given[index]:
            one, other = side[group], index
            raise InputError(
                f"{photos['path'][one]} and {photos['path'][other]} are of one group, but the first is for "
                f"{SUBSETS[given[one]]} and the second for {SUBSETS[given[other]]}; put a group on one side, or leave "
                "out the groups or the split"
            )


def _first_alike(rows: pa.Table, alike: npt.NDArray[np.int64]) -> pa.Array:
    """The path of the first near-duplicate of each row, null for a row that has none."""
    sizes = np.bincount(alike, minlength=len(alike))
    paths = rows["path"].take(pa.array(alike))
    return pc.if_else(pa.array(sizes[alike] > 1), paths, pa.scalar(None, pa.string()))


def check_bad_fraction(rows: pa.Table, max_bad_fraction: float, found: int | None = None) -> None:
    """Raises `InputError` if more than a fraction of the files is unusable.

    Args:
        rows: of the files, those that have been read.
        max_bad_fraction: of them that may be (`HARMLESS` reasons do not count).
        found: how many files there are; None: all have been read.
    """
    found, least = (rows.num_rows, "") if found is None else (found, "at least ")
    codes = Counter(code for code in rows["code"].to_pylist() if code is not None and code not in HARMLESS)
    bad = codes.total()
    if bad and bad / found > max_bad_fraction:  # the product 0.29 * 100 is below 29
        at = rows["code"].to_pylist().index(codes.most_common(1)[0][0])
        kinds = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        raise InputError(
            f"{least}{bad} of {several(found, 'file')} {'is' if bad == 1 else 'are'} unusable ({kinds}; e.g. "
            f"{rows['path'][at]}: {rows['detail'][at]}), allowed is a fraction of "
            f"{max_bad_fraction:g}; mend or remove them, or raise --max-bad-fraction"
        )


def check_classes(rows: pa.Table) -> None:
    """Raises `InputError` unless there are two classes or more, each with two usable photos or more.

    Args:
        rows: columns path, label, code and detail; `code` is null for a usable photo.
    """
    labels, codes = rows["label"].to_pylist(), rows["code"].to_pylist()
    files = Counter(label for label in labels if label is not None)
    usable = Counter(label for label, code in zip(labels, codes, strict=True) if code is None)
    if len(usable) < 2:
        names = few(sorted(usable)) or "none"
        unusable = sorted(files.keys() - usable.keys())
        why = f"; {_unusable(rows, unusable[0], files)}" if unusable else ""
        others = (
            f", and {several(len(unusable) - 1, 'more class has', 'more classes have')} none"
            if len(unusable) > 1
            else ""
        )
        raise InputError(
            f"received usable photos of {several(len(usable), 'class', 'classes')} ({names}), required are two or "
            f"more{why}{others}; put the photos of each class into a sub-folder of its own"
        )
    small = sorted(label for label, count in usable.items() if count < 2)
    if small:
        others = f"; the same holds for {few(small[1:])}" if len(small) > 1 else ""
        raise InputError(
            f"class {small[0]!r} has 1 usable photo, required are 2 or more, one to train on and one to validate; "
            f"{_unusable(rows, small[0], files)}{others}; add photos or remove the class"
        )


def _unusable(rows: pa.Table, label: str, files: Mapping[str, int]) -> str:
    """How many files of a class are there, and why some are not usable."""
    found = [
        (code, path, detail)
        for path, of, code, detail in zip(*(rows[name].to_pylist() for name in _WHY), strict=True)
        if of == label and code is not None
    ]
    count = files[label]
    text = f"{label!r} has {several(count, 'file')}"
    if not found:
        return text
    kinds = Counter(code for code, _, _ in found)
    _, path, detail = next(one for one in found if one[0] == kinds.most_common(1)[0][0])
    return f"{text}, of which {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())} (e.g. {path}: {detail})"


_WHY = ("path", "label", "code", "detail")
