"""One worker and two workers train the same head: same global batches, same sums, same numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers.config import TrainConfig
from flowers.model.features import FeatureCache
from flowers.session import ray_session
from flowers.training import checkpoints, trainer

CLASSES = ("daisy", "rose", "tulip")
# Neither divides by the batch of 32, nor by two workers: the last batch leaves the second worker without a photo.
TRAIN, VALIDATION = 32 * 3 + 13, 41


def _write(cache: str, runs: list[Path]) -> None:
    rng = np.random.default_rng(0)
    rows = TRAIN + VALIDATION
    labels = rng.integers(0, len(CLASSES), rows)
    features = rng.normal(size=(rows, 24)) + 1.5 * rng.normal(size=(len(CLASSES), 24))[labels]
    digests = [hashlib.sha256(bytes([row])).digest() for row in range(rows)]
    store = FeatureCache(cache)
    store.add(digests, features.astype(np.float32))
    store.flush()
    table = pa.table(
        {
            "sha256": pa.array(digests, pa.binary(32)),
            "label": [CLASSES[label] for label in labels],
            "split": ["train"] * TRAIN + ["validation"] * VALIDATION,
        }
    )
    for run in runs:
        run.mkdir(parents=True)
        pq.write_table(table, run / "split.parquet")


@pytest.mark.timeout(300)
def test_two_workers_equal_one(tmp_path: Path) -> None:
    cache, one, two = str(tmp_path / "cache"), tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    _write(cache, [one, two])
    config = TrainConfig(
        batch_size=32,
        epochs=3,
        dropout=0.2,
        l2=0.003,
        label_smoothing=0.1,
        class_weights="balanced",
        learning_rate=0.01,
    )
    trainer.fit(config, str(one), cache, CLASSES)
    with ray_session(verbose=False):
        trainer.fit(dataclasses.replace(config, workers=2), str(two), cache, CLASSES)

    ours, theirs = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, two))
    assert [line["epoch"] for line in theirs] == [1, 2, 3]
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine.keys() - {"seconds"}:
            assert other[name] == pytest.approx(mine[name], rel=1e-5), (name, mine, other)
    assert ours[-1]["loss"] < ours[0]["loss"] - 0.1  # something was learned, so equal numbers mean something

    heads = [trainer.best_head(str(run)) for run in (one, two)]
    for mine, other in zip(heads[0][0], heads[1][0], strict=True):
        np.testing.assert_allclose(other, mine, rtol=0, atol=1e-5)
    last = [checkpoints.newest(str(run / "checkpoints"))[0] for run in (one, two)]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0].arrays.keys() == last[1].arrays.keys()
    for name, array in last[0].arrays.items():
        np.testing.assert_allclose(last[1].arrays[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
