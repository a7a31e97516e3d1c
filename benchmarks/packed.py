"""A folder of very many photos against its pack: seconds to list and read them, photos a second, peak memory.

    python -m benchmarks.packed --photos 20000 200000
    python -m benchmarks.packed --photos 2000 --s3

The photos are small ones made on the spot, each with other bytes, in a temporary folder. They are packed by jobs.pack;
then folder and pack are listed, and read, hashed and (--decode) decoded by Ray Data, each in a process of its own, in
turn, and once more in the same process, when Ray's workers have started. Memory is the peak of both times, measured as
by benchmarks.scaling. The page cache is warm for both. With --s3 both lie in a bucket: moto's server, here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from pyarrow import fs as pafs

from benchmarks.scaling import ROOT, measured
from flowers import storage
from tests.s3.store import store

CLASSES = 10


def make(folder: Path, count: int) -> None:
    """`count` photos of 64 pixels a side in `CLASSES` classes; a comment at the end makes the bytes of each its own."""
    from PIL import Image

    random = np.random.default_rng(0)
    seeds = []
    for _ in range(100):
        buffer = io.BytesIO()
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR).save(buffer, "jpeg")
        seeds.append(buffer.getvalue())
    for number in range(count):
        target = folder / f"class-{number % CLASSES}"
        if number < CLASSES:
            target.mkdir(parents=True)
        (target / f"{number:07}.jpg").write_bytes(seeds[number % len(seeds)] + number.to_bytes(4, "big"))


@contextmanager
def made(count: int, s3: bool) -> Iterator[dict[str, str]]:
    """URIs of a folder of photos and of its pack, which are gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch, store() if s3 else nullcontext() as bucket:
        make(Path(scratch, "photos"), count)
        sources = {"folder": str(Path(scratch, "photos")), "pack": str(Path(scratch, "pack"))}
        if bucket:
            os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
            bucket.make_bucket("bucket")
            sources = {name: bucket.uri(f"bucket/{name}") for name in sources}
            filesystem, inside = storage.resolve(sources["folder"])
            pafs.copy_files(str(Path(scratch, "photos")), inside, destination_filesystem=filesystem)
        command = [sys.executable, "-m", "jobs.pack", "--data", sources["folder"], "--out", sources["pack"]]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        yield sources


def one(data: str, decode: bool) -> None:
    """Lists and reads one source twice in one session of Ray; prints the seconds of both times.

    The first time Ray's workers start and import what they need.
    """
    from flowers.cluster.session import ray_session
    from flowers.data import reading
    from flowers.data.images import MAX_PIXELS
    from flowers.data.listing import list_files
    from flowers.inference.engine import usable_cpus

    found: dict[str, float] = {}
    with ray_session(verbose=False):
        for time_of in ("", "warm_"):
            began = time.perf_counter()
            listing = list_files(data, datasets="").table
            listed = time.perf_counter()
            if decode:
                photos = reading.stream_pixels(listing, size=64, max_pixels=MAX_PIXELS, readers=usable_cpus())
            else:
                photos = reading.stream_blocks(
                    listing,
                    lambda block: reading.read_block(block).drop_columns("bytes"),
                    readers=usable_cpus(),
                    most=reading.READ_ROWS,
                )
            digests = {digest for table in reading.tables(photos) for digest in table["sha256"].to_pylist()}
            if len(digests) != listing.num_rows or None in digests:
                sys.exit(f"{listing.num_rows} photos were listed and {len(digests)} read")
            found |= {f"{time_of}list": listed - began, f"{time_of}read": time.perf_counter() - listed}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--decode", action="store_true", help="also decode them")
    parser.add_argument("--s3", action="store_true", help="in a bucket, not on a disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help="measure this source as it is (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.decode)
        return
    print("| photos | source | list s | read s | photos/s | again: list s | read s | photos/s | private MB | store |")
    print("|-:|-|-:|-:|-:|-:|-:|-:|-:|-:|")
    for count in arguments.photos:
        with made(count, arguments.s3) as sources:
            more = ["--decode"] if arguments.decode else []
            command = [sys.executable, "-m", "benchmarks.packed", *more, "--one"]
            rounds = [
                {name: measured([*command, source]) for name, source in sources.items()}
                for _ in range(arguments.rounds)
            ]
        totals = {}
        for name in sources:
            found = [one_round[name] for one_round in rounds]
            cells = []
            for time_of in ("", "warm_"):
                listed, read = (
                    statistics.median(one[0][f"{time_of}{key}"] for one in found) for key in ("list", "read")
                )
                totals[name, time_of] = listed + read
                cells += [f"{listed:.2f}", f"{read:.2f}", f"{count / (listed + read):.0f}"]
            cells += [f"{max(one[2] for one in found):.0f}", f"{max(one[3] for one in found):.0f}"]
            print(f"| {count} | {name} | {' | '.join(cells)} |", flush=True)
        first, again = (totals["folder", time_of] / totals["pack", time_of] for time_of in ("", "warm_"))
        print(f"{count} photos: the pack is {first:.1f} times as fast, {again:.1f} once Ray has started", flush=True)


if __name__ == "__main__":
    main()
