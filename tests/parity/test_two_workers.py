"""One worker and two train the same head and the same tail: same global batches, same sums, same numbers."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from flowers.config import TrainConfig
from flowers.model import backbones
from tests.parity.runs import Photos, Place, apart, calibrated, drawn, fit, lines_of, newest, start_of

# Neither divides by the batch of 32, nor by two workers: the last batch leaves the second worker without a photo.
TRAIN, VALIDATION, SIZE = 32 * 3 + 13, 41, 32


@pytest.fixture(scope="module")
def drawings() -> Photos:
    return drawn(TRAIN, VALIDATION, SIZE, light=40)


@pytest.fixture(scope="module")
def weights(drawings: Photos, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(calibrated(drawings.pixels[:64], tmp_path_factory.mktemp("weights") / "mobilenetv2.weights.h5"))


@pytest.mark.usefixtures("ray")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("precision", "tail_learning_rate", "limit", "distance"),
    [
        ("float32", 3e-4, 1e-5, 1e-3),
        # Each worker rounds its part of a gradient to bfloat16; AdamW makes of a small difference a whole step.
        ("bfloat16", 1e-4, 2e-3, 0.2),
    ],
)
def test_two_workers_equal_one(
    tmp_path: Path,
    drawings: Photos,
    weights: str,
    precision: str,
    tail_learning_rate: float,
    limit: float,
    distance: float,
) -> None:
    """Three epochs of each phase, with all that takes part in a step."""
    config = TrainConfig(
        backbone="mobilenetv2",
        weights=weights,
        image_size=SIZE,
        trainable="block_16",
        augment="flip",
        batch_size=32,
        head_epochs=3,
        epochs=3,
        dropout=0.2,
        l2=0.003,
        label_smoothing=0.1,
        class_weights="balanced",
        learning_rate=0.003,
        tail_learning_rate=tail_learning_rate,
    )
    network = backbones.build_backbone("mobilenetv2", weights, SIZE, precision)
    place = Place(tmp_path, drawings, network)
    one = place.plan("one", config, precision=precision)
    two = place.plan("two", config, precision=precision, workers=2, worker_cpus=1)
    assert fit(one) == []
    assert fit(two) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is the job's"

    assert [line["phase"] for line in lines_of(two)] == ["head"] * 3 + ["tail"] * 3
    for mine, other in zip(lines_of(one, "seconds"), lines_of(two, "seconds"), strict=True):
        close = 1e-5 if mine.pop("phase") == other.pop("phase") == "head" else limit
        assert other == pytest.approx(mine, rel=close)
    first, *_, last = lines_of(one)
    assert last["loss"] < first["loss"] - 0.1  # something was learned, so equal numbers mean something

    ours, theirs = newest(one).arrays, newest(two).arrays
    assert ours.keys() == theirs.keys()
    start = start_of(one, network) | {name: 0 * array for name, array in ours.items() if name.startswith("head")}
    assert apart(theirs, ours, start) < distance
    if precision == "float32":
        for name in ours.keys() - {"validation"}:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5, atol=1e-5, err_msg=name)
