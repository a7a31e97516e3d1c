"""The default data set: pictures of five kinds of flowers, drawn here, so a first run needs no network.

The classes share their colours and backgrounds; what tells them apart is shape and texture. The mean
colour of a picture is therefore a poor clue, while even untrained convolutions see the difference.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flowers.errors import InputError

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
VERSION = 1  # raise it whenever the pictures change: old folders are then redrawn
Array = NDArray[np.float64]
Ink = tuple[int, int, int]
# Petal colours as (red, green, blue), and how often each class wears them: every class wears all.
_PETALS = ((245, 240, 232), (250, 208, 50), (240, 150, 60), (222, 60, 62), (232, 130, 165), (200, 120, 210))
_WEARS = {
    "daisy": (0.69, 0.12, 0.03, 0.03, 0.09, 0.04),
    "dandelion": (0.14, 0.65, 0.15, 0.02, 0.02, 0.02),
    "roses": (0.12, 0.06, 0.06, 0.44, 0.27, 0.05),
    "sunflowers": (0.03, 0.57, 0.28, 0.08, 0.02, 0.02),
    "tulips": (0.12, 0.12, 0.09, 0.25, 0.18, 0.24),
}
# Sky, grass, soil, wall, leaves, spots of light: colour, patches across, things drawn on it, their size in px.
_GROUNDS = (
    ((80, 112, 150), 3, 0, 0), ((72, 115, 52), 12, 160, 1), ((108, 84, 60), 40, 120, 1),
    ((112, 106, 98), 4, 15, 0), ((62, 98, 52), 8, 60, 7), ((70, 85, 75), 6, 25, 9),
)  # fmt: skip


def draw_sample(folder: str | os.PathLike[str], *, per_class: int = 40, seed: int = 0) -> None:
    """Draws ``<folder>/<class>/<class>-000.jpg`` and so on, unless the same drawing is there already.

    The pictures are 200 to 380 px wide and high. Photo i of a class is the same whatever `per_class`
    is. What was drawn is noted in ``<folder>.json``; without this note a drawing counts as interrupted.

    Args:
        folder: where to draw; an earlier drawing in it is replaced.
        per_class: the number of photos of each class, 1 to 999.
        seed: 0 or more; another seed gives other pictures.

    Raises:
        InputError: an argument is out of range, or the folder holds files that were not drawn here.
    """
    if not (1 <= per_class <= 999 and seed >= 0):
        raise InputError(f"per_class={per_class}, seed={seed}: 1..999 and 0 or more are required; change them")
    path = Path(folder)
    wanted = {Path(name, f"{name}-{index:03d}.jpg") for name in CLASSES for index in range(per_class)}
    found = {file.relative_to(path) for file in path.rglob("[!.]*") if not file.is_dir()}
    note, text = Path(f"{path}.json"), json.dumps({"version": VERSION, "per_class": per_class, "seed": seed})
    if found == wanted and note.is_file() and note.read_text("utf-8") == text:
        return
    if foreign := [file for file in found if not re.fullmatch(r"(\w+)/\1-\d{3}\.jpg", file.as_posix())]:
        raise InputError(f"{path} holds {foreign[0]}, which was not drawn here: a new folder is required; name one")
    work = Path(f"{path}.{secrets.token_hex(4)}.partial")
    try:
        for file in sorted(wanted):
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            picture, quality = _picture(seed, file.parts[0], int(file.stem[-3:]))
            picture.save(work / file, "JPEG", quality=quality)
        # The note goes first and comes last: a stop in between leaves a folder that is drawn anew.
        note.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(work, path)
        note.write_text(text, "utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Brush:
    """Draws the parts of one flower after another; lengths are in radii of the flower, angles in radians."""

    def __init__(self, picture: Image.Image, rng: np.random.Generator, colour: Array) -> None:
        self.draw, self.rng = ImageDraw.Draw(picture), rng
        self.colour = colour  # of the petals; shape (3,), red, green, blue in 0..255
        self.x = self.y = self.radius = self.turn = 0.0  # px, px, px, radians
        self.tilt = 1.0  # 1: seen from above; less: seen from the side

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def tone(self, factor: float, colour: Array | tuple[int, int, int] | None = None) -> Ink:
        """The colour made darker (< 1) or lighter (> 1), with a little chance."""
        mixed = np.asarray(self.colour if colour is None else colour) * factor + self.rng.normal(0, 5, 3)
        red, green, blue = np.clip(mixed, 0, 255).astype(int).tolist()
        return red, green, blue

    def place(self, along: Array, across: Array, angle: float = 0.0) -> list[float]:
        """Points, two arrays (n,), turned by `angle`, as x0, y0, x1, y1, ... in px."""
        px = along * math.cos(angle) - across * math.sin(angle)
        py = (along * math.sin(angle) + across * math.cos(angle)) * self.tilt
        cos, sin = math.cos(self.turn) * self.radius, math.sin(self.turn) * self.radius
        return np.stack([self.x + px * cos - py * sin, self.y + px * sin + py * cos], 1).ravel().tolist()

    def petal(self, angle: float, start: float, end: float, wide: float, tip: float, fill: Ink, edge: Ink) -> None:
        """One petal; `tip` > 1 makes it blunt."""
        t = np.linspace(0, 1, 9)
        half = wide / 2 * np.clip(np.sin(np.pi * t**tip), 0, 1) ** 0.8
        along = start + (end - start) * t
        shape = self.place(np.concatenate([along, along[::-1]]), np.concatenate([half, -half[::-1]]), angle)
        self.draw.polygon(shape, fill=fill, outline=edge)

    def line(self, angle: float, start: tuple[float, float], end: tuple[float, float], fill: Ink) -> None:
        along, across = np.array([start, end]).T
        self.draw.line(self.place(along, across, angle), fill=fill, width=1)

    def disc(self, size: float, fill: Ink) -> None:
        t = np.linspace(0, 2 * np.pi, 24)
        self.draw.polygon(self.place(size * np.cos(t), size * np.sin(t)), fill=fill)

    def stem(self, length: float) -> None:
        lean, green = self.between(-0.2, 0.2) * length, self.tone(self.between(0.7, 1.2), (78, 128, 58))
        points = (self.x, self.y, self.x + lean * 0.3, self.y + length * 0.5, self.x + lean, self.y + length)
        self.draw.line(points, fill=green, width=max(2, round(self.radius * 0.12)), joint="curve")


def _daisy(brush: _Brush) -> None:
    """One ring of slim, parted, furrowed petals around a smooth disc."""
    count, edge = int(brush.rng.integers(12, 18)), brush.tone(0.6)
    for k in range(count):
        angle, end = 2 * math.pi * k / count + brush.between(-0.07, 0.07), brush.between(0.88, 1.04)
        brush.petal(angle, 0.12, end, 3.6 / count, 1.6, brush.tone(brush.between(0.9, 1.08)), edge)
        brush.line(angle, (0.35, 0), (0.85, 0), edge)
    light, size = brush.between(0.8, 1.05), brush.between(0.3, 0.38)
    brush.disc(size, brush.tone(light * 0.75, (235, 170, 30)))
    brush.disc(size * 0.8, brush.tone(light, (235, 170, 30)))


def _dandelion(brush: _Brush) -> None:
    """Very many thin rays without a disc, or a ball of seeds on threads."""
    if brush.rng.random() < 0.2:
        brush.disc(0.12, brush.tone(1.0, (120, 105, 70)))
        for _ in range(int(brush.rng.integers(110, 140))):
            angle, end = brush.between(0, 2 * math.pi), math.sqrt(brush.between(0.2, 1.0))
            shade = brush.tone(brush.between(0.7, 1.05), brush.colour * 0.3 + 165)  # paler than the petals were
            brush.line(angle, (0, 0), (end, 0), shade)
            for spread in (-0.9, -0.3, 0.3, 0.9):
                brush.line(angle, (end, 0), (end + 0.2 * math.cos(spread), 0.2 * math.sin(spread)), shade)
        return
    for ring, count in ((1.0, 50), (0.76, 42), (0.52, 30), (0.28, 16)):
        for k in range(count):
            angle, end = 2 * math.pi * k / count + brush.between(-0.1, 0.1), ring * brush.between(0.85, 1.05)
            brush.petal(angle, 0, end, 0.075, 1.8, brush.tone(brush.between(0.55, 1.1)), brush.tone(0.4))


def _rose(brush: _Brush) -> None:
    """Broad round petals in each other, ring within ring, to a spiral in the middle."""
    rings, turn = int(brush.rng.integers(7, 10)), brush.between(0, 2 * math.pi)
    for ring in range(rings):
        reach, count = 1 - ring / (rings + 0.6), (6, 5, 5, 3)[min(ring, 3)]
        for k in range(count):
            angle = turn + ring * 0.6 + 2 * math.pi * k / count + brush.between(-0.15, 0.15)
            fill, end = brush.tone(brush.between(0.8, 1.1) * (1 - 0.4 * ring / rings)), brush.between(0.92, 1.05)
            brush.petal(angle, -0.1 * reach, end * reach, 1.3 * reach, 1.9, fill, brush.tone(0.4))
    t = np.linspace(0, 1, 30)
    spiral = brush.place(0.3 * t * np.cos(5 * np.pi * t), 0.3 * t * np.sin(5 * np.pi * t), turn)
    brush.draw.line(spiral, fill=brush.tone(0.5), width=2)


def _sunflower(brush: _Brush) -> None:
    """Two rings of pointed petals around a large dark disc of seeds in the golden spiral."""
    count, edge = int(brush.rng.integers(18, 27)), brush.tone(0.68)
    for ring, dark in ((1.0, 0.82), (0.88, 1.0)):
        for k in range(count):
            angle = 2 * math.pi * (k + ring * 4) / count + brush.between(-0.08, 0.08)
            fill, end = brush.tone(dark * brush.between(0.88, 1.08)), ring * brush.between(0.9, 1.06)
            brush.petal(angle, 0.3, end, 5.2 / count, 0.8, fill, edge)
    light, size = brush.between(0.6, 1.1), brush.between(0.46, 0.56)
    brush.disc(size, brush.tone(light * 0.8, (105, 72, 40)))
    seed, dot, fill = np.arange(110), max(0.7, brush.radius * size * 0.045), brush.tone(light * 1.9, (105, 72, 40))
    r, a = size * 0.95 * np.sqrt((seed + 0.5) / 110), seed * 2.399963
    for x, y in np.reshape(brush.place(r * np.cos(a), r * np.sin(a)), (-1, 2)).tolist():
        brush.draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=fill)


def _tulip(brush: _Brush) -> None:
    """A cup of a few tall petals seen from the side, with blade-shaped leaves."""
    brush.tilt, brush.turn, light = 1.0, brush.between(-0.35, 0.35), brush.between(0.7, 1.2)
    brush.y += 2.4 * brush.radius
    for side in (-1, 1):
        angle, end = side * brush.between(0.2, 0.6) - math.pi / 2, brush.between(1.2, 2.0)
        brush.petal(angle, 0, end, 0.4, 1, brush.tone(light, (85, 135, 70)), brush.tone(light, (60, 95, 49)))
    brush.y, edge = brush.y - 1.6 * brush.radius, brush.tone(0.78)
    for lean, wide, light in ((-0.2, 0.8, 0.72), (0.2, 0.8, 0.76), (-0.36, 0.85, 0.95), (0.36, 0.85, 0.9), (0, 0.9, 1)):
        angle, end = lean * brush.between(0.8, 1.2) - math.pi / 2, brush.between(1.5, 1.8)
        brush.petal(angle, 0, end, wide, 0.85, brush.tone(light), edge)


_PAINTERS = dict(zip(CLASSES, (_daisy, _dandelion, _rose, _sunflower, _tulip), strict=True))


def _clouds(rng: np.random.Generator, width: int, height: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise, float32 (height, width) in 0..1, about `cells` patches across."""
    small = Image.fromarray(rng.integers(0, 256, (cells + 1, cells + 1), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One of `_GROUNDS`, the same choice for every class."""
    colour, cells, things, size = _GROUNDS[kind := int(rng.integers(6))]
    base = np.array(colour, np.float32) * rng.uniform(0.85, 1.1) + rng.normal(0, 6, 3).astype(np.float32)
    pixels = base * (0.85 + 0.3 * _clouds(rng, width, height, cells)[..., None])
    draw = ImageDraw.Draw(picture := Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    for k in range(things):
        x, y, reach = rng.uniform(0, width), rng.uniform(0, height), size * rng.uniform(0.4, 1.6)
        red, green, blue = np.clip(base * rng.uniform(0.6, 1.5), 0, 255).astype(int).tolist()
        if kind == 1:  # blades
            draw.line((x, y, x + rng.uniform(-8, 8), y - 18 * reach), fill=(red, green, blue))
        elif kind == 3:  # joints
            draw.line((0, 13 * k, width, 13 * k), fill=(red, green, blue))
        else:
            draw.ellipse((x - reach, y - reach, x + reach, y + reach * 0.7), fill=(red, green, blue))
    # The lens is on the flower: what lies behind is more or less out of focus.
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.5, 3.5))))


def _picture(seed: int, name: str, index: int) -> tuple[Image.Image, int]:
    """Photo `index` of class `name` and its JPEG quality; depends on nothing but the arguments."""
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    width, height = (int(v) for v in rng.integers(200, 381, 2))
    picture = _background(rng, width // 2, height // 2).resize((width, height), Image.Resampling.BICUBIC)
    colour = np.array(_PETALS[rng.choice(len(_PETALS), p=_WEARS[name])]) + rng.normal(0, 12, 3)
    brush, count, flowers = _Brush(picture, rng, colour), int(rng.choice([1, 1, 1, 2])), []
    for _ in range(count):
        brush.radius = math.sqrt(width * height) * brush.between(0.42, 0.52) / count**0.35
        brush.x, brush.y = width * brush.between(0.37, 0.63), height * brush.between(0.38, 0.62)
        flowers.append((brush.x, brush.y, brush.radius))
        if name == "tulips" or rng.random() < 0.6:
            brush.stem(height)
    for brush.x, brush.y, brush.radius in flowers:
        brush.tilt, brush.turn = brush.between(0.72, 1.0), brush.between(-math.pi, math.pi)
        _PAINTERS[name](brush)
    picture = picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 0.5))))
    pixels = np.array(picture, np.float32)
    pixels *= 0.85 + 0.3 * _clouds(rng, width, height, 1)[..., None] + rng.uniform(-0.06, 0.06)
    pixels *= rng.uniform(0.97, 1.03, 3).astype(np.float32)
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0.5, 1.8)
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)), int(rng.integers(70, 96))
