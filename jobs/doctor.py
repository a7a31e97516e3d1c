"""Look at the cluster before a long run: `python -m jobs.doctor`."""

from __future__ import annotations

from typing import Any

from flowers import cli
from flowers.config import DoctorOptions

_HELP = """Look at the cluster before a long run, or at this machine: versions on every node, storage, photos, disks,
shared memory, clocks, ports, the token, GPUs as TensorFlow sees them, room for the workers. A line each: OK, or what to
do. Exit code 3 if something is wrong.

\b
On this machine:            python -m jobs.doctor
On a cluster:               RAY_ADDRESS=HEAD:6379 python -m jobs.doctor --storage s3://BUCKET/runs --data s3://BUCKET/photos
Before a run of 4 workers:  python -m jobs.doctor --storage /shared/runs --nodes 4 --workers 4
"""


@cli.command(_HELP, DoctorOptions)
def main(**values: Any) -> None:
    """Parses, looks; exit code 3 if something is wrong."""
    out = cli.console(bool(values["verbose"]))
    options = DoctorOptions(**cli.given(values, DoctorOptions))
    from flowers.doctor.checks import State
    from flowers.errors import GateNotMet
    from flowers.pipelines.doctor import doctor

    findings = doctor(options, out)
    if wrong := dict.fromkeys(finding.check for finding in findings if finding.state is State.WRONG):
        raise GateNotMet(f"not fit for a long run: {', '.join(wrong)}; the lines above say what to do")


if __name__ == "__main__":
    cli.run_command(main, "python -m jobs.doctor")
