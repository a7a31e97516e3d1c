"""The recipes: each is a training that can be, and a folder of photos may have the name of one."""

from __future__ import annotations

import pytest

from flowers.config import TrainConfig
from flowers.model.registry import cut_of
from jobs.train import build_config, recipe_names


@pytest.mark.parametrize("recipe", recipe_names())
def test_options_that_are_given_go_before_those_of_the_recipe(recipe: str) -> None:
    config = build_config(recipe, {"seed": 7})
    assert config.seed == 7
    assert cut_of(config.backbone, config.trainable)
    changed = build_config(recipe, {"trainable": "all", "backbone": "resnet50v2"})
    assert (changed.trainable, changed.backbone) == ("all", "resnet50v2")


def test_only_a_named_set_implies_a_recipe() -> None:
    assert build_config(None, {}).weights == "random", "the drawn sample"
    assert build_config(None, {"data": "flower_photos"}).backbone == "resnet101v2"
    assert build_config(None, {"data": "accurate"}) == TrainConfig(data="accurate")
    assert build_config("accurate", {"data": "sample"}).weights == "imagenet"
