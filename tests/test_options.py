"""One description of an option: its check, its error, its help, its place on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

from flowers import cli
from flowers.config import TrainConfig
from flowers.data.builtin.download import ARCHIVES
from flowers.errors import InputError
from flowers.options import OneOf, OptionSet, check_file, check_folder, check_paths, described, option


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


NO_PATHS = {  # texts that may be anything, and name no file
    *("group_by", "trainable", "workers", "feature_actors", "actors", "name", "older_than", "time_limit"),
    *("allowed_hosts", "cors_origins", "root_path", "host", "mlflow"),
}


def test_options_know_which_of_them_are_paths() -> None:
    from docs.cli import COMMANDS

    known = [p.described for command in COMMANDS.values() for p in command.params if isinstance(p, cli.Parameter)]
    texts = [option for option in known if option.kind is str and not option.choices]
    assert {option.name for option in texts if not option.path} == NO_PATHS
    assert not {option.name for option in known if option.path} & NO_PATHS
    assert {"sample", *ARCHIVES} in [set(option.names) for option in known if option.name == "data"]


COPY = "session_2026/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the copy that Ray made of a submitted job's."""
    folder = tmp_path / COPY
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "_hide_logs", lambda: None)
    return folder


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("jobs.train", "", "--storage: the default 'runs' lies in Ray's"),
        ("jobs.train", "--storage runs", "--storage: 'runs' lies in Ray's"),
        ("jobs.train", "--storage {copy}/runs", "--storage: '{copy}/runs' lies in Ray's"),
        ("jobs.train", "--storage file://{copy}/runs", "--storage: 'file://{copy}/runs' lies in Ray's"),
        ("jobs.train", "--storage {link}/runs", "--storage: '{link}/runs' lies in Ray's"),
        ("jobs.train", "--storage /x --data photos", "--data: 'photos' lies in Ray's"),
        ("jobs.train", "--storage /x --data /y --weights a.h5", "--weights: 'a.h5' lies in Ray's"),
        ("jobs.check", "--data /y", "--page: the default 'check.html' lies in Ray's"),
        ("jobs.clean", "", "--storage: the default 'runs' lies in Ray's"),
        ("jobs.publish", "runs/a --to /models/m", "RUN: 'runs/a' lies in Ray's"),
        ("jobs.publish", "/runs/a --to models/m", "--to: 'models/m' lies in Ray's"),
        ("jobs.export", "--bundle runs/a --to /x --format onnx", "--bundle: 'runs/a' lies in Ray's"),
        ("serving", "--bundle runs/a", "--bundle: 'runs/a' lies in Ray's"),
    ],
)
def test_what_ray_would_delete_is_refused_first(
    command: str, words: str, said: str, copy: Path, tmp_path: Path
) -> None:
    from docs.cli import COMMANDS

    (tmp_path / "link").symlink_to(copy)
    names = {"copy": copy, "link": tmp_path / "link"}
    given = words.format(**names).split()
    code, text = cli.outcome(COMMANDS[f"python -m {command}"], command, given)
    assert (code, text.partition(" lies ")[0]) == (2, f"error: {said.format(**names).partition(' lies ')[0]}")
    assert "s3://BUCKET/FOLDER" in text
    assert list(copy.iterdir()) == []


@pytest.mark.parametrize(
    "data", ["sample", "flower_photos", "/photos", "s3://bucket/photos", "https://a.example/a.zip"]
)
def test_what_stays_is_not_refused(data: str, copy: Path) -> None:
    check_paths(TrainConfig, {"storage": "/runs", "data": data, "weights": "imagenet"})
    check_paths(TrainConfig, {"storage": "s3://bucket/runs", "data": data, "weights": "random"})


def test_a_folder_to_write_to_holds_nothing_of_others(tmp_path: Path) -> None:
    folder, own = tmp_path / "out", ["list.csv", "list.html"]

    def check() -> None:
        check_folder("--out", str(folder), own, "list")

    check()
    (folder / ".DS_Store").mkdir(parents=True)
    check()
    (folder / "rose.jpg").touch()
    with pytest.raises(InputError, match=rf"^--out: {folder} holds 'rose.jpg' and is no list; choose another --out$"):
        check()
    (folder / "list.html").touch()
    check()
    with pytest.raises(InputError, match=r"rose.jpg is a file, required is a folder; choose another --out$"):
        check_folder("--out", str(folder / "rose.jpg"), own, "list")


def test_a_file_to_write_is_nobody_elses(tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    def check() -> None:
        check_file("--page", str(page), b"<ours>", "page of ours")

    check()
    page.write_text("<html><ours>")
    check()
    page.write_text("<html>")
    with pytest.raises(
        InputError, match=rf"^--page: {page} is there and is no page of ours; choose another --page, or"
    ):
        check()
    page.unlink()
    page.mkdir()
    with pytest.raises(InputError, match=r"is no page of ours"):
        check()
