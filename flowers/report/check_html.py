"""The page on photos that were looked at: self-contained, as a run's report."""

from __future__ import annotations

from flowers.report.check import DataCheck
from flowers.report.formatting import LARGE
from flowers.report.html import template


def render_check(found: DataCheck) -> str:
    """What was found as one page."""
    near = [found.near_duplicates] if found.near_duplicates else []
    page = template("check.html").render(
        c=found,
        large=len(found.classes) > LARGE,
        largest=max((row.usable for row in found.classes), default=1) or 1,
        findings=[*near, *found.doubts],
    )
    return page.encode("utf-8", "replace").decode()
