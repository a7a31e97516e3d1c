"""Bulk prediction against the bare engine, and against a short script without Ray, whole processes in turn.

    python -m benchmarks.predict_speed ../shared/data/flower_photos --backbone mobilenetv2

The job's images/s are its own: from its first file to its last row, the start of Ray Data's workers and the decoding
included. The bare engine gets pixels and nothing else. The script decodes in a thread a CPU, ahead of the engine, and
keeps its rows in memory. --times gives every photo so many names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.serve_speed import make_bundle
from benchmarks.train_speed import run

_CHUNK = 64


def script(bundle: str, folder: str) -> None:
    """Predicts all photos of a folder in this process; prints images/s from the first file to the last."""
    import numpy as np

    from flowers.bundle import load_bundle
    from flowers.predictor import Predictor

    predictor = Predictor(load_bundle(bundle))
    predictor.warm()
    began, rows = time.perf_counter(), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = iter(sorted(Path(folder).glob("*/*.jpg")))

        def ahead() -> list[Path]:
            return list(itertools.islice(paths, _CHUNK))

        def decode(path: Path) -> Any:
            return predictor.decode(path.read_bytes())

        following = [pool.submit(decode, path) for path in ahead()]
        while current := following:
            following = [pool.submit(decode, path) for path in ahead()]
            rows += len(predictor.run(np.stack([done.result() for done in current])).probabilities)
    print(json.dumps({"images_per_s": rows / (time.perf_counter() - began)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--script", metavar="BUNDLE", help="the short script, in this process")
    arguments = parser.parse_args()
    if arguments.script:
        script(arguments.script, str(arguments.data))
        return
    found: dict[str, list[float]] = {"job": [], "script": [], "bare engine": []}
    with tempfile.TemporaryDirectory() as scratch:
        bundle, photos = f"{scratch}/bundle", Path(scratch, "photos")
        make_bundle(bundle, arguments.backbone, arguments.weights)
        for number, path in itertools.product(range(arguments.times), sorted(arguments.data.glob("*/*.jpg"))):
            link = photos / path.parent.name / f"{number}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        for number in range(arguments.rounds):
            command = [sys.executable, "-m", "jobs.predict", "--bundle", bundle, "--data", str(photos)]
            said = run([*command, "--out", f"{scratch}/out-{number}", "--storage", f"{scratch}/runs"])[1]
            found["job"].append(float(re.findall(r"([\d.]+) images/s", said)[-1]))
            command = [sys.executable, "-m", "benchmarks.predict_speed", str(photos), "--script", bundle]
            found["script"].append(json.loads(run(command)[1])["images_per_s"])
            command = [sys.executable, "-m", "benchmarks.bare_bundle", bundle]
            found["bare engine"].append(json.loads(run(command)[1])["images_per_s"])
    for name, rates in found.items():
        ratio = statistics.median(mine / other for mine, other in zip(found["job"], rates, strict=True))
        print(f"{name:12} {statistics.median(rates):.1f} images/s ({min(rates):.1f} to {max(rates):.1f})", end="")
        print("" if name == "job" else f", the job is {ratio:.2f} of it")


if __name__ == "__main__":
    main()
