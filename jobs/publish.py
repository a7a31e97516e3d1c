"""Publish a bundle as the next version of a model: `python -m jobs.publish RUN --to MODELS/NAME`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import PublishOptions
from flowers.errors import InputError
from flowers.options import flag, wrong

_HELP = """Publish the bundle of a run (or a bundle) as the next version of a model; servers of that model take it.

\b
The next version:               python -m jobs.publish RUN --to MODELS/NAME
Only if it is good enough:      python -m jobs.publish RUN --to MODELS/NAME --min-accuracy 0.8
Only if what answers is no better:
                                python -m jobs.publish RUN --to MODELS/NAME --not-worse-than MODELS/NAME
What is there:                  python -m jobs.publish --to MODELS/NAME --list
Back to the version before:     python -m jobs.publish --to MODELS/NAME --rollback
"""


@cli.command(_HELP, PublishOptions, argument="run")
def main(**values: Any) -> None:
    """Parses, publishes or chooses; exit code 3 if the bundle is not good enough."""
    out = cli.console(bool(values["verbose"]))
    options, run = PublishOptions(**cli.given(values, PublishOptions)), values["run"]
    asked = [*(["RUN"] if run else []), *map(flag, options.instead)]
    if len(asked) != 1:
        raise InputError(
            f"received {' and '.join(asked) or 'nothing to do'}, required is one of RUN (what to publish), --list, "
            "--rollback, --pin, --unpin"
        )
    for name in ("min_accuracy", "not_worse_than", "mlflow"):
        if not run and getattr(options, name) is not None:
            raise wrong(
                name, getattr(options, name), f"RUN, as it is of what is published; leave it out with {asked[0]}"
            )
    from flowers.pipelines.publish import choose, describe, publish

    if run:
        publish(run, options, out)
    elif options.list:
        out.print("\n".join(describe(options)), highlight=False, markup=False)
    else:
        choose(options, out)


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.publish")
