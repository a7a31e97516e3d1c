"""The page on photos that were looked at: self-contained, as a run's report."""

from __future__ import annotations

from flowers import storage
from flowers.report.check import DataCheck
from flowers.report.formatting import LARGE
from flowers.report.html import encodable, template


def render_check(found: DataCheck) -> str:
    """What was found as one page."""
    near = [found.near_duplicates] if found.near_duplicates else []
    page = template("check.html").render(
        c=found,
        name=storage.name(found.source) or found.source,
        large=len(found.classes) > LARGE,
        largest=max((row.usable for row in found.classes), default=1) or 1,
        doubts=[*near, *found.doubts],
    )
    return encodable(page)
