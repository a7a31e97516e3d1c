"""The files of a report in the run's folder."""

from __future__ import annotations

from flowers import storage
from flowers.errors import DamagedFile
from flowers.report.html import render_html
from flowers.report.record import Report
from flowers.runs import REPORT

PAGE = "report.html"


def write_report(uri: str, report: Report) -> None:
    """Writes report.html and, last, report.json, which marks the run as finished."""
    storage.write(storage.join(uri, PAGE), render_html(report).encode())
    storage.write(storage.join(uri, REPORT), report.to_json().encode())


def read_report(uri: str) -> Report:
    """The report of a finished run.

    Raises:
        DamagedFile: report.json is no report.
    """
    try:
        return Report.from_json(storage.read(storage.join(uri, REPORT)))
    except DamagedFile as error:
        raise DamagedFile(f"{uri}/{REPORT} is damaged ({error}); --fresh starts over") from error
