"""What the options come down to: which outputs are cached, under which key, and when photos are streamed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from flowers.cluster.placement import Node, on_device
from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.plan import Facts, Plan, bundles, check_workers, choose_inputs, fewer_workers, make_plan, placed
from flowers.runs import Run

STAGE5 = "conv4_block6_out"


def planned(
    cut: str = "pool", streamed: bool = False, validation: bool = False, photos: int = 0, **options: Any
) -> Plan:
    config = TrainConfig(**{"trainable": "head" if cut == "pool" else "stage5", "augment": "none", **options})
    return Plan(
        config=config,
        run=Run("/runs/x"),
        image_size=224,
        weights="random",
        start_weights="random:1",
        precision="float32",
        cut=cut,
        streamed=streamed,
        validation_streamed=validation,
        photos=photos,
    )


@pytest.mark.parametrize(
    ("plan", "targets", "validation"),
    [
        (planned(), [("pool", "plain")], []),
        (planned(augment="flip"), [("pool", "plain"), ("pool", "flip")], []),
        (planned(STAGE5), [("pool", "plain"), (STAGE5, "plain")], []),
        (
            planned(STAGE5, augment="flip"),
            [("pool", "plain"), (STAGE5, "plain"), ("pool", "flip"), (STAGE5, "flip")],
            [],
        ),
        (planned(augment=None), [("pool", "plain")], []),
        (
            planned(STAGE5, augment=None),
            [("pool", "plain"), (STAGE5, "plain"), ("pool", "flip"), (STAGE5, "flip")],
            [],
        ),
        (planned("pixels"), [("pool", "plain"), ("pixels", "plain")], []),
        (planned(STAGE5, True, augment="strong"), [("pool", "plain")], [(STAGE5, "plain")]),
        (planned(STAGE5, True, augment="flip"), [("pool", "plain"), ("pool", "flip")], [(STAGE5, "plain")]),
        (planned(STAGE5, True, True, augment="standard"), [("pool", "plain")], []),
        (
            planned(STAGE5, True, augment="crops", photos=30_000),
            [("pool", "plain"), ("pool", "flip"), ("pool", "crop-0")],
            [(STAGE5, "plain")],
        ),
    ],
)
def test_what_is_cached(plan: Plan, targets: list[tuple[str, str]], validation: list[tuple[str, str]]) -> None:
    """The head's input of each view always; the tail's, if training does not decode the photos again."""
    assert [(spec.cut, spec.view) for spec in plan.features] == targets
    assert [(spec.cut, spec.view) for spec in plan.validation_features] == validation


def test_each_cache_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    plan = planned(storage=str(tmp_path))
    others = [
        plan,
        dataclasses.replace(plan, image_size=96),
        dataclasses.replace(plan, start_weights="imagenet"),
        dataclasses.replace(plan, precision="bfloat16"),
        dataclasses.replace(plan, config=plan.config.replace(backbone="resnet50")),
        dataclasses.replace(plan, config=plan.config.replace(max_pixels=1000)),
    ]
    caches = [other.cache(other.feature("pool")) for other in others]
    caches += [
        plan.cache(plan.feature("pool", "flip")),
        plan.cache(plan.feature(STAGE5)),
        plan.cache(plan.feature(STAGE5, "flip")),
    ]
    assert len(set(caches)) == len(caches)
    assert {Path(cache).parent for cache in caches} == {tmp_path / "cache" / "features"}


def test_runs_that_need_the_same_outputs_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(storage=str(tmp_path))
    other = planned(
        STAGE5, True, storage=str(tmp_path), augment="strong", name="other", seed=7, workers="2", learning_rate=0.1
    )
    moved = dataclasses.replace(other, run=Run("/elsewhere"), weights="/another/path", readers=9, workers=2, nodes=3)
    for cut in ("pool", STAGE5):
        one, two, three = (plan.cache(plan.feature(cut)) for plan in (plan, other, moved))
        assert one == two == three
    monkeypatch.chdir(tmp_path)
    assert planned(storage="runs").cache(plan.feature("pool")).startswith(f"{tmp_path}/runs/cache/")
    assert planned(storage="s3://bucket/runs").cache(plan.feature("pool")).startswith("s3://bucket/runs/cache/")


@pytest.mark.parametrize(("workers", "nodes", "here"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_one_worker_on_one_machine_is_the_jobs_own_process(workers: int, nodes: int, here: bool) -> None:
    assert dataclasses.replace(planned(), workers=workers, nodes=nodes).in_process == here


@pytest.mark.parametrize(
    ("trainable", "epochs", "photos", "nodes", "alone"),
    [
        ("head", 60, 10_000, 2, True),
        ("head", 60, 13_000, 2, False),
        ("head", 30, 24_000, 2, True),
        ("head", 1, 100_000, 2, True),
        ("head", 1, 100_001, 2, False),
        ("head", 60, 10_000, 1, False),
        ("stage5", 60, 10_000, 2, True),
        ("stage5", 60, 13_000, 2, False),
    ],
)
def test_a_short_training_of_the_head_waits_for_no_workers(
    trainable: str, epochs: int, photos: int, nodes: int, alone: bool
) -> None:
    length: dict[str, Any] = {"epochs": epochs} if trainable == "head" else {"head_epochs": epochs}
    config = TrainConfig(backbone="resnet101v2", weights="random", trainable=trainable, **length)
    facts = Facts(
        nodes=(Node(2, 0),) * nodes,
        cpus=2,
        photos=photos,
        weights_key="random:1",
        precision=("float32", ""),
        engine=("openvino", ""),
        photo_bytes=1,
    )
    plan = make_plan(config, facts)
    assert plan.head_alone == alone
    assert (plan.workers, plan.in_process) == (nodes, nodes == 1)
    assert plan.alone().in_process
    assert plan.alone().features == plan.features


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "feature_actors"), [("auto", 2, 1.0, 2), ("gpu", 2, 1.0, 2), ("cpu", 4, 0.0, 4)]
)
def test_a_mixed_cluster(device: Any, workers: int, gpus: float, feature_actors: int) -> None:
    """Features and training go to the GPUs, unless they are left alone; photos are decoded wherever there are CPUs."""
    nodes = [Node(8, 0), Node(8, 0), Node(8, 1), Node(8, 1)]
    config = TrainConfig(device=device)
    facts = Facts(
        nodes=tuple(on_device(nodes, device)),
        cpus=8,
        photos=10**6,
        weights_key="x",
        precision=("float32", ""),
        engine=("tensorflow", ""),
    )
    plan = make_plan(config, facts)
    assert (plan.workers, plan.worker_gpus, plan.feature_actors, plan.feature_gpus) == (
        workers, gpus, feature_actors, gpus
    )  # fmt: skip
    assert plan.readers == (16 if device == "cpu" else 32)  # where networks hold half the CPUs, the others read
    assert placed(config, nodes).gpus == gpus
    assert bundles(config.replace(workers="1")) == [{"CPU": 1.0} | ({"GPU": 1.0} if device == "gpu" else {})]


SPLIT = (0.7, 0.2, 0.1)


@pytest.mark.parametrize(
    ("augment", "budget", "streamed", "validation"),
    [
        ("none", 1.0, False, False),
        ("none", 0.999, True, False),
        ("none", 0.2, True, False),
        ("none", 0.199, True, True),
        ("none", 0, True, True),
        ("flip", 2.0, False, False),
        ("flip", 1.999, True, False),
        ("flip", 0.2, True, False),
        ("crops", 10.0, False, False),
        ("crops", 9.999, True, False),
        ("standard", 1.0, True, False),
        ("strong", 0.2, True, False),
        ("strong", 0.199, True, True),
    ],
)
def test_photos_are_streamed_where_caching_takes_too_much_or_makes_no_sense(
    augment: Literal["none", "flip", "crops", "standard", "strong"], budget: float, streamed: bool, validation: bool
) -> None:
    """10,000 photos of 100 kB: 1 GB a view, of which validation photos take a fifth."""
    config = TrainConfig(trainable="stage5", augment=augment, cache_budget=budget, split=SPLIT)
    found = choose_inputs(config, STAGE5, 100_000, 10_000)
    assert found[:2] == (streamed, validation)


@pytest.mark.parametrize(
    ("options", "size", "reason"),
    [
        (
            {"augment": "none"},
            200_704,
            "the frozen part runs once a photo: 3670 photos x 201 kB = 0.74 GB at conv4_block6_out, within "
            "--cache-budget 20 GB",
        ),
        (
            {},
            10_000,
            "the frozen part runs once a photo: 3670 photos x 2 views x 10 kB = 73 MB at conv4_block6_out, within "
            "--cache-budget 20 GB",
        ),
        (
            {"cache_budget": 0.5, "augment": "none"},
            200_704,
            "photos are decoded again each epoch: 3670 photos x 201 kB = 0.74 GB at conv4_block6_out, more than "
            "--cache-budget 0.5 GB",
        ),
        (
            {"augment": "strong"},
            200_704,
            "photos are decoded again each epoch: --augment strong makes every view a new one",
        ),
    ],
)
def test_the_reason_is_said(options: dict[str, Any], size: int, reason: str) -> None:
    assert choose_inputs(TrainConfig(trainable="stage5", **options), STAGE5, size, 3670)[2] == reason


def test_workers_without_a_photo_are_refused() -> None:
    plan = dataclasses.replace(planned(batch_size=64), workers=4)
    check_workers(plan, 4)
    with pytest.raises(InputError, match=r"^--workers: received 4 for 3 training photos, .*; give at most 3$"):
        check_workers(plan, 3)


@pytest.mark.parametrize(
    ("nodes", "options", "left"),
    [
        ([Node(0, 0), Node(2, 0)], {}, (2, 1)),
        ([Node(0, 0), Node(2, 0)], {"cpus_per_worker": 2}, (1, 2)),
        ([Node(2, 0), Node(2, 0), Node(2, 0)], {}, (4, 1)),  # 5 do not divide the batch
        ([Node(3, 0)], {"augment": "strong", "trainable": "stage5", "batch_size": 12}, (3, 1)),
        ([Node(3, 0)], {"augment": "strong", "trainable": "stage5", "batch_size": 18}, (3, 1)),
        ([Node(3, 0)], {"augment": "strong", "trainable": "stage5", "batch_size": 10}, (1, 3)),  # 2 have an odd part
        ([Node(8, 0)], {}, (8, 1)),  # all fit: they did not start for another reason
        ([Node(0, 0)], {}, (1, 1)),  # the job's own process, which reserves nothing
        ([], {"device": "gpu"}, None),
    ],
)
def test_workers_that_are_left_room_for(
    nodes: list[Node], options: dict[str, Any], left: tuple[int, int] | None
) -> None:
    config = TrainConfig(**{"batch_size": 32, **options})
    plan = dataclasses.replace(planned(), config=config, workers=8, worker_cpus=1)
    fewer = fewer_workers(plan, nodes)
    assert (fewer and (fewer.workers, fewer.worker_cpus)) == left
    assert fewer is None or fewer.in_process == (fewer.workers == len(nodes) == 1)
