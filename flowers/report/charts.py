"""The plots of a report: inline SVG that takes the colours and the font of the page around it."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from flowers.evaluation.calibration import Bin
from flowers.report.formatting import short
from flowers.report.record import Report

Points = list[tuple[int, float]]

_SVG_LOCK = threading.Lock()
# Stand-in colours: the page's own (light or dark) replace them in the finished SVG.
_INK, _FIRST, _SECOND, _GRID = "#010203", "#010204", "#010205", "#010206"
_MARKS = {"marker": "o", "markersize": 3}
_LEFT, _RIGHT = 0.12, 0.98  # sides of a plot, as shares of its width
_COLOURS = {_INK: "currentColor", _FIRST: "var(--c1)", _SECOND: "var(--c2)", _GRID: "var(--line)"}


@dataclass(frozen=True)
class Curve:
    """A plot, as inline SVG, and its caption."""

    svg: Markup
    caption: str


def curves(report: Report) -> list[Curve]:
    """Plots of losses and accuracies over epochs; the monitored metric is among them."""
    history = report.history
    losses = {
        "training loss": [(row.epoch, row.loss) for row in history],
        "validation log-loss": _known([(row.epoch, row.val_log_loss) for row in history]),
    }
    accuracies = {
        "accuracy": _known([(row.epoch, row.val_accuracy) for row in history]),
        "macro accuracy": _known([(row.epoch, row.val_macro_accuracy) for row in history]),
    }
    monitored = {"log_loss": "validation log-loss"}.get(report.monitor, report.monitor.replace("_", " "))
    found = []
    for caption, series in (("Loss by epoch", losses), ("Validation accuracy by epoch", accuracies)):
        if lines := {name: points for name, points in series.items() if points}:
            said = [f"{name} from {short(p[0][1])} to {short(p[-1][1])}" for name, p in lines.items()]
            ring = dict(lines.get(monitored, ())).get(report.best_epoch)
            if ring is not None:
                said.append(f"{monitored} {short(ring)} in the best epoch, {report.best_epoch}")
            svg = _svg(lines, ring, report.best_epoch, alt=f"{caption}: {', '.join(said)}.", salt=caption)
            found.append(Curve(svg, caption))
    return found


def _known(points: list[tuple[int, float | None]]) -> Points:
    return [(epoch, y) for epoch, y in points if y is not None]


def _svg(lines: dict[str, Points], ring: float | None, best: int, alt: str, salt: str) -> Markup:
    """Draw lines over epochs, with the best epoch, and a ring around its monitored metric if that is among them.

    Uses Figure directly: pyplot keeps global state and is not safe in threads.
    """
    figure, axes = _frame("epoch")
    axes.xaxis.set_major_locator(_whole(8))
    for (name, points), colour, dash in zip(lines.items(), (_FIRST, _SECOND), ("-", "--"), strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, dash, color=colour, linewidth=1.8, label=name, **_MARKS)
    axes.axvline(best, color=_INK, linewidth=0.8, linestyle=":", label=f"best, epoch {best}")
    if ring is not None:
        axes.plot([best], [ring], "o", color=_INK, markersize=8, fillstyle="none")
    return _drawn(figure, axes, alt, salt)


def reliability_curve(before: Sequence[Bin], after: Sequence[Bin] = ()) -> Curve:
    """Accuracy by score, of the scores as they are and with a temperature if there is one; photos by score below."""
    figure, axes = _frame("", height=3.6, bottom=0.34)
    below = _styled(figure.add_axes((_LEFT, 0.13, _RIGHT - _LEFT, 0.15), sharex=axes), "score")
    axes.tick_params(labelbottom=False)
    axes.plot([0, 1], [0, 1], ":", color=_INK, linewidth=0.9, label="as it should be")
    heights = _bars(before, "accuracy")
    axes.bar(*heights, color=_FIRST, alpha=0.5, label="accuracy")
    axes.plot(*heights[:2], "o", color=_FIRST, markersize=4)  # where a bar has no height
    if known := [(one.score, one.accuracy) for one in after if one.score is not None]:
        axes.plot(*zip(*known, strict=True), "--", color=_SECOND, linewidth=1.8, label="with temperature", **_MARKS)
    below.bar(*_bars(before, "n"), color=_INK, alpha=0.4)
    below.set_ylabel("photos", color=_INK, fontsize=10)
    below.yaxis.set_major_locator(_whole(2))
    below.tick_params(axis="x", pad=6)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    points = ", ".join(f"{short(one.score)}: {short(one.accuracy)}" for one in before if one.n)
    caption = "Accuracy by score"
    return Curve(_drawn(figure, axes, f"{caption}: {points}.", caption), caption)


def _bars(bins: Sequence[Bin], name: str) -> tuple[list[float], list[float], list[float]]:
    """Middles, heights and widths of the bars of bins that have photos."""
    known = [one for one in bins if one.n]
    heights = [float(getattr(one, name)) for one in known]
    return [(one.low + one.high) / 2 for one in known], heights, [0.9 * (one.high - one.low) for one in known]


def coverage_plot(curve: Sequence[tuple[float, float]]) -> Curve:
    """Accuracy over coverage, the surest photos first."""
    figure, axes = _frame("coverage")
    axes.plot(*zip(*curve, strict=True), "-", color=_FIRST, linewidth=1.8)
    axes.set(xlim=(0, 1.02))
    caption = "Accuracy where only the surest photos are answered"
    (x, first), (_, last) = curve[0], curve[-1]
    said = f"{short(first)} at a coverage of {short(x)}, {short(last)} of all"
    return Curve(_drawn(figure, axes, f"{caption}: {said}.", caption), caption)


def _frame(label: str, height: float = 2.8, bottom: float = 0.16) -> tuple[Any, Any]:
    """An empty plot in the colours of the page, with the name of its x-axis; `height` is in inches."""
    from matplotlib.figure import Figure  # slow to import, and only this needs it

    figure = Figure(figsize=(5.0, height))
    return figure, _styled(figure.add_axes((_LEFT, bottom, _RIGHT - _LEFT, 0.97 - bottom)), label)


def _styled(axes: Any, label: str) -> Any:
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, labelsize=10)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=_INK, fontsize=10)
    return axes


def _whole(most: int) -> Any:
    """Marks of an axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, integer=True)


def _drawn(figure: Any, axes: Any, alt: str, salt: str) -> Markup:
    import matplotlib

    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=10, labelcolor=_INK)
    out = io.StringIO()
    with _SVG_LOCK, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), alt)


def _inline(svg: str, alt: str) -> Markup:
    """A matplotlib SVG as part of a page: page colours and fonts, no ids of groups, no outside addresses."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = Markup('<svg role="img" aria-label="{}" {}>').format(alt, Markup(box.group() if box else ""))
    body = svg[svg.index(">") + 1 :]
    for stand_in, colour in _COLOURS.items():
        body = body.replace(stand_in, colour)
    # Drawn by matplotlib from numbers and fixed words only: nothing of the user's is in it.
    return head + Markup(body)
