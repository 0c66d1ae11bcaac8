"""A label map laid over its image, each class in its colour, with the names of those in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploykit.tasks import painting
from deploykit.tasks.detections import class_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Pixels

_MIXED = 0.55
"""Share of the colour on the image."""
_PLAIN = frozenset(("background", "unlabeled", "unlabelled", "void", "other"))
"""Names of classes, in small letters, that are what is left: they get no colour."""
_SEEN = 0.002
"""Share of the image from which on a class is named."""
_NAMED = 12
"""Classes that are named, the largest first."""


def tinted(image: Pixels, labels: NDArray[Any], names: Sequence[str]) -> Pixels:
    """Return the image, enlarged where it is small, in the colours of its classes, named below.

    labels: Of each pixel; below 0 it has none.
    """
    numbers, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    colours = np.array([painting.colour(int(n)) for n in numbers], np.float64)
    plain = np.array(
        [n < 0 or class_name(names, int(n)).lower().strip("_ ") in _PLAIN for n in numbers]
    )
    mixed = np.where(plain, 0.0, _MIXED)[places].reshape(*labels.shape, 1)
    over = colours[places].reshape(*labels.shape, 3)
    pixels = np.round(image * (1 - mixed) + over * mixed).astype(np.uint8)
    pixels[_edges(labels)] = 255
    order = np.argsort(-counts, kind="stable")
    shown = [
        (int(numbers[i]), class_name(names, int(numbers[i])))
        for i in order
        if not plain[i] and counts[i] >= _SEEN * labels.size
    ]
    return _with_legend(pixels, shown[:_NAMED])


def _edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a pixel's class is not that of its right or lower neighbour."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] = labels[:, 1:] != labels[:, :-1]
    edges[:-1] |= labels[1:] != labels[:-1]
    return edges


def _with_legend(pixels: Pixels, shown: Sequence[tuple[int, str]]) -> Pixels:
    """Return the picture with a square of its colour and the name of each class below it."""
    picture = painting.enlarged(Image.fromarray(pixels))
    size = painting.text_size(picture)
    font = ImageFont.load_default(size)
    rows = _rows(picture.width, size, [name for _, name in shown], font)
    height = round(1.6 * size)
    sheet = Image.new(
        "RGB", (picture.width, picture.height + height * len(rows) + size // 2), painting.PAPER
    )
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    numbers = iter(shown)
    for i, row in enumerate(rows):
        middle = picture.height + round((i + 0.5) * height) + size // 4
        for left in row:
            number, name = next(numbers)
            square = (left, middle - size // 2, left + size, middle + size // 2)
            draw.rectangle(square, fill=painting.colour(number))
            text = painting.cut(draw, name, sheet.width - left - 2 * size, font)
            draw.text(
                (left + round(1.4 * size), middle), text, fill=painting.INK, font=font, anchor="lm"
            )
    return np.asarray(sheet)


def _rows(
    width: int, size: int, names: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[list[int]]:
    """Return the left edge of each name, row by row, as many in a row as it holds."""
    rows: list[list[int]] = []
    left = width
    for name in names:
        needed = round(2.4 * size + font.getlength(name))
        if left + needed > width or not rows:
            rows.append([])
            left = size // 2
        rows[-1].append(left)
        left += needed
    return rows
