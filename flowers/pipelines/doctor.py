"""Before a long run: every node is asked what the run will need of it, and each answer becomes a line."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from flowers import storage
from flowers.cluster.access import announce, guarded, joined
from flowers.cluster.session import ray_session
from flowers.config import DataOptions, DoctorOptions
from flowers.data.listing import some
from flowers.doctor.checks import Finding, State, Wanted, judge, unknown
from flowers.errors import AccessDenied, FlowersError, InputError
from flowers.options import check_file
from flowers.pipelines.source import list_source
from flowers.runs import killed_runs
from flowers.text import plain

_STYLES = {State.OK: "green", State.ADVICE: "yellow", State.WRONG: "bold red", State.UNKNOWN: "dim"}


def doctor(options: DoctorOptions, out: Console) -> list[Finding]:
    """Looks at the cluster that a job would join or start, prints a line a check, and writes `out` if that is given.

    Args:
        options: what the run will need.
        out: gets the lines.

    Returns:
        The lines: what is right, and what is wrong with what to do about it.

    Raises:
        InputError: RAY_ADDRESS names no cluster, or `out` cannot be written.
    """
    if options.out:
        check_file("--out", storage.absolute(options.out), b'"check": ', "list of findings")
    announce(out)
    with storage.no_empty_folders(storage.absolute(options.storage)):  # each node writes there
        findings = _findings(options)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        state = (f"{finding.state.value:<8}", _STYLES[finding.state])
        out.print(Text.assemble(state, f"{finding.check:<{width + 2}}", plain(finding.text)))
    if options.out:
        record = [{**asdict(finding), "state": finding.state.value} for finding in findings]
        try:
            storage.write(storage.absolute(options.out), json.dumps(record, indent=1).encode())
        except OSError as error:
            raise InputError(f"--out: {options.out} cannot be written: {error.strerror or error}") from error
    return findings


def _findings(options: DoctorOptions) -> list[Finding]:
    files, known = _photos(options)
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_session(options.verbose))
        except AccessDenied as error:
            denied = Finding("authentication", State.WRONG, str(error))
            return unknown("not looked at: the cluster does not let this job in", [denied, *known])
        except InputError:  # not even an address
            raise
        except FlowersError as error:
            absent = Finding("nodes", State.WRONG, str(error))
            return unknown("not looked at: there is no cluster", [absent, *known])
        import ray

        from flowers.doctor.survey import survey

        place = ray.get_runtime_context().gcs_address if joined() else ""
        found = survey(place, bool(place) and guarded(place), options.storage, files, options.limit_s)
        wanted = Wanted(
            nodes=options.nodes,
            free=int(options.free_gb * 1e9),
            storage=options.storage,
            data=options.data if files else None,
            device=options.device,
            workers=options.workers,
            cpus_per_worker=options.cpus_per_worker,
            gpus_per_worker=options.gpus_per_worker,
            batch_size=options.batch_size,
        )
        return [*known, *judge(found, wanted), *_killed(options.storage)]


def _killed(uri: str) -> list[Finding]:
    """Runs that say they are running, and are not; where they cannot be read, the check of the storage says so."""
    with suppress(OSError, FlowersError):
        found = killed_runs(storage.absolute(uri))
        text = "was killed ({}) and its status.json still says running; the same command goes on"
        return [Finding("runs", State.ADVICE, f"{name} {text.format(who)}") for name, who in found.items()]
    return []


def _photos(options: DoctorOptions) -> tuple[list[str], list[Finding]]:
    """Some of the photos, or why there are none."""
    if options.data is None:
        return [], []
    chosen = {name: getattr(options, name) for name in ("data", "layout", "root", "class_names")}
    try:
        return some(list_source(DataOptions(**chosen), options.storage).table), []
    except FlowersError as error:
        return [], [Finding("data", State.WRONG, str(error))]
    except OSError as error:  # an archive or a named set is unpacked into the storage
        why = f"--data: {options.data} cannot be read or unpacked: {error.strerror or error}"
        return [], [Finding("data", State.WRONG, f"{why}; what --storage says below may be the reason")]
