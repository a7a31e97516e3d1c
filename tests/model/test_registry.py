"""The table of backbones: what each row says is consistent, and is what the command line offers."""

from __future__ import annotations

import itertools

import pytest

from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.model.registry import BACKBONES, PIXELS, POOL, cut_of
from flowers.options import described

OPTIONS = described(TrainConfig)


def test_the_command_line_offers_the_table() -> None:
    assert OPTIONS["backbone"].choices == tuple(BACKBONES)
    for name, row in BACKBONES.items():
        assert name in OPTIONS["trainable"].help
        for start in (row.trainable_names[1], row.trainable_names[-2]):
            assert start in OPTIONS["trainable"].help


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_is_consistent(name: str) -> None:
    row = BACKBONES[name]
    assert 32 <= row.smallest <= row.image_size
    assert len(set(row.blocks)) == len(row.blocks) >= len(row.parts) > 1
    assert all(row.parts.values())
    names = row.trainable_names
    assert len(set(names)) == len(names)
    assert (names[0], names[-1]) == ("head", "all")
    order = [PIXELS, *row.blocks, POOL]
    indices = [order.index(cut_of(name, start)) for start in names]
    assert all(shallow > deep for shallow, deep in itertools.pairwise(indices))
    for start, below in row.starts.items():  # the part of that name begins right above its cut
        assert order[order.index(below) + 1] == row.parts[start][0]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_wrong_part_is_answered_with_the_right_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        cut_of(name, next(iter(BACKBONES[name].parts)))  # nothing lies below the first
    assert str(caught.value).endswith(f"required for {name} is one of {', '.join(BACKBONES[name].trainable_names)}")
