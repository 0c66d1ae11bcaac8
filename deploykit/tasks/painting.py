"""Results drawn on images: boxes, names, masks and points, in a colour per class."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploykit.tasks import masks
from deploykit.tasks.detections import LEAST_SCORE, class_name

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
_PERSON = 17
"""Points of COCO's person."""
_LIMBS = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""Pairs of them that a line joins."""
_LEAST_WIDTH = 320
"""Pixels of a picture that has a list below it."""
PAPER, INK = (255, 255, 255), (20, 20, 20)


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
        label = f"{class_name(classes, number)} {found.scores[i]:.2f}"
        _label(draw, box, label, colour(number), font)
        if found.keypoints is not None:
            _points(draw, found.keypoints[i, :, :2].tolist(), colour(number), 2 * width)
    return np.asarray(picture)


def listed(image: Pixels, rows: Sequence[tuple[str, float, int]]) -> Pixels:
    """Return the image, enlarged where it is small, with a list of classes below it.

    rows: Each class's name, its share, 0 to 1, and its number, which gives the colour of its bar.
    """
    picture = enlarged(Image.fromarray(image))
    height = text_size(picture)
    font, line = ImageFont.load_default(height), round(height * 1.6)
    sheet = Image.new("RGB", (picture.width, picture.height + line * len(rows) + line // 2), PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for i, (name, share, number) in enumerate(rows):
        top = picture.height + line // 4 + i * line
        _bar(draw, (line // 3, top, sheet.width - line // 3, top + line), share, colour(number))
        _row(draw, (line // 2, top, sheet.width - line // 2, top + line), (name, share), font)
    return np.asarray(sheet)


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture that is wide enough for text, a whole number of times as large."""
    times = -(-_LEAST_WIDTH // picture.width)
    if times == 1:
        return picture
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def text_size(picture: Image.Image) -> int:
    """Return the height of text below a picture, in pixels."""
    return max(_LEAST_TEXT + 2, picture.width // _TEXT)


def cut(
    draw: ImageDraw.ImageDraw,
    text: str,
    room: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """Return as much of a text as fits in so many pixels, with an ellipsis where some is left."""
    while len(text) > 1 and draw.textlength(text, font=font) > room:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _bar(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], share: float, fill: Colour
) -> None:
    """Draw a bar as long as `share` of the box, in a pale tone of a colour."""
    left, top, right, bottom = box
    red, green, blue = (round(0.45 * part + 0.55 * 255) for part in fill)
    end = left + round((right - left) * share)
    if end > left:
        draw.rectangle((left, top + 1, end, bottom - 2), fill=(red, green, blue))


def _row(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    row: tuple[str, float],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a name at the left of a box, cut where it is too long, and its share at the right."""
    left, top, right, bottom = box
    middle, text = (top + bottom) / 2, f"{row[1]:.1%}"
    draw.text((right, middle), text, fill=INK, font=font, anchor="rm")
    name = cut(draw, row[0], right - left - 1.5 * draw.textlength(text, font=font), font)
    draw.text((left, middle), name, fill=INK, font=font, anchor="lm")


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
    x = max(0.0, min(box[0], draw.im.size[0] - right - 4))
    y = box[1] - height if box[1] >= height else max(0.0, box[1])
    draw.rectangle((x, y, x + right + 4, y + height), fill=fill)
    light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]  # luma of BT.601
    draw.text((x + 2, y), text, fill=(0, 0, 0) if light > 127 else (255, 255, 255), font=font)


def _points(
    draw: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], fill: Colour, radius: float
) -> None:
    limbs = _LIMBS if len(points) == _PERSON else ()
    for one, other in limbs:
        draw.line((*points[one], *points[other]), fill=fill, width=max(1, round(radius)))
    for x, y in points:
        ends = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(ends, fill=fill, outline=(255, 255, 255))
