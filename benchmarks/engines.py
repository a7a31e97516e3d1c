"""Each engine alone in a process of its own: images a second by batch size, time to load, memory.

    python -m benchmarks.engines --backbone mobilenetv2

"keras" is the network as Keras computes it (tf.function); an untrained classifier in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time

from benchmarks.serve_speed import make_bundle
from benchmarks.train_speed import run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ENGINES = ("keras", "tensorflow", "openvino")
BATCHES = (1, 8, 32)


def measure(name: str, path: str, batch: int, threads: int) -> dict[str, float]:
    """One engine in this process."""
    began = time.perf_counter()
    import numpy as np

    from flowers.bundle import load_bundle

    bundle = load_bundle(path)
    photos = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    if name == "keras":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        model = bundle.model
        forward = tf.function(lambda pixels: model(pixels, training=False))

        def call() -> None:
            forward(photos).numpy()
    else:
        engine = bundle.engine(name, sizes=(batch,), threads=threads)

        def call() -> None:
            engine(photos)

    call()
    ready = time.perf_counter() - began
    call()
    times: list[float] = []
    until = time.perf_counter() + 6
    while len(times) < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"images_per_s": batch / statistics.median(times), "ready_s": ready, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default=str(os.cpu_count() or 1), help="one or several numbers: 1,2")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, path, batch, threads = arguments.one
        print(json.dumps(measure(name, path, int(batch), int(threads))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_bundle(f"{scratch}/bundle", arguments.backbone, "random")
        for threads in arguments.threads.split(","):
            for batch in BATCHES:
                found: dict[str, list[dict[str, float]]] = {}
                for _ in range(arguments.rounds):
                    for name in ENGINES:
                        words = [name, f"{scratch}/bundle", str(batch), threads]
                        out = run([sys.executable, "-m", "benchmarks.engines", "--one", *words])[1]
                        found.setdefault(name, []).append(json.loads(out.splitlines()[-1]))
                for name, rows in found.items():
                    rate, ready, peak = (
                        statistics.median(row[key] for row in rows) for key in ("images_per_s", "ready_s", "peak_mb")
                    )
                    print(
                        f"{arguments.backbone}, {threads} threads, batch {batch:2}, {name:10} {rate:6.1f} images/s, "
                        f"loaded and first answer {ready:.1f} s, at most {peak:.0f} MB",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
