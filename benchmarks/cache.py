"""A feature cache of very many photos: seconds and memory to open it, and to read one worker's share of it.

    python -m benchmarks.cache --photos 256000 1280000

Rows are made up, as wide as the pooled output of a ResNet (`--width 2048`, bfloat16), written in parts of 256 rows as
actors write them. Each size is opened and read in a process of its own; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.scaling import ROOT
from flowers.data.reading import ACTOR_ROWS


def make(folder: str, photos: int, width: int) -> None:
    """Writes a cache of made-up rows; a photo's digest is its number, spread over all digests."""
    from flowers.features.cache import FeatureCache

    cache, random = FeatureCache(folder), np.random.default_rng(0)
    rows = random.integers(0, 1 << 15, (ACTOR_ROWS, width), np.uint16)  # of a half of the width of float32
    for start in range(0, photos, ACTOR_ROWS):
        digests = random.integers(0, 256, (min(ACTOR_ROWS, photos - start), 32), np.uint8)
        cache.add([digest.tobytes() for digest in digests], rows[: len(digests)])
        cache.flush()


def one(folder: str, share: float) -> None:
    """Opens it as the driver does, then reads a contiguous share of the photos as a worker does."""
    from flowers.features.cache import FeatureCache

    began = time.perf_counter()
    cache = FeatureCache(folder).open()
    opened = time.perf_counter()
    digests = sorted(cache.digests())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mine = digests[: int(len(digests) * share)]
    listed = time.perf_counter()
    cache.rows(mine)
    read = time.perf_counter() - listed
    print(json.dumps({"open": opened - began, "peak_mb": after / 1e3, "photos": len(mine), "read": read}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[256_000, 1_280_000])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--share", type=float, default=1 / 8, help="of the photos that one worker reads")
    parser.add_argument("--one", help="measure this cache as it is (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.share)
        return
    print("| photos | parts | written s | open s | peak MB then | read s | read photos |")
    print("|-:|-:|-:|-:|-:|-:|-:|")
    for photos in arguments.photos:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            make(folder, photos, arguments.width)
            written = time.perf_counter() - began
            words = [sys.executable, "-m", "benchmarks.cache", "--share", str(arguments.share), "--one", folder]
            done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
        print(
            f"| {photos} | {-(-photos // ACTOR_ROWS)} | {written:.0f} | {found['open']:.1f} | {found['peak_mb']:.0f} | "
            f"{found['read']:.1f} | {found['photos']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
