"""Read an image file as upright 8-bit RGB, whatever its format and mode."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from deploykit.errors import DataError

if TYPE_CHECKING:
    from deploykit.data.preprocess import Pixels

_SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2",),
    "MPO": (".mpo",),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read; others (EPS, for one) can start foreign programs."""

SUFFIXES = frozenset(suffix for group in _SUFFIXES.values() for suffix in group)
"""File name endings, in lower case, that mark an image."""

PIXELS = 1 << 26
"""Of one image at most, 8192 x 8192: a small file can unpack to any number."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored rows upright; 1 and unknown values: nothing."""

_UNBOUNDED = {"F": "floating-point", "I": "32-bit integer"}
"""Modes whose values have no known range."""
_DEEP_GREY = frozenset({"PNG", "PPM"})
"""Formats that some Pillow versions open in mode I although their values end at 65535."""
_STEP = 257
"""65535 / 255: 16-bit grey levels per 8-bit level."""


def folder(location: str) -> Path:
    """Return the existing folder that a data source was given. Raises: DataError."""
    if not location.strip():
        raise DataError("no folder is given", expected="SOURCE:FOLDER")
    root = home(location)
    if not root.is_dir():
        found = "it is a file" if root.exists() else "no such folder"
        raise DataError(f"cannot read {location}: {found}", expected="a folder of images")
    return root


def home(location: str) -> Path:
    """Return the path that a text with or without a leading `~` names. Raises: DataError."""
    try:
        return Path(location).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"cannot read {location}: {error}", expected="a path, or ~/ and one"
        ) from error


def decode(path: Path) -> Pixels:
    """Return the image in a file: uint8[H, W, 3], RGB, upright.

    The first frame of an animation; 16-bit levels scaled from 0..65535 to 0..255; transparent
    pixels over black, where most files already store black under them. Colour profiles are not
    applied.

    Raises: DataError naming the file.
    """
    if not path.is_file():
        raise DataError(f"cannot read {path}: no such file")
    try:
        with Image.open(path, formats=_formats()) as image:
            check_size(image)
            image.load()
            return _pixels(_upright(image))
    except DataError as error:
        raise DataError(f"{path}: {error.found}", expected=error.expected, fix=error.fix) from error
    except Exception as error:
        raise _unreadable(path, error) from error


def check_size(image: Image.Image) -> None:
    """Check the size that an image says it has, before it is unpacked. Raises: DataError."""
    if image.width * image.height > PIXELS:
        raise DataError(
            f"an image of {image.width}x{image.height} pixels",
            expected=f"at most {PIXELS} pixels, as 8192x8192 has",
            fix="shrink the image, or cut it into tiles",
        )


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


def _unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that Pillow refused, by whatever exception."""
    if path.stat().st_size == 0:
        return DataError(f"{path} is empty", fix="delete the file or fetch it again")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(f"{path} unpacks to too many pixels: {error}", fix="shrink the image")
    if isinstance(error, UnidentifiedImageError):
        return DataError(
            f"{path} is not an image in a known format, or has no pixels",
            expected="one of " + ", ".join(_formats()),
        )
    return DataError(
        f"cannot decode {path}: {type(error).__name__}: {error}",
        fix="the file is damaged: delete it or fetch it again",
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises anything; viewers ignore bad EXIF
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> Pixels:
    if 0 in image.size:
        raise DataError(f"an image of {image.width}x{image.height} pixels")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _DEEP_GREY):
        grey = (np.asarray(image).astype(np.uint32) + _STEP // 2) // _STEP
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in _UNBOUNDED:
        raise DataError(
            f"{_UNBOUNDED[image.mode]} pixels, whose range is not known",
            fix="convert the image to 8 or 16 bits per channel",
        )
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(over, image.convert("RGBA"))
    return np.array(image.convert("RGB"))
