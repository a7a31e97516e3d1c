"""The driver's part of a large data set: seconds and memory to settle a ledger of made-up photos.

    python -m benchmarks.ledger --rows 200000 2000000

Rows have digests, perceptual hashes and paths as those of photos, one in a hundred twice; each size in a process of its
own. Settling looks for copies, near-duplicates and labels that contradict, and splits.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from benchmarks.scaling import ROOT

CLASSES = 1000


def one(rows: int, near: str) -> None:
    """Makes the rows, settles them; prints seconds, and peak memory before and after."""
    import numpy as np
    import pyarrow as pa

    from flowers.data.ledger import ROW, settle

    random = np.random.default_rng(0)
    photos = rows - rows // 100
    content = np.concatenate([np.arange(photos), random.integers(0, photos, rows - photos)])
    seeds = random.integers(0, 256, (photos, 32 + ROW.field("phash").type.byte_width), np.uint8)[content]
    labels = content % CLASSES

    def binary(columns: np.ndarray) -> pa.Array:
        width = columns.shape[1]
        data = pa.py_buffer(np.ascontiguousarray(columns))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [None, data])

    nothing = pa.nulls(rows, pa.string())
    columns = {
        "path": pa.array([f"/data/photos/class-{label:03}/{row:09}.jpg" for row, label in enumerate(labels)]),
        "label": pa.array([f"class-{label:03}" for label in labels]),
        **{name: nothing for name in ("split", "group", "code", "detail")},
        "sha256": binary(seeds[:, :32]),
        "size": pa.array(random.integers(10_000, 200_000, rows)),
        "format": pa.array(["jpeg"] * rows),
        "phash": binary(seeds[:, 32:]),
    }
    table = pa.table({name: columns[name] for name in ROW.names}, schema=ROW)
    del columns, seeds
    before, began = _peak_mb(), time.perf_counter()
    ledger = settle(table, (0.7, 0.27, 0.03), 0, 0.5, near="group" if near == "group" else "keep")
    found = {"seconds": time.perf_counter() - began, "before": before, "after": _peak_mb(), "rows": len(ledger.table)}
    print(json.dumps(found))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--near", choices=["keep", "group"], default="group", help="as --near-duplicates of training")
    parser.add_argument("--one", action="store_true", help="this size, in this process (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.rows[0], arguments.near)
        return
    print("| rows | settle s | MB, peak: rows made | MB, peak: settled |")
    print("|-:|-:|-:|-:|")
    for rows in arguments.rows:
        command = [sys.executable, "-m", "benchmarks.ledger", "--one", "--rows", str(rows), "--near", arguments.near]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        print(
            f"| {found['rows']} | {found['seconds']:.1f} | {found['before']:.0f} | {found['after']:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
