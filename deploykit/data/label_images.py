"""Read an image file whose pixels are ids: grey levels, or places in a palette."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploykit.data import images
from deploykit.errors import DataError
from deploykit.files import paths

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_FORMATS = ("PNG", "TIFF", "BMP")
"""Formats that keep every id: JPEG does not."""
_WIDE = ("I", "I;16", "I;16B", "I;16L")
_WHAT = "a label map: a PNG of grey levels, or with a palette"


def decode(path: Path) -> NDArray[Any]:
    """Return the ids in a label map, uint8 or int32[H, W]. Raises: DataError naming the file."""
    paths.require_file(path, _WHAT, DataError)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            images.check_size(image)
            image.load()
            if image.mode in _WIDE:
                return np.asarray(image).astype(np.int32)
            if image.mode in ("P", "L"):
                return np.array(image)
            if image.mode == "1":
                return np.array(image).astype(np.uint8)
            mode = image.mode
    except DataError as error:
        raise DataError(f"{path}: {error.found}", expected=error.expected, fix=error.fix) from error
    except Exception as error:
        raise DataError(f"cannot read {path}: {error}", expected=_WHAT) from error
    raise DataError(
        f"{path} holds colours ({mode}), not the ids of classes",
        expected=_WHAT,
        fix="store the ids themselves; colours that a tool drew of them say too little",
    )
