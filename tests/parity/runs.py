"""Runs of photos that never were: drawn, put through a network, and its outputs put into the caches."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flowers import storage
from flowers.config import TrainConfig
from flowers.features.cache import FeatureCache
from flowers.model import backbones, cuts
from flowers.model.registry import POOL, cut_of
from flowers.plan import Plan
from flowers.runs import Run
from flowers.training import checkpoints, trainer
from tests.toys import extractor

Arrays = dict[str, npt.NDArray[Any]]

CLASSES = ("daisy", "rose", "tulip")
WIDE = 128
# Half of the network `tiny_network` makes: what --trainable block_15 trains with --backbone mobilenetv2.
TINY: dict[str, Any] = {"backbone": "mobilenetv2", "trainable": "block_15", "weights": "random", "image_size": 32}


@dataclass(frozen=True)
class Photos:
    """Photos, and which of them is in which subset.

    Attributes:
        pixels: uint8 [n, size, size, 3].
        digests: SHA-256 of each.
        split: what split.parquet says of them, in the order of their digests.
    """

    pixels: npt.NDArray[np.uint8]
    digests: list[bytes]
    split: pa.Table

    def labels(self, subset: str) -> list[str]:
        """The labels of one subset, in the order of split.parquet."""
        rows = self.split.to_pylist()
        return [row["label"] for row in rows if row["split"] == subset]

    def of(self, subset: str) -> npt.NDArray[np.uint8]:
        """The pixels of one subset, in the order of split.parquet."""
        index_of = {digest: number for number, digest in enumerate(self.digests)}
        rows = self.split.to_pylist()
        return self.pixels[[index_of[row["sha256"]] for row in rows if row["split"] == subset]]


def drawn(train: int, validation: int, size: int = 32, light: float = 0) -> Photos:
    """Noisy photos whose class is their colour, and 5 more to test with; light of other colours makes it harder."""
    rng = np.random.default_rng(0)
    count = train + validation + 5
    labels = rng.integers(0, len(CLASSES), count)
    colours = 90 + 70 * np.eye(3)[labels] + light * rng.normal(size=(count, 3))
    pixels = (colours[:, None, None] + rng.integers(-80, 80, (count, size, size, 3))).clip(0, 255).astype(np.uint8)
    digests = [hashlib.sha256(photo.tobytes()).digest() for photo in pixels]
    subsets = ["train"] * train + ["validation"] * validation + ["test"] * 5
    order = sorted(range(count), key=digests.__getitem__)
    split = pa.table(
        {
            "path": [f"/photos/{number}.jpg" for number in order],
            "label": [CLASSES[labels[number]] for number in order],
            "sha256": pa.array([digests[number] for number in order], pa.binary(32)),
            "split": [subsets[number] for number in order],
        }
    )
    return Photos(pixels, digests, split)


@dataclass(frozen=True)
class Place:
    """A storage with runs of some photos and their caches.

    Attributes:
        folder: the storage; its URI does as well.
        photos: of every run.
        network: what the caches are filled by; None leaves that to the test.
    """

    folder: Path
    photos: Photos
    network: Any = None

    def plan(self, name: str, config: TrainConfig, **changes: Any) -> Plan:
        """The plan of a run, whose folder has its split from then on, and whose caches are filled."""
        config = config.replace(storage=str(self.folder), name=name)
        run, split = Run.of(config), pa.BufferOutputStream()
        pq.write_table(self.photos.split, split)
        storage.write(run.split, split.getvalue())
        found = {
            "image_size": config.image_size,
            "weights": config.weights,
            "start_weights": config.weights,
            "precision": "float32",
            "engine": "tensorflow",  # which rounds as training does
            "cut": cut_of(config.backbone, config.trainable),
        }
        plan = Plan(config=config, run=run, **{**found, **changes})
        if self.network is not None:
            self._fill(plan)
        return plan

    def _fill(self, plan: Plan) -> None:
        caches = {spec: FeatureCache(plan.cache(spec)).open() for spec in plan.features}
        empty = [spec for spec, cache in caches.items() if not cache.digests()]
        if empty:
            made = extractor(self.network, empty, plan.networks).features(self.photos.pixels)
            for spec, rows in zip(empty, made, strict=True):
                caches[spec].add(self.photos.digests, rows)
                caches[spec].flush()


def fit(plan: Plan) -> list[str]:
    """Trains a run; returns what the user was told."""
    told: list[str] = []
    trainer.prepare(plan, told.append)
    trainer.fit(plan, CLASSES, told.append)
    return told


def lines_of(plan: Plan, *without: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    lines = [json.loads(line) for line in storage.read(plan.run.metrics).splitlines()]
    return [{name: line[name] for name in line if name not in without} for line in lines]


def newest(plan: Plan) -> checkpoints.Checkpoint:
    """The newest checkpoint; there must be one, and none that is damaged."""
    found, skipped = checkpoints.newest(plan.run.checkpoints)
    assert found is not None
    assert not skipped
    return found


def kept(plan: Plan) -> list[int]:
    """The epochs whose checkpoints are there."""
    return sorted(int(path.name.removeprefix("epoch-")) for path in (Path(plan.run.checkpoints)).iterdir())


def check_same_state(one: Plan, two: Plan) -> None:
    """Bit-equal variables, history and early stopping; only `seconds` may differ."""
    mine, other = newest(one), newest(two)
    assert mine.epoch == other.epoch
    assert mine.arrays.keys() == other.arrays.keys()
    for name, array in mine.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name
    assert lines_of(one, "seconds") == lines_of(two, "seconds")
    assert {**mine.state, "lines": 0} == {**other.state, "lines": 0}
    for plan, found in ((one, mine), (two, other)):
        assert found.state["lines"] == lines_of(plan)


def start_of(plan: Plan, network: Any) -> Arrays:
    """The start weights of the tail of a network."""
    blocks = cuts.trained_variables(network, plan.config.backbone, plan.cut)
    variables = itertools.chain.from_iterable(blocks)
    return {f"tail:{number}": np.asarray(variable) for number, variable in enumerate(variables)}


def apart(ours: Arrays, theirs: Arrays, start: Arrays) -> float:
    """How far the weights of two tails with their heads are from each other, as a part of the way they have come."""

    def distance(others: Arrays) -> float:
        names = [name for name in ours if name.startswith(("head", "tail"))]
        squares = [np.sum((ours[name] - others[name]) ** 2, dtype=np.float64) for name in names]
        assert len(squares) > 2
        return float(np.sqrt(sum(squares)))

    assert distance(start) > 0.1
    return distance(theirs) / distance(start)


def calibrated(photos: npt.NDArray[np.uint8], target: Path) -> Path:
    """Weights of a random MobileNetV2 whose statistics fit the photos: without, its features are nearly constant."""
    import keras

    size = photos.shape[1]
    body = backbones.build_backbone("mobilenetv2", "random", size, "float32").get_layer("mobilenetv2")
    body.trainable = True
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    body(photos.astype(np.float32) / 127.5 - 1, training=True)
    body.save_weights(target)
    return target


def tiny_network(backbone: str, weights: str, image_size: int, precision: str, width: int = 8) -> Any:
    """In place of `build_backbone`: the names of MobileNetV2's last blocks, and hardly any weights.

    Its features have `width` numbers.
    """
    import keras

    del weights
    rng = np.random.default_rng(3)
    with backbones.arithmetic(precision):
        start = keras.Input((image_size, image_size, 3))
        flow = start
        for end, filters in (("block_14_add", 4), ("block_15_add", 6), ("block_16_project_BN", width)):
            flow = keras.layers.Conv2D(filters, 3, strides=2, padding="same", name=f"{end}_conv")(flow)
            flow = keras.layers.BatchNormalization(name=f"{end}_norm")(flow)
            flow = keras.layers.Activation("relu", name=end)(flow)
        body = keras.Model(start, flow, name=backbone)
        for variable in body.weights:
            spread = 0.5 if len(variable.shape) > 1 else 0.1
            value = rng.normal(scale=spread, size=variable.shape)
            variable.assign(1 + abs(value) if "variance" in variable.name or "gamma" in variable.name else value)
        body.trainable = False
        pixels = keras.Input((image_size, image_size, 3), dtype="uint8")
        scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name=cuts.SCALE)(pixels)
        pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name=POOL)(body(scaled, training=False))
        return keras.Model(pixels, pooled, name="frozen")


def wide_network(backbone: str, weights: str, image_size: int, precision: str) -> Any:
    """The same with so wide a last block that a checkpoint of the tail is larger than all else that a run writes."""
    return tiny_network(backbone, weights, image_size, precision, WIDE)
