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
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flowers.errors import InputError

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
# Part of the marker: raise it whenever the pictures change, so that old folders are redrawn.
VERSION = 1

Array = NDArray[np.float32]
Colour = NDArray[np.float64]  # shape (3,), red, green, blue in 0..255
Painter = Callable[["_Brush", float, float, float, Colour], None]

# Petal colours as (red, green, blue), and how often each class wears them: every class wears all.
_PETALS = ((245, 240, 232), (250, 208, 50), (240, 150, 60), (222, 60, 62), (232, 130, 165), (200, 120, 210))
_WEARS = {
    "daisy": (0.66, 0.12, 0.02, 0.02, 0.14, 0.04),
    "dandelion": (0.22, 0.64, 0.11, 0.01, 0.01, 0.01),
    "roses": (0.12, 0.06, 0.06, 0.44, 0.28, 0.04),
    "sunflowers": (0.02, 0.60, 0.28, 0.08, 0.01, 0.01),
    "tulips": (0.12, 0.12, 0.08, 0.26, 0.18, 0.24),
}


class _Brush:
    """Draws flower parts on one picture with one random generator."""

    def __init__(self, picture: Image.Image, rng: np.random.Generator) -> None:
        self.rng = rng
        self.draw = ImageDraw.Draw(picture)
        self.turn = 0.0  # radians, the rotation of the flower
        self.tilt = 1.0  # 1: seen from above; less: seen from the side

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def tone(self, colour: Colour, factor: float) -> tuple[int, int, int]:
        """The colour made darker (< 1) or lighter (> 1), with a little chance."""
        red, green, blue = np.clip(colour * factor + self.rng.normal(0, 5, 3), 0, 255).astype(int).tolist()
        return red, green, blue

    def place(self, x: float, y: float, along: Array, across: Array, angle: float) -> list[float]:
        """Points (n,) and (n,) in pixels, turned by `angle` and tilted, as x0, y0, x1, y1, ... ."""
        px = along * math.cos(angle) - across * math.sin(angle)
        py = (along * math.sin(angle) + across * math.cos(angle)) * self.tilt
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.stack([x + px * cos - py * sin, y + px * sin + py * cos], 1).ravel().tolist()

    def petal(
        self, x: float, y: float, angle: float, span: tuple[float, float], wide: float, tip: float,
        fill: tuple[int, int, int], edge: tuple[int, int, int],
    ) -> None:  # fmt: skip
        """One petal from radius `span[0]` to `span[1]` px, `wide` px broad; `tip` > 1 makes it blunt."""
        t = np.linspace(0, 1, 9, dtype=np.float32)
        half = wide / 2 * np.clip(np.sin(np.pi * t**tip), 0, 1) ** 0.8
        along = span[0] + (span[1] - span[0]) * t
        shape = self.place(x, y, np.concatenate([along, along[::-1]]), np.concatenate([half, -half[::-1]]), angle)
        self.draw.polygon(shape, fill=fill, outline=edge)

    def disc(self, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        t = np.linspace(0, 2 * np.pi, 24, dtype=np.float32)
        self.draw.polygon(self.place(x, y, radius * np.cos(t), radius * np.sin(t), 0.0), fill=fill)

    def dots(self, x: float, y: float, radius: float, count: int, size: float, fill: tuple[int, int, int]) -> None:
        """Seeds in the golden spiral."""
        k = np.arange(count, dtype=np.float32)
        r, a = radius * np.sqrt((k + 0.5) / count), k * 2.399963
        points = self.place(x, y, r * np.cos(a), r * np.sin(a), 0.0)
        for px, py in zip(points[::2], points[1::2], strict=True):
            self.draw.ellipse((px - size, py - size, px + size, py + size), fill=fill)

    def stem(self, x: float, y: float, length: float, wide: float) -> None:
        lean = self.between(-0.2, 0.2) * length
        green = self.tone(np.array([78.0, 128.0, 58.0]), self.between(0.7, 1.2))
        points = [(x, y), (x + lean * 0.3, y + length * 0.5), (x + lean, y + length)]
        self.draw.line(points, fill=green, width=max(2, round(wide)), joint="curve")


def _daisy(brush: _Brush, x: float, y: float, radius: float, colour: Colour) -> None:
    """One ring of slim, parted petals around a small smooth disc."""
    count = int(brush.rng.integers(12, 20))
    edge = brush.tone(colour, 0.6)
    for k in range(count):
        angle = 2 * math.pi * k / count + brush.between(-0.07, 0.07)
        span = (radius * 0.12, radius * brush.between(0.88, 1.04))
        wide = radius * 3.7 / count
        brush.petal(x, y, angle, span, wide, 1.6, brush.tone(colour, brush.between(0.88, 1.05)), edge)
    heart = np.array([235.0, 180.0, 40.0]) * brush.between(0.6, 1.05)
    size = radius * brush.between(0.2, 0.3)
    brush.disc(x, y, size, brush.tone(heart, 0.75))
    brush.disc(x - size * 0.1, y - size * 0.1, size * 0.8, brush.tone(heart, 1.0))


def _dandelion(brush: _Brush, x: float, y: float, radius: float, colour: Colour) -> None:
    """Very many thin rays without a disc, or a ball of seeds on threads."""
    if brush.rng.random() < 0.3:
        brush.disc(x, y, radius * 0.12, brush.tone(np.array([120.0, 105.0, 70.0]), 1.0))
        for _ in range(int(brush.rng.integers(60, 100))):
            angle, reach = brush.between(0, 2 * math.pi), radius * math.sqrt(brush.between(0.2, 1.0))
            shade = brush.tone(colour, brush.between(0.7, 1.05))
            far = np.array([0.0, reach], np.float32)
            brush.draw.line(brush.place(x, y, far, far * 0, angle), fill=shade, width=1)
            for spread in (-0.9, -0.3, 0.3, 0.9):
                tuft = np.array([0.0, radius * 0.2], np.float32)
                ends = brush.place(x, y, reach + tuft * math.cos(spread), tuft * math.sin(spread), angle)
                brush.draw.line(ends, fill=shade, width=1)
        return
    for ring, count in ((1.0, 44), (0.74, 36), (0.5, 26), (0.26, 14)):
        for k in range(count):
            angle = 2 * math.pi * k / count + brush.between(-0.1, 0.1)
            span = (0.0, radius * ring * brush.between(0.85, 1.05))
            shade = brush.tone(colour, brush.between(0.62, 1.1))
            brush.petal(x, y, angle, span, radius * 0.09, 1.8, shade, brush.tone(colour, 0.5))


def _rose(brush: _Brush, x: float, y: float, radius: float, colour: Colour) -> None:
    """Broad round petals in each other, ring within ring, to a spiral in the middle."""
    rings = int(brush.rng.integers(7, 10))
    start = brush.between(0, 2 * math.pi)
    for ring in range(rings):
        reach = radius * (1 - ring / (rings + 0.6))
        count = 6 if ring == 0 else 5 if ring < 3 else 3
        for k in range(count):
            angle = start + ring * 0.6 + 2 * math.pi * k / count + brush.between(-0.15, 0.15)
            shade = brush.between(0.8, 1.1) * (1 - 0.4 * ring / rings)
            span = (-reach * 0.1, reach * brush.between(0.92, 1.05))
            brush.petal(x, y, angle, span, reach * 1.3, 1.9, brush.tone(colour, shade), brush.tone(colour, 0.4))
    t = np.linspace(0, 5 * np.pi, 30, dtype=np.float32)
    r = radius * 0.3 * t / t[-1]
    brush.draw.line(brush.place(x, y, r * np.cos(t), r * np.sin(t), start), fill=brush.tone(colour, 0.5), width=2)


def _sunflower(brush: _Brush, x: float, y: float, radius: float, colour: Colour) -> None:
    """Two rings of pointed petals around a large disc full of seeds."""
    count = int(brush.rng.integers(18, 27))
    edge = brush.tone(colour, 0.68)
    for ring, dark in ((1.0, 0.82), (0.88, 1.0)):
        for k in range(count):
            angle = 2 * math.pi * (k + ring * 4) / count + brush.between(-0.08, 0.08)
            span = (radius * 0.3, radius * ring * brush.between(0.9, 1.06))
            fill = brush.tone(colour, dark * brush.between(0.88, 1.08))
            brush.petal(x, y, angle, span, radius * 5.2 / count, 0.8, fill, edge)
    size = radius * brush.between(0.4, 0.54)
    heart = np.array([105.0, 72.0, 40.0]) * brush.between(0.6, 1.1)
    brush.disc(x, y, size, brush.tone(heart, 0.8))
    brush.dots(x, y, size * 0.95, 90, max(0.7, size * 0.05), brush.tone(heart, 1.5))


def _tulip(brush: _Brush, x: float, y: float, radius: float, colour: Colour) -> None:
    """A cup of a few tall petals seen from the side, with blade-shaped leaves."""
    brush.tilt, brush.turn = 1.0, brush.between(-0.35, 0.35)
    green = np.array([85.0, 135.0, 70.0]) * brush.between(0.7, 1.2)
    for side in (-1, 1):
        lean = -math.pi / 2 + side * brush.between(0.2, 0.6)
        reach = radius * brush.between(1.2, 2.0)
        brush.petal(
            x, y + radius * 2.4, lean, (0, reach), radius * 0.4, 1.0, brush.tone(green, 1), brush.tone(green, 0.7)
        )
    y, edge = y + radius * 0.8, brush.tone(colour, 0.78)
    for lean, wide, shade in (
        (-0.2, 0.8, 0.72),
        (0.2, 0.8, 0.76),
        (-0.36, 0.85, 0.95),
        (0.36, 0.85, 0.9),
        (0, 0.9, 1.03),
    ):
        angle = -math.pi / 2 + lean * brush.between(0.8, 1.2)
        span = (0.0, radius * brush.between(1.5, 1.8))
        brush.petal(x, y, angle, span, radius * wide, 0.85, brush.tone(colour, shade), edge)


_PAINTERS: dict[str, Painter] = dict(zip(CLASSES, (_daisy, _dandelion, _rose, _sunflower, _tulip), strict=True))


def _clouds(rng: np.random.Generator, width: int, height: int, cells: int) -> Array:
    """Smooth noise, float32 (height, width) in 0..1, about `cells` patches across."""
    small = Image.fromarray(rng.integers(0, 256, (cells + 1, cells + 1), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Sky, grass, soil, a wall, blurred leaves or spots of light; the same choice for every class."""
    kind = int(rng.integers(6))
    base = np.array(
        [(92, 128, 172), (72, 115, 52), (108, 84, 60), (128, 120, 110), (62, 98, 52), (70, 85, 75)][kind], np.float32
    ) * rng.uniform(0.8, 1.15) + rng.normal(0, 6, 3)
    patches = _clouds(rng, width, height, (3, 12, 40, 4, 8, 6)[kind])[..., None]
    pixels = base * (0.85 + 0.3 * patches)
    if kind == 0:
        pixels = pixels + np.linspace(-25, 25, height, dtype=np.float32)[:, None, None]
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range((0, 160, 120, 0, 60, 25)[kind]):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.4, 1.6)
        red, green, blue = np.clip(base * rng.uniform(0.6, 1.5), 0, 255).astype(int).tolist()
        if kind == 1:
            end = (x + rng.uniform(-8, 8), y - rng.uniform(8, 30))
            draw.line([(x, y), end], fill=(red, green, blue), width=int(rng.integers(1, 3)))
        else:
            size *= (0, 0, 1, 0, 7, 9)[kind]
            draw.ellipse((x - size, y - size, x + size, y + size * 0.7), fill=(red, green, blue))
    if kind == 3:
        for row in range(0, height, 13):
            draw.line([(0, row), (width, row)], fill=tuple(int(v) for v in np.clip(base * 0.8, 0, 255)))
    # The lens is on the flower: what lies behind is more or less out of focus.
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.5, 3.5))))


def _picture(seed: int, name: str, index: int) -> tuple[Image.Image, int]:
    """Photo `index` of class `name` and its JPEG quality; depends on nothing but the arguments."""
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    width, height = (int(v) for v in rng.integers(180, 401, 2))
    picture = _background(rng, width // 2, height // 2).resize((width, height), Image.Resampling.BICUBIC)
    brush = _Brush(picture, rng)
    count = int(rng.choice([1, 1, 2, 3]))
    colour = np.array(_PETALS[rng.choice(len(_PETALS), p=_WEARS[name])]) + rng.normal(0, 12, 3)
    places = []
    for _ in range(count):
        radius = math.sqrt(width * height) * rng.uniform(0.40, 0.50) / count**0.35
        x, y = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
        places.append((x, y, radius))
        if name == "tulips" or rng.random() < 0.6:
            brush.stem(x, y, height, radius * 0.12)
    for x, y, radius in places:
        brush.tilt, brush.turn = brush.between(0.65, 1.0), brush.between(-math.pi, math.pi)
        _PAINTERS[name](brush, x, y, radius, colour)
    picture = picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 0.5))))
    light = 0.85 + 0.3 * _clouds(rng, width, height, 1)[..., None] + rng.uniform(-0.06, 0.06)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0.5, 2)
    pixels = np.asarray(picture, np.float32) * light * rng.uniform(0.96, 1.04, 3).astype(np.float32) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), int(rng.integers(70, 96))
