"""A run's folder: its identity, so that the same command goes on with it and another one is refused."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.config import TrainConfig
from flowers.data.ledger import Ledger
from flowers.data.split import SIDES
from flowers.errors import DamagedFile, InputError, first_line
from flowers.report.html import render_html

CONFIG, REPORT, SPLIT, LEDGER = "config.json", "report.json", "split.parquet", "ledger.parquet"


def open_run(config: TrainConfig) -> tuple[str, bool]:
    """Makes or finds the folder of a run; what it is a run of is noted by `begin`, once the photos are known.

    Returns:
        Its URI and whether the run is finished already.

    Raises:
        InputError: the folder holds a run with other options, or something that is no run.
    """
    uri = storage.join(storage.absolute(config.storage), config.run_name())
    try:
        found = storage.names(uri)
        if config.fresh and CONFIG in found:
            storage.delete(uri)
            found = []
        foreign = [name for name in found if not name.startswith(".") and name not in (SPLIT, LEDGER)]
        if CONFIG not in found and foreign:
            raise InputError(f"--name: {uri} exists and is not a run of this program; choose another name")
        if CONFIG in found:
            _compare(uri, config)
        else:
            storage.make_folder(uri)
    except OSError as error:
        raise InputError(f"--storage: {uri} cannot be written: {error.strerror or error}") from error
    return uri, REPORT in found


def read_report(uri: str) -> dict[str, Any]:
    """The report of a finished run."""
    return dict(json.loads(storage.read(storage.join(uri, REPORT))))


def _compare(uri: str, config: TrainConfig) -> None:
    try:
        before = dict(json.loads(storage.read(storage.join(uri, CONFIG)))["options"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{uri}/{CONFIG} is damaged; --fresh starts over") from error
    if changes := config.differences(before):
        raise InputError(
            f"the run {config.run_name()!r} exists with other options ({'; '.join(changes)}); choose another --name, "
            "or --fresh to start over"
        )


def read_split(uri: str) -> dict[bytes, int]:
    """Sides of the photos of an earlier run by their digest.

    Raises:
        InputError: the file is missing or is no split.parquet.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read(uri)))
        digests = table["sha256"].cast(pa.binary(32)).to_pylist()
        sides = [SIDES.index(side) for side in table["split"].to_pylist()]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"--split-file: {uri} is not the split.parquet of a run: {first_line(error)}") from error
    return dict(zip(digests, sides, strict=True))


def begin(uri: str, config: TrainConfig, ledger: Ledger) -> None:
    """Writes split.parquet, ledger.parquet and, last, config.json: from here on the folder is this run's.

    Raises:
        InputError: the run has a split already and the photos or their labels have changed since.
        DamagedFile: that split cannot be read.
    """
    storage.sweep(uri)
    target = storage.join(uri, SPLIT)
    if storage.exists(storage.join(uri, CONFIG)):
        try:
            before = _photos(pq.read_table(io.BytesIO(storage.read(target))))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DamagedFile(f"{target} is damaged ({first_line(error)}); --fresh starts over") from error
        now = _photos(ledger.split())
        if before != now:
            both = before.keys() & now.keys()
            relabelled, moved = (sum(before[photo][at] != now[photo][at] for photo in both) for at in (0, 1))
            raise InputError(
                f"the photos changed since this run began ({len(now.keys() - before.keys())} new, "
                f"{len(before.keys() - now.keys())} gone, {relabelled} relabelled, {moved} now on another side); "
                "choose another --name (--split-file keeps the known photos on their side), or --fresh to start over"
            )
    for name, table in ((LEDGER, ledger.table), (SPLIT, ledger.split())):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        storage.write(storage.join(uri, name), sink.getvalue())
    if not storage.exists(storage.join(uri, CONFIG)):
        created = datetime.now(UTC).isoformat(timespec="seconds")
        body = {"options": config.identity(), "created": created}
        storage.write(storage.join(uri, CONFIG), json.dumps(body, indent=2).encode())


def split_sha256(ledger: Ledger) -> str:
    """Hash of who is on which side, whatever the files are called."""
    digest = hashlib.sha256()
    for sha256, (label, side) in _photos(ledger.split()).items():
        digest.update(sha256 + f"\0{label}\0{side}\n".encode())
    return digest.hexdigest()


def _photos(split: pa.Table) -> dict[bytes, tuple[str, str]]:
    """Label and side of each photo by its digest, in the order of the digests."""
    digests, *columns = (split[name].to_pylist() for name in ("sha256", "label", "split"))
    return dict(zip(digests, zip(*columns, strict=True), strict=True))


def write_report(uri: str, report: dict[str, Any]) -> dict[str, Any]:
    """Writes report.html and, last, report.json, which marks the run as finished; returns the whole report."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"created": created, **report}
    storage.write(storage.join(uri, "report.html"), render_html(report).encode())
    plain = [{name: row[name] for name in row if name != "thumbnail"} for row in report["predictions"]]
    storage.write(storage.join(uri, REPORT), json.dumps({**report, "predictions": plain}, indent=2).encode())
    return report
