"""The files of a report in the run's folder."""

from __future__ import annotations

from flowers import storage
from flowers.errors import DamagedFile, InputError
from flowers.report.html import render_html
from flowers.report.record import Report
from flowers.runs import Run


def write_report(run: Run, report: Report) -> None:
    """Writes report.html and, last, report.json, which marks the run as finished."""
    storage.write(run.page, render_html(report).encode())
    storage.write(run.report, report.to_json().encode())


def read_report(run: Run) -> Report:
    """The report of a finished run.

    Raises:
        InputError: there is none.
        DamagedFile: report.json is no report.
    """
    try:
        return Report.from_json(storage.read(run.report))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no finished run at {run.uri!r}: {storage.name(run.report)} is missing") from error
    except DamagedFile as error:
        raise DamagedFile(f"{run.report} is damaged ({error})") from error
