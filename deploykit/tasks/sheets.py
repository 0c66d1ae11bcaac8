"""Several pictures on one sheet, each under its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploykit.tasks import painting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploykit.data.preprocess import Pixels

_COLUMNS = 2
_GAP = 12
"""Pixels between pictures."""


def sheet(cells: Iterable[tuple[str, Pixels]]) -> Pixels:
    """Return pictures with captions in two columns; one without a caption is returned as it is."""
    found = [(text, Image.fromarray(pixels)) for text, pixels in cells]
    if len(found) == 1 and not found[0][0]:
        return np.asarray(found[0][1])
    width = max(picture.width for _, picture in found)
    size = max(13, width // 36)
    font, line = ImageFont.load_default(size), round(1.8 * size)
    rows = [found[i : i + _COLUMNS] for i in range(0, len(found), _COLUMNS)]
    heights = [line + max(picture.height for _, picture in row) for row in rows]
    columns = min(_COLUMNS, len(found))
    whole = (columns * (width + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1))
    made = Image.new("RGB", whole, painting.PAPER)
    draw = ImageDraw.Draw(made)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for i, (text, picture) in enumerate(row):
            left = _GAP + i * (width + _GAP)
            caption = painting.cut(draw, text, width, font)
            draw.text((left, top + line / 2), caption, fill=painting.INK, font=font, anchor="lm")
            made.paste(picture, (left, top + line))
        top += height + _GAP
    return np.asarray(made)
