"""What a run reaches on the drawn pictures, and on real photos with real weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Job


@pytest.fixture(scope="module")
def sample(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return job(tmp_path_factory.mktemp("sample"), "sample")


def test_sample_says_what_it_is_and_is_learnt(sample: Done) -> None:
    report = sample.report
    assert report["sample"] is True
    assert (report["backbone"], report["weights"]) == ("resnet50v2", "random")
    assert (report["data"]["found"], report["data"]["quarantined"]) == (200, 0)
    assert [report["split"][subset] for subset in ("train", "validation", "test")] == [140, 54, 6]
    assert report["validation"]["accuracy"]["value"] >= 0.75
    assert "DRAWN pictures" in sample.out
    assert "RANDOM weights" in sample.out
    assert "drawn" in (sample.run / "report.html").read_text().lower()


def test_best_model_loads_in_plain_keras_and_takes_uint8(sample: Done) -> None:
    code = """
import sys; sys.modules["flowers"] = None
import json, keras, numpy as np
model = keras.saving.load_model(sys.argv[1], compile=False)
assert model.input_shape == (None, 224, 224, 3) and str(model.inputs[0].dtype) == "uint8"
answer = np.asarray(model(np.zeros((2, 224, 224, 3), np.uint8)))
assert answer.shape == (2, 5) and np.allclose(answer.sum(axis=1), 1, atol=1e-5)
"""
    words = [sys.executable, "-c", code, str(sample.run / "best" / "model.keras")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_real_photos_with_real_weights(job: Job, shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "mobilenet_v2_224_no_top.weights.h5"
    options = ("--data", shared / "flower_photos", "--backbone", "mobilenetv2", "--weights", weights)
    report = job(tmp_path, "real", *options).report
    assert (report["data"]["found"], report["data"]["quarantined"]) == (1200, 0)
    assert [report["split"][subset] for subset in ("train", "validation", "test")] == [840, 324, 36]
    assert report["validation"]["accuracy"]["n"] == 324
    # Three seeds gave 0.889 to 0.920; one photo is 0.003.
    assert report["validation"]["accuracy"]["value"] >= 0.87
    assert report["validation"]["log_loss"]["value"] < 0.45
    unknown = report["unknown"]
    assert unknown["rejected"]["low"] < unknown["allowed"] == 0.05
    assert min(share["value"] for share in unknown["detected"].values()) >= 0.75
    assert sum(share["value"] for share in unknown["detected"].values()) >= 0.9 * len(unknown["detected"])
