"""What is said after suspects were found."""

from __future__ import annotations

import shlex

from flowers.pipelines.suspects import follow_up
from flowers.runs import Run


def test_the_command_that_follows_is_right_after_several_rounds() -> None:
    run, command = Run("/r/one"), "python -m jobs.train --data 'my photos' --name=one --split 0.7 0.2 0.1 --fresh"
    for name in ("one-relabelled", "one-relabelled-2", "one-relabelled-3"):
        command = follow_up(command, run, run)
        assert shlex.split(command) == [
            *("python", "-m", "jobs.train", "--data", "my photos", "--split", "0.7", "0.2", "0.1"),
            *("--relabel", f"{run.uri}/suspects.csv", "--split-file", f"{run.uri}/split.parquet", "--name", name),
        ]
        run = Run(f"/r/{name}")
    assert follow_up("", Run("/r/a b"), Run("/out")) == (
        "python -m jobs.train ... --relabel /out/suspects.csv --split-file '/r/a b/split.parquet' "
        "--name 'a b-relabelled'"
    )
