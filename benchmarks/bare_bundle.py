"""What a bundle's network does without a server: images a second in batches of 32, milliseconds for one photo."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="openvino", choices=["openvino", "tensorflow"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batches", type=int, default=15)
    arguments = parser.parse_args()

    import numpy as np

    from flowers.bundle import load_bundle
    from flowers.inference.engine import batch_sizes

    bundle = load_bundle(arguments.bundle)
    sizes = batch_sizes(arguments.engine, 32, arguments.threads)
    engine = bundle.engine(arguments.engine, sizes=sizes, threads=arguments.threads)
    rng = np.random.default_rng(0)

    def seconds(count: int, times: int) -> list[float]:
        photos = rng.integers(0, 256, (count, bundle.image_size, bundle.image_size, 3), np.uint8)
        engine(photos)
        found = []
        for _ in range(times):
            began = time.perf_counter()
            engine(photos)
            found.append(time.perf_counter() - began)
        return found

    many, single = seconds(32, arguments.batches), seconds(1, 60)
    print(json.dumps({"images_per_s": 32 * len(many) / sum(many), "single_ms": 1000 * statistics.median(single)}))


if __name__ == "__main__":
    main()
