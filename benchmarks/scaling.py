"""Cost as work grows: time and peak memory of reading, hashing, decoding and splitting 1, 4 and 16 times the photos.

    python -m benchmarks.scaling ../shared/data/flower_photos

Copies are made distinct by a trailing byte, in a temporary folder. Memory is the proportional set size of the driver
and all its Ray processes together, sampled twice a second; what lies in the object store is given apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def multiply(data: Path, folder: Path, times: int) -> int:
    """Copies every photo `times` times, each copy with other trailing bytes; returns how many files there are."""
    count = 0
    for source in sorted(data.glob("*/*.jpg")):
        content = source.read_bytes()
        target = folder / source.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (target / f"{source.stem}-{number}.jpg").write_bytes(content + number.to_bytes(2, "big"))
            count += 1
    return count


def one(data: str) -> None:
    """Reads, decodes and splits one folder; prints seconds and the split."""
    from flowers.cluster.nodes import cluster_nodes
    from flowers.cluster.session import ray_session
    from flowers.data import reading
    from flowers.data.images import MAX_PIXELS
    from flowers.data.ledger import ROW, settle
    from flowers.data.listing import list_photos

    with ray_session(verbose=False):
        import pyarrow as pa

        cpus = int(sum(node.cpus for node in cluster_nodes()))
        began = time.perf_counter()
        listing = list_photos(data, datasets="", per_class=None, seed=0)
        listed = time.perf_counter()
        photos = reading.stream_pixels(
            listing.table,
            size=224,
            max_pixels=MAX_PIXELS,
            readers=cpus,
        )
        rows = [reading.detached(table, ROW.names) for table in reading.tables(photos)]
        read = time.perf_counter()
        ledger = settle(pa.concat_tables(rows), (0.7, 0.27, 0.03), 0, 0.1)
        done = time.perf_counter()
    seconds = {"list": listed - began, "read_decode": read - listed, "split": done - read}
    print(json.dumps({"photos": ledger.used().num_rows, **{name: round(value, 2) for name, value in seconds.items()}}))


def memory(pid: int) -> tuple[float, float]:
    """MB of a process and all its descendants: private, and shared through the object store."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    private = shared = 0.0
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss")}
        shared += sizes.get("Pss_Shmem", 0)
        private += sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)
    return private, shared


def measured(command: list[str]) -> tuple[dict[str, float], float, float, float]:
    """Runs a command; its JSON line, wall seconds, and peak MB private and in the object store."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak_private = peak_shared = 0.0
    while process.poll() is None:
        private, shared = memory(process.pid)
        peak_private, peak_shared = max(peak_private, private), max(peak_shared, shared)
        time.sleep(0.5)
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{command} failed")
    seconds = time.perf_counter() - began
    return json.loads(out.strip().splitlines()[-1]), seconds, peak_private, peak_shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--one", action="store_true", help="measure this folder as it is (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.data)
        return
    print("| photos | list s | read + decode s | split s | ms a photo | private MB, peak | object store MB, peak |")
    print("|-:|-:|-:|-:|-:|-:|-:|")
    for times in arguments.times:
        with tempfile.TemporaryDirectory() as scratch:
            count = multiply(Path(arguments.data), Path(scratch), times)
            found, _, private, shared = measured([sys.executable, "-m", "benchmarks.scaling", scratch, "--one"])
        spent = found["list"] + found["read_decode"] + found["split"]
        print(
            f"| {count} | {found['list']} | {found['read_decode']} | {found['split']} | {1000 * spent / count:.2f} "
            f"| {private:.0f} | {shared:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
