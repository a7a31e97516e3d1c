"""Train a classifier: `python -m jobs.train --data DIR`, or `ray job submit -- python -m jobs.train --data DIR`."""

from __future__ import annotations

import os
import shlex
import sys
from importlib import resources
from typing import Annotated, Any

import yaml

from flowers import cli
from flowers.cluster.access import joined
from flowers.config import TrainConfig
from flowers.options import OneOf, OptionSet, described, option
from jobs import STARTED

_HELP = """Turn a folder of photos, one sub-folder a class, into a trained and tested image classifier.

\b
On 200 drawn pictures, to see it work:  python -m jobs.train
On your photos:                         python -m jobs.train --data DIR
More accurate, in more time:            python -m jobs.train --data DIR --recipe accurate
In at most five minutes:                python -m jobs.train --data DIR --recipe accurate --time-limit 5m
ML.NET's sample, on flower_photos:      python -m jobs.train --recipe flower_photos
"""
_RESUME = "Nothing is lost: the same command goes on from the last finished epoch."
_RECIPES = resources.files("jobs") / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _RECIPES.iterdir() if entry.name.endswith(".yaml"))


class Start(OptionSet):
    """Where the options come from that are not given."""

    recipe: Annotated[str, OneOf(tuple(recipe_names()))] | None = option(
        None,
        "Named options to start from: quick, balanced or accurate (docs/accuracy.md has their accuracy and time), or "
        "those of a named set.",
        group=described(TrainConfig)["data"].group,
        result=True,
        absent="as --data",
    )


def build_config(recipe: str | None, given: dict[str, Any]) -> TrainConfig:
    """Options that were given, over the recipe's, over the defaults; a named set implies the recipe of its name."""
    if recipe is None:
        data = given.get("data", TrainConfig.model_fields["data"].default)
        recipe = data if data in described(TrainConfig)["data"].names else None  # a folder may be called "quick"
    values = yaml.safe_load((_RECIPES / f"{recipe}.yaml").read_text("utf-8")) if recipe else {}
    return TrainConfig(**{**values, **given})


def _from_here(path: str) -> str:
    """A path below the current folder as people type it there; on a cluster, where nobody is, as it is."""
    return path if joined() else path.removeprefix(f"{os.getcwd()}/")


@cli.command(_HELP, Start, TrainConfig)
def main(**values: Any) -> None:
    """Parses, runs, reports."""
    out = cli.console(bool(values["verbose"]))
    config = build_config(Start(**cli.given(values, Start)).recipe, cli.given(values, TrainConfig))
    from flowers.pipelines import train
    from flowers.report.text import render_text
    from flowers.runs import Run

    report = train.train(config, out, STARTED, shlex.join(["python", "-m", "jobs.train", *sys.argv[1:]]))
    out.print(render_text(report))
    run = Run.of(config)
    out.print(f"report    {_from_here(run.page)}\nbundle    {_from_here(run.bundle)}", highlight=False)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.train", _RESUME)
