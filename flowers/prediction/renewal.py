"""Renewal: files whose row may no longer be right, as they had an error or changed since they were read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from flowers import storage
from flowers.data import reading, shards
from flowers.prediction.parts import Predictions, read_part


def outdated(target: Predictions, listing: pa.Table) -> list[tuple[str, pa.Table]]:
    """Files of a listing to look at again: URIs of the parts that have their rows, each with these files.

    Args:
        target: the predictions.
        listing: schema `flowers.data.listing.LISTING`; files of which it says itself that they are no photos stay.
    """
    files = listing.filter(pc.is_null(listing["code"]))
    paths = files["path"].to_pylist()
    changed = _changed(paths, target.since())
    at = {path: index for index, path in enumerate(paths)}
    found = []
    for uri in target.parts():
        rows = read_part(uri, ["path", "error"])
        pairs = zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True)
        chosen = [at[path] for path, error in pairs if path in at and (error is not None or path in changed)]
        if chosen:
            found.append((uri, files.take(pa.array(chosen))))
    return found


def _changed(paths: Sequence[str], since: float) -> set[str]:
    """Those of some photos whose file, or shard, was written or came to its place after a Unix time."""
    files = list(dict.fromkeys(map(shards.file_of, paths)))
    remote = list(filter(storage.is_remote, files))
    times = dict(zip(remote, (changed / 1e9 for _, changed in reading.measured(remote)), strict=True))
    new = {file for file in files if (times[file] if file in times else _came(file)) >= since}
    return {path for path in paths if shards.file_of(path) in new}


def _came(file: str) -> float:
    """When a local file, or a link to it, was written or moved; that of its content may be an older time."""
    try:
        return max(os.lstat(file).st_ctime, os.stat(file).st_ctime)
    except OSError:  # reading it will say why
        return math.inf
