"""Photographs and textures for generated data sets: those that the scikit-image package ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from PIL import Image

from deploykit.errors import DataError


def shipped(name: str) -> Image.Image:
    """Return a picture that scikit-image ships. Raises: DataError where it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError(
            "generated data sets need the photographs of scikit-image, which is not installed",
            fix="`pip install scikit-image`",
        )
    path = Path(spec.origin).parent / "data" / name
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error}", fix="install scikit-image again: it ships this file"
        ) from error
