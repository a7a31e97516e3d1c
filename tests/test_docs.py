"""The generated document says what the commands say."""

from __future__ import annotations

from docs import cli
from flowers.config import TrainConfig
from flowers.options import described, flag
from serving.options import Address, ServeOptions


def test_the_document_is_up_to_date() -> None:
    assert cli.FILE.read_text(encoding="utf-8") == cli.render(), "run make docs"


def test_every_option_has_its_row() -> None:
    text = cli.render()
    for model in (TrainConfig, ServeOptions, Address):
        for name in described(model):
            assert f"| `{flag(name)}` | " in text
