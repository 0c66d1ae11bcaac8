"""What prepared images become on their way into a model: its inputs, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Size
    from deploykit.values import TensorSpec

    Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

IMAGE_SIZES = "image_sizes"
"""Name of an input of float32[batch, 2]: height and width, in input pixels, of the image that lies
at the top left of each canvas. Boxes end there, as they do in the detectors' own pipelines."""


def feeds(
    names: Sequence[str], images: Floats, geometries: Sequence[Geometry]
) -> dict[str, NDArray[np.generic]]:
    """Return input name -> values for images float32[B, 3, H, W] that lie in their canvases so.

    names: of the model's inputs, that of the images first.
    """
    found: dict[str, NDArray[np.generic]] = {names[0]: images}
    if IMAGE_SIZES in names:
        canvas = (int(images.shape[2]), int(images.shape[3]))
        found[IMAGE_SIZES] = sizes(place.sides or canvas for place in geometries)
    return found


def sizes(each: Iterable[Size]) -> Floats:
    """Return heights and widths as the input IMAGE_SIZES takes them."""
    found: Floats = np.array(list(each), np.float32).reshape(-1, 2)
    return found


def takes_images(inputs: Sequence[TensorSpec]) -> bool:
    """Return whether all inputs are made from images: they come first, then maybe their sizes."""
    others = {spec.name for spec in inputs[1:]}
    return bool(inputs) and len(inputs[0].shape) == 4 and others <= {IMAGE_SIZES}


def completed(inputs: Sequence[TensorSpec], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `given`, with images as large as their canvases where a model asks and nobody says."""
    wanted = {spec.name for spec in inputs} - given.keys()
    images = given.get(inputs[0].name) if inputs else None
    if wanted != {IMAGE_SIZES} or images is None or len(images.shape) != 4:
        return given
    canvas = (int(images.shape[2]), int(images.shape[3]))
    return {**given, IMAGE_SIZES: sizes([canvas] * int(images.shape[0]))}
