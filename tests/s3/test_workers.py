"""Several workers train with a store that fails: what Ray Train itself writes there is asked for again too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers import storage
from flowers.config import TrainConfig
from flowers.features.cache import FeatureCache
from tests.parity.runs import Photos, Place, drawn, fit, lines_of, newest
from tests.s3.conftest import BUCKET
from tests.s3.store import Store

EPOCHS = 4


@pytest.mark.usefixtures("ray")
def test_two_workers_train_through_a_store_that_fails(s3: Store, faulty: Store, tmp_path: Path) -> None:
    """Without another try for lost workers: no request of theirs, or of their controller, may fail for good."""
    photos = drawn(40, 9)
    config = TrainConfig(
        backbone="mobilenetv2",
        weights="random",
        image_size=32,
        trainable="head",
        batch_size=8,
        epochs=EPOCHS,
        patience=0,
        max_failures=0,
    )
    one = Place(tmp_path, photos).plan("one", config)
    remote: Any = faulty.uri(f"{BUCKET}/workers")
    two = Place(remote, photos).plan("two", config, workers=2)
    for plan in (one, two):
        fill(FeatureCache(plan.cache(plan.features[0])), photos)
    assert fit(one) == []
    before = faulty.counts()
    assert fit(two) == []
    counts = faulty.counts() - before
    assert counts["slow_down"] + counts["internal_error"] > 3, counts

    for mine, other in zip(lines_of(one, "seconds", "phase"), lines_of(two, "seconds", "phase"), strict=True):
        assert other == pytest.approx(mine, rel=1e-5)
    theirs = newest(two).arrays
    for name, array in newest(one).arrays.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    left = storage.names(s3.uri(f"{BUCKET}/workers/two"))
    assert not [name for name in left if storage.is_left_over(name)]
    known = json.loads(storage.read(s3.uri(f"{BUCKET}/workers/two/checkpoint_manager_snapshot.json")))
    assert len(known["checkpoint_results"]) == EPOCHS, "Ray knows of each epoch"


def fill(cache: FeatureCache, photos: Photos) -> None:
    """Pooled features: the mean colours of a photo, and noise."""
    noise = np.random.default_rng(0).normal(size=(len(photos.digests), 1277))
    cache.add(photos.digests, np.hstack([photos.pixels.mean(axis=(1, 2)) / 50, noise]).astype(np.float32))
    cache.flush()
