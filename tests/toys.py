"""Tiny classifiers whose answers are known beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from flowers import storage
from flowers.bundle import Bundle, save_bundle
from flowers.evaluation.metrics import Counts, summarize
from flowers.features.extractor import FeatureExtractor, cuts_of
from flowers.features.frozen import FrozenNetwork
from flowers.features.spec import FeatureSpec
from flowers.model import classifier
from flowers.model.registry import POOL
from flowers.runs import Run
from flowers.typicality import Typicality
from tests.report.test_record import written


def classify(pixels: Any, features: Any, kernel: Any) -> Any:
    """A classifier of the usual structure on a feature map that depends on pixels."""
    import keras

    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name=POOL)(features)
    depth, classes = kernel.shape
    head = classifier.build_head(np.zeros(depth, np.float32), np.ones(depth, np.float32), classes, 0.0)
    head.get_layer("logits").set_weights([kernel, np.zeros(classes, np.float32)])
    return classifier.join(keras.Model(pixels, pooled), head)


def unsaved(model: Any, classes: list[str], size: int) -> Bundle:
    """A bundle without files: its network is converted when it is asked for."""
    bundle = Bundle("", {"classes": classes, "image_size": size, "files": {}})
    vars(bundle)["model"] = model  # where the property keeps it
    return bundle


def by_colour(size: int, classes: list[str], scale: float = 25) -> Bundle:
    """Gives each photo the class of its strongest colour: red, green, blue are the classes 0, 1, 2."""
    import keras

    pixels = keras.Input((size, size, 3), dtype="uint8")
    features = keras.layers.Rescaling(1 / scale)(pixels)
    model = classify(pixels, features, np.eye(3, dtype=np.float32))
    return unsaved(model, classes, size)


def layered(size: int, classes: list[str], seed: int = 0) -> Bundle:
    """A small convolutional network with random weights."""
    import keras

    rng = np.random.default_rng(seed)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    layer = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    for width in (16, 32, 64):
        layer = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(layer)
    model = classify(pixels, layer, np.zeros((64, len(classes)), np.float32))
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.15, size=variable.shape))
    return unsaved(model, classes, size)


def extractor(network: Any, specs: Sequence[FeatureSpec], folder: str | Path) -> FeatureExtractor:
    """The feature extractor of a network by the engine that its specs name; converted files go to `folder`."""
    spec = specs[0]
    frozen = FrozenNetwork(
        folder=str(folder),
        backbone=spec.backbone,
        weights=spec.weights,
        image_size=spec.image_size,
        precision=spec.precision,
        engine_name=spec.engine,
        build=lambda: network,
    )
    frozen.prepare(cuts_of(specs), lambda: network)
    return FeatureExtractor(frozen, specs, 1)


def typical(classes: int, validated: int = 99) -> Typicality:
    """What usual photos are to `by_colour`: of one strong colour each, whose features are these."""
    rng = np.random.default_rng(0)

    def photos(n: int) -> tuple[Any, Any]:
        labels = np.arange(n, dtype=np.int32) % classes
        return labels, (8 * np.eye(classes)[labels] + rng.uniform(0, 2.5, (n, classes))).astype(np.float32)

    (labels, features), (_, held) = photos(60), photos(validated)
    powers = np.exp(held - held.max(axis=1, keepdims=True))
    return Typicality.fit(features, labels, held, powers / powers.sum(axis=1, keepdims=True))


def trained(folder: Path, made: Bundle, photos: dict[Path, tuple[str, str]], right: int = 0) -> Run:
    """A finished run of a toy bundle.

    Args:
        folder: to make.
        made: what "was trained".
        photos: label and subset of each.
        right: so many of the test photos its report calls right.
    """
    run, classes = Run(str(folder)), list(made.classes)
    sums = {"weights_sha256": hashlib.sha256(str(folder).encode()).hexdigest()}
    manifest = {**made.manifest, "versions": {"keras": "3"}, **sums}
    save_bundle(made.model, manifest, run.bundle, typicality=typical(len(classes)))
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in photos]
    labels, subsets = zip(*photos.values(), strict=True)
    columns = {"sha256": pa.array(digests, pa.binary(32)), "label": labels, "split": subsets}
    pq.write_table(pa.table({**columns, "path": [str(path) for path in photos]}).sort_by("sha256"), run.split)
    storage.write(run.config, b'{"options": {}}')
    tests = subsets.count("test")
    answers = [0] * right + [1] * (tests - right)
    counts = Counts.of([0] * tests, np.eye(len(classes))[answers])
    changes = {**sums, "test": summarize(counts, classes).to_json(), "bundle": run.bundle}
    storage.write(run.report, json.dumps({**written(), **changes}).encode())
    return run


def coloured(folder: Path, labels: Sequence[str], each: int, size: int = 12) -> dict[Path, str]:
    """Photos whose strongest colour is red for the first label, green for the second, blue for the third."""
    found, rng = {}, np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels):
        for number in range(each):
            pixels = rng.integers(0, 60, (size, size + 4, 3), np.uint8)
            pixels[..., index] += 150
            path = folder / f"{label}-{number}.png"
            Image.fromarray(pixels).save(path)
            found[path] = label
    return found


def saved_by_colour(folder: Path, classes: list[str], size: int = 8) -> Path:
    """The bundle of `by_colour`, on the disk."""
    bundle = by_colour(size, classes)
    manifest = {"classes": classes, "image_size": size, "backbone": "none"}
    save_bundle(bundle.model, manifest, str(folder), typicality=typical(len(classes)))
    return folder
