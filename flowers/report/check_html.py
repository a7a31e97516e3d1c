"""The page on photos that were looked at: self-contained, as a run's report."""

from __future__ import annotations

from markupsafe import Markup

from flowers import storage
from flowers.report.check import DataCheck
from flowers.report.formatting import LARGE
from flowers.report.html import encodable, template
from flowers.report.parts import MOST_CLASSES, first_rows

# What each of these pages holds, and no other.
MARK = '<p class="kind">A look at the photos</p>'


def render_check(found: DataCheck) -> str:
    """What was found as one page."""
    classes = found.classes
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda row: row.usable)
    near = [found.near_duplicates] if found.near_duplicates else []
    page = template("check.html").render(
        c=found,
        mark=Markup(MARK),
        name=storage.name(found.source) or found.source,
        classes=first_rows((row.name, row) for row in classes),
        large=len(found.classes) > LARGE,
        largest=max((row.usable for row in found.classes), default=1) or 1,
        doubts=[*near, *found.doubts],
    )
    return encodable(page)
