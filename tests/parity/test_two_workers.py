"""One worker and two train the same head and the same tail: same global batches, same sums, same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowers.config import TrainConfig
from flowers.model import backbones
from flowers.session import ray_session
from flowers.training import trainer
from tests.parity.runs import Place, drawn, fit, lines_of, newest

# Neither divides by the batch of 32, nor by two workers: the last batch leaves the second worker without a photo.
TRAIN, VALIDATION, SIZE = 32 * 3 + 13, 41, 32


@pytest.mark.timeout(500)
@pytest.mark.parametrize(("precision", "limit", "weights"), [("float32", 1e-5, 1e-5), ("bfloat16", 2e-3, 1e-2)])
def test_two_workers_equal_one(tmp_path: Path, precision: str, limit: float, weights: float) -> None:
    """Three epochs of each phase, with all that takes part in a step."""
    config = TrainConfig(
        backbone="resnet50v2",
        weights="random",
        image_size=SIZE,
        trainable="stage5",
        augment="flip",
        batch_size=32,
        head_epochs=3,
        epochs=3,
        dropout=0.2,
        l2=0.003,
        label_smoothing=0.1,
        class_weights="balanced",
        learning_rate=0.01,
        tail_learning_rate=3e-4,
    )
    network = backbones.build_backbone("resnet50v2", "random", SIZE, precision)
    place = Place(tmp_path, drawn(TRAIN, VALIDATION, SIZE), network)
    one = place.plan("one", config, precision=precision)
    two = place.plan("two", config, precision=precision, workers=2, worker_cpus=1)
    assert fit(one) == []
    with ray_session(verbose=False):
        assert fit(two) == []

    assert [line["phase"] for line in lines_of(two)] == ["head"] * 3 + ["tail"] * 3
    ours, theirs = lines_of(one, "phase", "seconds"), lines_of(two, "phase", "seconds")
    if 1:
        import sys

        for mine, other in zip(ours, theirs):
            print({n: (mine[n], abs(other[n] / mine[n] - 1) if mine[n] else other[n]) for n in mine}, file=sys.stderr)
        a, b = newest(one), newest(two)
        for n in a.arrays:
            d = np.abs(a.arrays[n].astype(float) - b.arrays[n].astype(float)).max()
            print(n, a.arrays[n].shape, d, np.abs(a.arrays[n]).max(), file=sys.stderr)
