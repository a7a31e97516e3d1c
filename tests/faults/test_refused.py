"""What cannot work is refused before a worker starts: exit code 2, one line, and the name can be used again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Done
from tests.faults.conftest import Place

MORE = (os.cpu_count() or 1) + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": MORE, "batch_size": MORE}, f"--workers: received {MORE}, each with 1 CPU"),
        ({"workers": 3, "batch_size": 32}, "required is a multiple of --workers (3)"),
        ({"workers": "2..8"}, "--workers: received '2..8', required is one number: a number that changes"),
        ({"trainable": "stage5"}, "--trainable: received 'stage5', required for mobilenetv2 is one of head, block_16,"),
        ({"trainable": "head", "augment": "strong"}, "--augment: received 'strong', required is none, flip or crops"),
    ],
    ids=["more workers than CPUs", "does not divide", "elastic", "no such stage", "augmented head"],
)
def test_options(place: Place, reference: Done, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    done = place.finish("refused", code=2, **changes)
    assert done.err.startswith(f"error: {said}") or said in done.err
    assert done.err.count("\n") == 1
    assert not {"config.json", "checkpoints", "metrics.jsonl"} & {entry.name for entry in done.run.glob("*")}


def test_storage_below_a_file(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    done = place.job(file / "runs", "refused", *place.arguments(), code=2)
    assert done.err.startswith("error: --storage: ")
    assert done.err.count("\n") == 1
