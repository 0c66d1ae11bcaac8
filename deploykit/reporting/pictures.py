"""Pictures that `predict` made, small enough to be part of a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deploykit.data import images
from deploykit.errors import InputError
from deploykit.files import jsonfile, schema

if TYPE_CHECKING:
    from pathlib import Path

MOST = 6
"""Pictures on a page."""
_WIDTH, _QUALITY = 1000, 88
"""Pixels of a picture at most, and of JPEG."""
_MODEL = schema.record({"model": schema.text(), "said": schema.text()}, others=True)
_PREDICTION = schema.record({"image": schema.text(), "models": schema.many(_MODEL)}, others=True)


@dataclass(frozen=True)
class Picture:
    """One picture of a page."""

    caption: str
    data: str
    """A `data:` address with the picture itself."""
    alt: str
    """What it shows, in words."""


def read(folder: Path) -> tuple[Picture, ...]:
    """Return the first MOST pictures that `predict` wrote to a folder. Raises: InputError."""
    found = sorted(path for path in folder.glob("*.png") if path.with_suffix(".json").is_file())
    if not found:
        raise InputError(
            f"{folder} holds no predictions",
            expected="a folder that `deploykit predict` wrote: a .png and a .json for each image",
        )
    return tuple(map(_picture, found[:MOST]))


def _picture(path: Path) -> Picture:
    data = jsonfile.read(path.with_suffix(".json"), _PREDICTION, "a prediction")
    said = [f"{row['model']}: {row['said'] or 'nothing'}" for row in data["models"]]
    alike = len({row["said"] for row in data["models"]}) == 1 < len(said)
    words = f"all models: {data['models'][0]['said'] or 'nothing'}" if alike else "; ".join(said)
    return Picture(f"{data['image']}. {words}", _address(images.decode(path)), words)


def _address(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    picture = Image.fromarray(np.asarray(pixels))
    picture.thumbnail((_WIDTH, _WIDTH))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
