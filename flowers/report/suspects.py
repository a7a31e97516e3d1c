"""The record of suspects: what their text, their page and suspects.csv say."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowers.data.corrections import COLUMNS, cells_of
from flowers.report.formatting import count, number, percent
from flowers.report.html import template
from flowers.text import plain, several, spreadsheet_safe

# Suspects that the terminal names, and cards of the page: more of them make it slow.
_NAMED, CARDS = 8, 300


@dataclass(frozen=True)
class Picture:
    """A photo on the page: its path below the source, and a thumbnail as a data URI, "" where there is none."""

    path: str
    thumbnail: str


@dataclass(frozen=True)
class Suspect:
    """A photo, and what was decided of it.

    Attributes:
        path: of its file.
        sha256: of its bytes, in hexadecimal digits.
        subset: that it is in.
        label: what the data says.
        now: its label in the run: another one if it was relabelled.
        suggested: the likeliest class by the other photos; None for one that is listed for an earlier decision alone.
        score: probability of `now`.
        suggested_score: probability of `suggested`.
        action: keep, relabel or drop; "" if nobody looked.
        new_label: to relabel it.
        picture: of it; None where it gets no card.
        like_now: nearest photos with its label.
        like_suggested: nearest photos of the suggested class.
    """

    path: str
    sha256: str
    subset: str
    label: str
    now: str
    suggested: str | None = None
    score: float | None = None
    suggested_score: float | None = None
    action: str = ""
    new_label: str = ""
    picture: Picture | None = None
    like_now: list[Picture] = field(default_factory=list)
    like_suggested: list[Picture] = field(default_factory=list)

    @property
    def row(self) -> tuple[str | float | None, ...]:
        """Its line of suspects.csv."""
        return tuple(getattr(self, name) for name in COLUMNS)


@dataclass(frozen=True)
class SuspectsFound:
    """What was found.

    Attributes:
        run: its name.
        source: where its photos were listed.
        classes: names of the classes.
        photos: in use.
        judged: of these, those of which anything can be said.
        estimated: wrong labels among them.
        agreement: share of them to whose label the others give the highest probability.
        suspects: the likeliest to be wrong first.
        earlier: photos that are no suspects now, with decisions that go on to hold.
        warnings: what one should know.
    """

    run: str
    source: str
    classes: Sequence[str]
    photos: int
    judged: int
    estimated: int
    agreement: float
    suspects: list[Suspect]
    earlier: list[Suspect]
    warnings: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Suspect]:
        """Lines of suspects.csv, in their order."""
        return [*self.suspects, *self.earlier]


@dataclass(frozen=True)
class _Script:
    """The page's own script, and the hash by which its policy lets it run."""

    text: Markup
    sha256: str


def render_suspects(found: SuspectsFound) -> str:
    """The suspects as one page, which makes a suspects.csv of what is decided on it."""
    text = (Path(__file__).parent / "templates" / "suspects.js").read_text("utf-8")
    script = _Script(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
    cards = [one for one in found.suspects if one.picture is not None]
    page = template("suspects.html").render(
        s=found, title=f"Suspects of {found.run}", cards=cards, data=_data(found), script=script
    )
    return page.encode("utf-8", "replace").decode()


def _data(found: SuspectsFound) -> dict[str, Any]:
    """What the script writes suspects.csv from: all cells as they stand there, so that it needs no rules for them."""
    rows = [cells_of(one.row) for one in found.rows]
    labels = list(dict.fromkeys([*found.classes, *(one.new_label for one in found.rows)]))
    return {
        "head": _line(COLUMNS),
        "lines": [_line(cells[:-2]) for cells in rows],
        "decisions": [[one.action, one.new_label] for one in found.rows],
        "classes": list(found.classes),
        "labels": labels,
        "cells": [_line([spreadsheet_safe(label)]) for label in labels],
        "key": hashlib.sha256("".join(map(_line, rows)).encode("utf-8", "replace")).hexdigest(),
    }


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="").writerow(list(cells))
    return text.getvalue()


def render_suspects_text(found: SuspectsFound) -> Group:
    """What was found, for the terminal."""
    parts: list[Table | Text] = []
    if found.suspects:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("label", "suggested", "score of the label", "photo"):
            table.add_column(title, justify="right" if title.startswith("score") else "left")
        for one in found.suspects[:_NAMED]:
            path = one.picture.path if one.picture else one.path
            table.add_row(*map(Text, (plain(one.now), plain(one.suggested or ""), number(one.score, 3), plain(path))))
        parts.append(table)
        if len(found.suspects) > _NAMED:
            parts.append(Text(f"and {count(len(found.suspects) - _NAMED)} more"))
    share = percent(found.estimated / found.judged if found.judged else None)
    lines = [
        f"{several(len(found.suspects), 'suspect')} of {several(found.judged, 'photo')}; about "
        f"{several(found.estimated, 'wrong label')} ({share}), {percent(found.agreement)} of labels are what others say"
    ]
    if found.earlier:
        lines.append(f"{several(len(found.earlier), 'photo')} with earlier decisions below them")
    parts += map(Text, lines)
    parts += [Text(f"warning: {plain(text)}", style="bold") for text in found.warnings]
    return Group(*parts)
