"""What a bundle came from: the run it lies in or was published from, its report and its photos."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowers import storage
from flowers.bundle import Bundle
from flowers.data import reading
from flowers.data.images import MAX_PIXELS
from flowers.errors import BadImage, DamagedFile, first_line
from flowers.published import run_of
from flowers.report.files import read_report
from flowers.report.record import Report
from flowers.runs import Run


@dataclass(frozen=True)
class Origin:
    """A bundle and what is known of where it came from.

    Attributes:
        bundle: the bundle.
    """

    bundle: Bundle

    @cached_property
    def run(self) -> Run | None:
        """The run it came from; None if it is gone."""
        return run_of(self.bundle)

    @cached_property
    def report(self) -> Report | None:
        """The report on this bundle; None if there is none, or if the run has trained another one since."""
        if self.run is None or not self.run.finished():
            return None
        report = read_report(self.run)
        return report if report.weights_sha256 == self.bundle.manifest.get("weights_sha256") else None

    @property
    def max_pixels(self) -> int:
        """The largest picture that its run took."""
        return int(self.bundle.manifest.get("config", {}).get("max_pixels", MAX_PIXELS))

    def photos(self, *subsets: str) -> pa.Table:
        """Photos of its run: columns sha256, label, split, path, ordered by sha256; no rows where the run is gone.

        Raises:
            DamagedFile: the split cannot be read.
        """
        if self.run is None or self.report is None:
            return pa.table({"sha256": pa.array([], pa.binary(32)), "label": [], "split": [], "path": []})
        try:
            table = pq.read_table(io.BytesIO(storage.read(self.run.split)))
            return table.filter(pc.is_in(table["split"], pa.array(subsets)))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DamagedFile(f"{self.run.split} cannot be read: {first_line(error)}") from error


def contents(photos: pa.Table) -> Iterator[bytes | BadImage]:
    """The bytes of photos (columns path, sha256), or why they cannot be had; other bytes than then are no photo."""
    connections: dict[str, pa.fs.FileSystem] = {}
    for path, digest in zip(photos["path"].to_pylist(), photos["sha256"].to_pylist(), strict=True):
        found = reading.read_bytes(path, connections)
        if isinstance(found, bytes) and hashlib.sha256(found).digest() != digest:
            found = BadImage("unreadable", "changed since the run split its photos")
        yield found
