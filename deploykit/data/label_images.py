"""Read an image file whose pixels are ids: grey levels, places in a palette, or colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

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
_COLOURS, _WHOLE = ("RGB", "RGBA"), 255


class Colours(Protocol):
    """What ids the colours of a label map are."""

    def read(self, pixels: NDArray[np.uint8], /) -> NDArray[np.int32]:
        """Return the ids, int32[H, W], of colours uint8[H, W, 3]. Raises: DataError."""
        ...


class _Digits:
    """Ids as colours: red + 256 * green + 65536 * blue, as COCO's panoptic files have them."""

    def read(self, pixels: NDArray[np.uint8], /) -> NDArray[np.int32]:
        """Return the ids, int32[H, W], of colours uint8[H, W, 3]."""
        found: NDArray[np.int32] = pixels.astype(np.int32) @ _WORTH
        return found

    def colours(self, ids: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Return the colours uint8[H, W, 3] of ids below 2^24."""
        return (ids[..., None] // _WORTH % _LEVELS).astype(np.uint8)


_LEVELS = 256
_WORTH = np.array([1, _LEVELS, _LEVELS**2], np.int32)
DIGITS = _Digits()
_WHAT = "a label map: a PNG of grey levels, or with a palette"


def decode(path: Path, palette: Colours | None = None, *, always: bool = False) -> NDArray[Any]:
    """Return the ids in a label map, uint8 or int32[H, W]. Raises: DataError naming the file.

    palette: Of colours in the file. always: whether it counts for files with a palette of their
    own too, whose places else are the ids.
    """
    paths.require_file(path, _WHAT, DataError)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            images.check_size(image)
            image.load()
            if image.mode in _WIDE:
                return np.asarray(image).astype(np.int32)
            if palette is not None and (image.mode in _COLOURS or (always and image.mode == "P")):
                return palette.read(_opaque(image))
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
        fix="say which colour is which class, a name and three numbers in each line of a file: "
        "colours=FILE; or store the ids themselves",
    )


def _opaque(image: Image.Image) -> NDArray[np.uint8]:
    """Return the colours uint8[H, W, 3]. Raises: DataError where a pixel lets others through."""
    pixels = np.asarray(image.convert("RGBA"))
    if (pixels[..., 3] < _WHOLE).any():
        raise DataError("has transparent pixels", expected="a colour for each pixel")
    return pixels[..., :3]
