"""Three real nodes of Ray, on this machine: the numbers of one process, each of which reads its part of the bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.train

from flowers.config import TrainConfig
from flowers.data import reading
from flowers.features.cache import FeatureCache
from flowers.features.parts import GROUP_ROWS
from flowers.plan import Plan
from flowers.training import trainer
from flowers.training.loop import train_loop
from jobs.train import main
from tests.cluster.clusters import three_nodes
from tests.e2e.conftest import TINY_PATH, Done, ran, wide, words
from tests.features.counted import Counted, counting
from tests.parity.runs import TINY, Photos, Place, drawn, fit, lines_of, newest, wide_network

CPUS = 2  # of each node
WORKERS = 4


def size(file: Path) -> int:
    return file.stat().st_size


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """HOST:PORT of the head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TINY_PATH)  # all processes build `wide_network`
        with three_nodes(CPUS) as address:
            yield address


@pytest.fixture(autouse=True)
def joined(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    with wide():
        yield


def counted_loop(folder: Path) -> Callable[[dict[str, Any]], None]:
    """The training loop; each worker leaves its node and the bytes that it has read of the caches."""

    def loop(config: dict[str, Any]) -> None:
        files: list[Counted] = []
        FeatureCache._file = counting(files)  # type: ignore[method-assign]
        train_loop(config)
        rank = ray.train.get_context().get_world_rank()
        found = {"node": ray.get_runtime_context().get_node_id(), "bytes": sum(file.count for file in files)}
        (folder / str(rank)).write_text(json.dumps(found))

    return loop


@pytest.fixture(scope="module")
def photos() -> Photos:
    """Neither 32 nor the workers divide them."""
    return drawn(32 * 50 + 13, 201, light=40)


@pytest.fixture(scope="module")
def place(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Place:
    network = wide_network("mobilenetv2", "random", TINY["image_size"], "float32")
    return Place(tmp_path_factory.mktemp("storage"), photos, network)


CONFIG = TrainConfig(**TINY, augment="flip", batch_size=32, head_epochs=2, epochs=2, learning_rate=0.003)


@pytest.fixture(scope="module")
def one(place: Place) -> Plan:
    """The run of one process."""
    plan = place.plan("one", CONFIG)
    with wide():
        assert fit(plan) == []
    return plan


@pytest.mark.usefixtures("ray")
def test_the_numbers_of_one_process_from_a_part_of_the_bytes(
    place: Place, one: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four workers, head and tail, two epochs each: for so many of eight there is room, as after a loss."""
    monkeypatch.setattr(trainer, "train_loop", counted_loop(tmp_path))
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    plan = place.plan("four", CONFIG, workers=2 * WORKERS, nodes=3, worker_cpus=1)
    assert fit(plan) == [
        f"warning: the nodes that are left have room for {WORKERS} of {2 * WORKERS} workers; these go on"
    ]

    lines = lines_of(plan, "seconds")
    assert [line["phase"] for line in lines] == ["head"] * 2 + ["tail"] * 2
    for mine, other in zip(lines, lines_of(one, "seconds"), strict=True):
        assert mine.pop("phase") == other.pop("phase")
        assert mine == pytest.approx(other, rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1, "something was learned, so equal numbers mean something"
    ours, theirs = newest(plan).arrays, newest(one).arrays
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"validation"}:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)

    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(WORKERS)]
    assert len({each["node"] for each in found}) >= 2
    # Pages hold photos of all subsets: the plain view is read once for training and validation.
    part = sum(size(file) for spec in plan.features for file in Path(plan.cache(spec)).glob("rows-*")) / WORKERS
    # Each opening takes the digests and a footer, each reading these again and up to a row group more on both sides.
    opening = 2 * len(plan.features) * (32 * len(place.photos.digests) + (70 << 10))
    groups = len(plan.features) * 2 * GROUP_ROWS * (4 << 10)
    for each in found:
        assert 0.95 * part < each["bytes"] < part + opening + groups


@pytest.mark.usefixtures("ray")
def test_of_photos_only_their_rows_reach_the_job(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole job on real photos: features on all nodes, two workers; and in one process."""
    passed: Counter[str] = Counter()
    tables = reading.tables

    def counted(*arguments: Any, **options: Any) -> Iterator[pa.Table]:
        for table in tables(*arguments, **options):
            passed["bytes"] += table.nbytes
            passed["rows"] += table.num_rows
            yield table

    monkeypatch.setattr(reading, "tables", counted)
    data = shared / "flower_photos"
    options = ["--data", data, "--per-class", 20, "--backbone", "mobilenetv2", "--weights", "random"]
    options += ["--image-size", 64, "--precision", "float32", "--trainable", "block_15", "--epochs", 2]

    def trained(name: str, *more: object) -> Done:
        """In a storage of its own, so that all features are computed."""
        text = ran(main, *words(tmp_path / name, name, *options, *more))
        return Done(0, text, "", tmp_path / name / name)

    many = trained("many", "--workers", 2, "--cpus-per-worker", CPUS, "--feature-actors", 3)
    assert "workers   2" in many.out
    assert passed["rows"] >= 100
    assert passed["bytes"] < 1000 * passed["rows"] < sum(map(size, data.glob("*/*0.jpg"))) / 10
    alone = trained("alone", "--workers", 1, "--feature-actors", 0)
    for mine, other in zip(many.metrics(), alone.metrics(), strict=True):
        assert mine.pop("phase") == other.pop("phase")
        assert mine == pytest.approx(other, rel=1e-4)
    for subset in ("validation", "test"):
        mine, other = (done.report[subset]["log_loss"]["value"] for done in (many, alone))
        assert mine == pytest.approx(other, rel=1e-4)
