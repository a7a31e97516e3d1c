"""One description of an option: its check, its error, its help, its place on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

from flowers import cli
from flowers.errors import InputError
from flowers.options import OneOf, OptionSet, described, option


class Inner(OptionSet):
    depth: int = option(2, "How deep.", group="Second", ge=1, le=9)


class Chosen(OptionSet):
    path: str = option(..., "Where.", group="First", absent="here")
    share: float = option(0.5, "How much.", gt=0, lt=1)
    inner: Inner = Inner()
    ratio: float | None = option(None, "Of what.", group="Third", absent="what fits", ge=0)
    colour: Literal["red", "blue"] = option("red", "Which.", result=True)
    shape: Annotated[str, OneOf(("round", "square"))] | None = option(None, "What form.", result=False)
    pair: tuple[float, float] = option((1.0, 2.0), "Two.", required="two numbers")
    loud: bool = option(False, "Say more.")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": 0}, "--share: received 0, required is above 0 and below 1"),
        ({"share": "1"}, "--share: received '1', required is above 0 and below 1"),
        ({"share": math.nan}, "--share: received nan, required is above 0 and below 1"),
        ({"share": "half"}, "--share: received 'half', required is a number, above 0 and below 1"),
        ({"share": None}, "--share: received None, required is a number, above 0 and below 1"),
        ({"ratio": -1}, "--ratio: received -1, required is 0 or more"),
        ({"inner": {"depth": 0}}, "--depth: received 0, required is 1 to 9"),
        ({"inner": {"depth": "1.5"}}, "--depth: received '1.5', required is a whole number, 1 to 9"),
        ({"inner": {"width": 1}}, "--width: there is no such option"),
        ({"inner": 3}, "--inner: received 3, required is names of options with their values"),
        ({"colour": "green"}, "--colour: received 'green', required is one of red, blue"),
        ({"shape": "flat"}, "--shape: received 'flat', required is one of round, square"),
        ({"pair": (1,)}, "--pair: received '1', required is two numbers"),
        ({"pair": ["1", "x"]}, "--pair: received '1 x', required is two numbers"),
        ({"path": ["a\nb"]}, "--path: received 'a\\nb', required is text"),
        ({"loud": "perhaps"}, "--loud: received 'perhaps', required is true or false"),
        ({"quiet": True}, "--quiet: there is no such option"),
    ],
)
def test_a_wrong_value_is_one_line_of_one_form(values: dict[str, Any], said: str) -> None:
    makers: list[Callable[[dict[str, Any]], Chosen]] = [lambda given: Chosen(**given), Chosen.model_validate]
    for make in makers:
        with pytest.raises(InputError) as caught:
            make({"path": "x", **values})
        assert str(caught.value) == said


def test_what_has_to_be_given_is_named() -> None:
    with pytest.raises(InputError, match=r"^--path is missing$"):
        Chosen()


def test_a_wrong_default_is_found() -> None:
    class Wrong(OptionSet):
        count: int = option(0, "How many.", ge=1)

    with pytest.raises(InputError, match="--count"):
        Wrong()


def test_a_field_that_is_no_option_is_refused() -> None:
    class Bare(OptionSet):
        count: int = 3

    class Listed(OptionSet):
        counts: list[int] = option([], "Which.")

    for model in (Bare, Listed):
        with pytest.raises(TypeError, match="count"):
            described(model)


def test_a_model_is_described() -> None:
    found = described(Chosen)
    assert list(found) == ["path", "share", "depth", "ratio", "colour", "shape", "pair", "loud"]
    assert [known.group for known in found.values()] == ["First", "First", "Second", *["Third"] * 5]
    defaults = ["here", "0.5", "2", "what fits", "red", "none", "1.0 2.0", "off"]
    assert [known.default for known in found.values()] == defaults
    assert [known.result for known in found.values()] == [None] * 4 + [True, False, None, None]
    assert [known.allowed for known in found.values()] == [
        "text", "a number, above 0 and below 1", "a whole number, 1 to 9", "a number, 0 or more", "one of red, blue",
        "one of round, square", "two numbers", "true or false",
    ]  # fmt: skip


@cli.command("Shows what came.", Chosen)
def show(**values: Any) -> None:
    click.echo(repr(cli.given(values, Chosen)))


def test_the_command_line_passes_on_what_was_given() -> None:
    words = ["--share", "0", "--depth", "-3", "--pair", "1", "x", "--loud", "--colour", "green"]
    done = CliRunner().invoke(show, words)
    assert done.output == ("{'share': '0', 'depth': '-3', 'colour': 'green', 'pair': ('1', 'x'), 'loud': True}\n"), (
        "a model checks them, in the same words as anywhere else"
    )
    assert CliRunner().invoke(show, []).output == "{}\n"


def test_help_is_in_groups() -> None:
    done = CliRunner().invoke(show, ["-h"], terminal_width=110)
    lines = [line.split() for line in done.output.splitlines()]
    assert [line[0] for line in lines if len(line) == 1] == ["First:", "Second:", "Third:", "Other:"]
    for row in (
        "--path TEXT Where. [default: here]",
        "--depth INTEGER How deep. [default: 2; 1 to 9]",
        "--colour [red|blue] Which. [default: red]",
        "--shape [round|square] What form. [default: none]",
        "--pair NUMBER NUMBER Two. [default: 1.0 2.0]",
        "--loud Say more. [default: off]",
    ):
        assert row.split() in lines
