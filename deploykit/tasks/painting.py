"""Results drawn on images: boxes, names, masks and points, in a colour per class."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploykit.tasks import masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.preprocess import Pixels
    from deploykit.tasks.detections import Detections

Colour: TypeAlias = tuple[int, int, int]

_GOLDEN = 0.61803398875
"""Steps of this share of the colour circle never come close to each other."""
_MIXED = 0.5
"""Share of the colour where a mask lies on the image."""
_LINE = 200
"""Pixels of the image's shorter side per pixel of line width."""
_TEXT = 30
"""The same per pixel of text height, and its least height."""
_LEAST_TEXT = 11
LEAST_SCORE = 0.3
"""Objects below it are not drawn: hundreds of guesses would cover the image."""


def colour(number: int) -> Colour:
    """Return the colour of class `number`, a strong one."""
    red, green, blue = colorsys.hsv_to_rgb((number * _GOLDEN) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def objects(
    image: Pixels, found: Detections, classes: Sequence[str], *, least: float = LEAST_SCORE
) -> Pixels:
    """Return the image with every object whose score is at least `least`: the best one on top."""
    pixels = _tinted(image, found, least)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    width = max(1, round(side / _LINE))
    font = ImageFont.load_default(max(_LEAST_TEXT, side // _TEXT))
    for i in _shown(found, least):
        number, box = int(found.classes[i]), found.boxes[i].tolist()
        draw.rectangle(box, outline=colour(number), width=width)
        label = f"{_name(classes, number)} {found.scores[i]:.2f}"
        _label(draw, box, label, colour(number), font)
        if found.keypoints is not None:
            _points(draw, found.keypoints[i, :, :2].tolist(), colour(number), 2 * width)
    return np.asarray(picture)


def _shown(found: Detections, least: float) -> list[int]:
    """Return which objects are drawn, the best last."""
    order = np.argsort(found.scores, kind="stable")
    return [int(i) for i in order if found.scores[i] >= least]


def _tinted(image: Pixels, found: Detections, least: float) -> Pixels:
    """Return a copy of the image with the masks of objects laid over it."""
    pixels = image.copy()
    if found.masks is None:
        return pixels
    frames = found.boxes if found.frames is None else found.frames
    shown = _shown(found, least)
    size, how = image.shape[:2], found.pasting
    patches = masks.patches(found.masks[shown], frames[shown], *size, pasting=how)
    for i, (top, left, values) in zip(shown, patches, strict=True):
        height, width = values.shape
        part = pixels[top : top + height, left : left + width]
        inside = masks.inside(values, how)
        tint = np.array(colour(int(found.classes[i])))
        part[inside] = np.round(part[inside] * (1 - _MIXED) + tint * _MIXED)
    return pixels


def _name(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"


def _label(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: str,
    fill: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write `text` on a ground of the class's colour: above the box, or in it at the top edge."""
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
    height = bottom + 2
    x, y = max(0.0, box[0]), box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + right + 4, y + height), fill=fill)
    light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]  # luma of BT.601
    draw.text((x + 2, y), text, fill=(0, 0, 0) if light > 127 else (255, 255, 255), font=font)


def _points(
    draw: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], fill: Colour, radius: float
) -> None:
    for x, y in points:
        ends = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(ends, fill=fill, outline=(255, 255, 255))
