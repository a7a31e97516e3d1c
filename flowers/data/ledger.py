"""The ledger: one row for every file found, saying what became of it and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowers.data.split import SUBSETS, assign
from flowers.errors import InputError

REASONS = {
    "unlabelled": "lies in no class folder, or the manifest gives no label",
    "hidden": "a hidden file or folder",
    "side_file": "neither named nor built like a picture",
    "not_a_photo": "named like a picture, but its content is none",
    "unsupported_format": "a picture, but not JPEG, PNG, BMP, GIF or WebP",
    "empty": "no bytes",
    "unreadable": "could not be read",
    "too_large": "more bytes than a photo has",
    "truncated": "the data ends early",
    "corrupt": "the decoder fails",
    "too_many_pixels": "more pixels than --max-pixels",
    "duplicate": "same bytes as another photo of the class",
    "conflict": "same bytes under two labels",
}
# A second copy, a stray file or a sidecar does not make a data set bad.
HARMLESS = frozenset({"duplicate", "hidden", "unlabelled", "side_file"})

# What reading a file yields; `code` is null for a good photo.
ROW = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.binary(32)),
        ("size", pa.int64()),
        ("format", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Ledger:
    """Every file found, settled.

    Attributes:
        table: columns path, label, sha256 (32 bytes), size (bytes), format, status (train, validation, test or
            quarantined), reason (a key of `REASONS`) and detail.
        classes: the labels in use, sorted: a label's index here is that of the model's output.
    """

    table: pa.Table
    classes: tuple[str, ...]

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

    def per_class(self) -> dict[str, dict[str, int]]:
        """Photos of each class in each subset."""
        used = self.used()
        pairs = Counter(zip(used["label"].to_pylist(), used["status"].to_pylist(), strict=True))
        return {label: {subset: pairs[label, subset] for subset in SUBSETS} for label in self.classes}

    def warnings(self) -> list[str]:
        """What the user should know before trusting the numbers."""
        found = []
        counts, per_class = self.counts(), self.per_class()
        for subset in SUBSETS:
            missing = [label for label in self.classes if per_class[label][subset] == 0]
            if missing:
                found.append(f"no {subset} photo of: {', '.join(missing)}")
        if 0 < counts.get("test", 0) < 30:
            found.append(f"only {counts['test']} test photos: look at the interval, not at the value")
        lost = sorted(set(self.table["label"].drop_null().to_pylist()) - set(self.classes))
        if lost:
            found.append(f"no usable photo of: {', '.join(lost)}; left out of the classes, see ledger.parquet")
        conflicts = self.reasons().get("conflict", 0)
        if conflicts:
            found.append(
                f"{conflicts} files have the same bytes under two labels; all are kept out, see ledger.parquet"
            )
        return found


def settle(
    rows: pa.Table,
    fractions: tuple[float, float, float],
    seed: int,
    max_bad_fraction: float,
    known: Mapping[bytes, int] | None = None,
) -> Ledger:
    """Decides the fate of every file: duplicates and conflicts out, the rest split.

    Args:
        rows: a table of schema `ROW`, in the order of the listing.
        fractions: of training, validation and test.
        seed: of the split.
        max_bad_fraction: unusable files allowed, of all found (`HARMLESS` reasons do not count).
        known: subsets of photos assigned by an earlier run, by digest.

    Raises:
        InputError: too many bad files, fewer than two classes, or a class too small to split.
    """
    rows = mark_repeats(rows)
    check_bad_fraction(rows, max_bad_fraction)
    good = pc.is_null(rows["code"])
    photos = rows.filter(good)
    check_classes(Counter(photos["label"].to_pylist()))
    subsets = dict(known or {})
    digests = photos["sha256"].to_pylist()
    for digest, subset in zip(digests, photos["split"].to_pylist(), strict=True):
        if subset is not None:
            subsets[digest] = SUBSETS.index(subset)
    labels = photos["label"].to_pylist()
    assigned = assign(digests, labels, fractions, seed, subsets)
    status = np.full(rows.num_rows, "quarantined", dtype=object)
    status[good.to_numpy()] = np.asarray(SUBSETS, dtype=object)[assigned]
    table = rows.select(["path", "label", "sha256", "size", "format"])
    table = table.append_column("status", pa.array(status, pa.string()))
    table = table.append_column("reason", rows["code"]).append_column("detail", rows["detail"])
    ledger = Ledger(table, tuple(sorted(set(labels))))
    for subset in ("train", "validation"):
        if not ledger.counts().get(subset):
            raise InputError(
                f"the split leaves no photo for {subset}; change --split, the manifest or the --split-file"
            )
    return ledger


def mark_repeats(rows: pa.Table) -> pa.Table:
    """Marks identical bytes: under one label all but the first are duplicates, under two all are conflicts."""
    good = np.flatnonzero(pc.is_null(rows["code"]).to_numpy())
    digests = rows["sha256"].take(pa.array(good)).to_pylist()
    first: dict[bytes, int] = {}
    groups: dict[bytes, list[int]] = {}
    for index, digest in zip(good.tolist(), digests, strict=True):
        if digest in first:
            groups.setdefault(digest, [first[digest]]).append(index)
        else:
            first[digest] = index
    if not groups:
        return rows
    paths, labels = rows["path"], rows["label"]
    codes, details = rows["code"].to_pylist(), rows["detail"].to_pylist()
    for group in groups.values():
        names = {labels[index].as_py() for index in group}
        if len(names) == 1:
            for index in group[1:]:
                codes[index], details[index] = "duplicate", f"same bytes as {paths[group[0]]}"
            continue
        for index in group:
            other = next(other for other in group if labels[other] != labels[index])
            codes[index], details[index] = "conflict", f"same bytes as {paths[other]}, labelled {labels[other]}"
    rows = rows.set_column(rows.schema.get_field_index("code"), "code", pa.array(codes, pa.string()))
    return rows.set_column(rows.schema.get_field_index("detail"), "detail", pa.array(details, pa.string()))


def check_bad_fraction(rows: pa.Table, max_bad_fraction: float, found: int | None = None) -> None:
    """Raises `InputError` if more than `max_bad_fraction` of the `found` files (by default all rows) are unusable."""
    found = rows.num_rows if found is None else found
    codes = Counter(code for code in rows["code"].to_pylist() if code is not None and code not in HARMLESS)
    bad = codes.total()
    if bad and bad / found > max_bad_fraction:  # the product 0.29 * 100 is below 29
        at = rows["code"].to_pylist().index(codes.most_common(1)[0][0])
        kinds = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        raise InputError(
            f"{bad} of {found} files are unusable ({kinds}; e.g. {rows['path'][at]}: {rows['detail'][at]}), "
            f"allowed is a fraction of {max_bad_fraction:g}; mend or remove them, or raise --max-bad-fraction"
        )


def check_classes(sizes: Mapping[str, int]) -> None:
    """Raises `InputError` unless there are two classes or more, each with two photos or more."""
    if len(sizes) < 2:
        names = ", ".join(sizes) or "none"
        raise InputError(
            f"received usable photos of {len(sizes)} class{'es' * (len(sizes) != 1)} ({names}), "
            "required are two or more; put the photos of each class into a sub-folder of its own"
        )
    small = sorted(label for label, size in sizes.items() if size < 2)
    if small:
        raise InputError(
            f"class {small[0]!r} has 1 usable photo, required are 2 or more, one to train on and one to validate; "
            f"add photos or remove the class{'es: ' + ', '.join(small) if len(small) > 1 else ''}"
        )
