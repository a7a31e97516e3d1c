"""Text from people's data does not steer the terminal, wherever it is shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowers import cli
from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.text import plain

ODD = ["a\x1b[31mb", "a\nb", "a\rb", "a\tb", "a\u202eb", "a\u2028b", "a\x07b", "a\x9bb", "a\ud800b"]


@given(st.text())
def test_what_is_shown_is_one_line_that_can_be_printed(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert plain(shown) == shown
    shown.encode()


def test_letters_stay_and_what_steers_goes() -> None:
    assert plain("Löwenzahn ☃ 花 [bold]x[/bold] <b>") == "Löwenzahn ☃ 花 [bold]x[/bold] <b>"
    assert {plain(text) for text in ODD} == {"a\ufffdb", "a\ufffd[31mb"}


def test_an_error_is_one_line_whatever_it_is_about() -> None:
    for odd in ODD:

        @cli.command("Fails.", TrainConfig)
        def fails(odd: str = odd, **_: object) -> None:
            raise InputError(f"--data: {odd} is wrong")

        code, text = cli.outcome(fails, "fails", [])
        assert code == 2
        assert text.isprintable()
