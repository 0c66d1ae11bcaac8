"""What prepared images become on their way into a model: its inputs, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.data.preprocess import PROPOSALS
from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Size
    from deploykit.values import TensorSpec

    Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

RANK, CHANNELS = 4, (1, 3)
"""Dimensions of an input of images, and how many channels these may have."""
IMAGE_SIZES = "image_sizes"
"""Name of an input of float32[batch, 2]: height and width, in input pixels, of the image that lies
at the top left of each canvas. Boxes end there, as they do in the detectors' own pipelines."""
IMAGE_WINDOWS = "image_windows"
"""Name of an input of float32[batch, 4]: x1, y1, x2, y2, in input pixels, of the image that lies
anywhere in each canvas. Boxes end there."""


def feeds(
    inputs: Sequence[TensorSpec], images: Floats, geometries: Sequence[Geometry]
) -> dict[str, NDArray[np.generic]]:
    """Return input name -> values for images float32[B, C, H, W] that lie in their canvases so.

    inputs: of the model, that of the images first. A fixed batch is filled up by repeating the
    images in turn. Raises: DataError where it takes proposals, and there are none.
    """
    first, fixed = inputs[0], batch(inputs[0])
    few = isinstance(fixed, int) and len(images) < fixed
    turn = np.arange(fixed if few else len(images)) % max(1, len(images))
    found = {first.name: formed(images[turn] if few else images, first)}
    if any(spec.name == IMAGE_SIZES for spec in inputs):
        canvas = (int(images.shape[2]), int(images.shape[3]))
        found[IMAGE_SIZES] = sizes(geometries[i].sides or canvas for i in turn)
    if any(spec.name == IMAGE_WINDOWS for spec in inputs):
        found[IMAGE_WINDOWS] = np.array([geometries[i].window for i in turn], np.float32)
    found |= {s.name: _regions(s, geometries, turn) for s in inputs if s.name == PROPOSALS}
    return found


def _regions(spec: TensorSpec, geometries: Sequence[Geometry], turn: Iterable[int]) -> Floats:
    """Return regions as the input PROPOSALS takes them, the first so many of each image's."""
    each, rows = [], spec.shape[1]
    assert isinstance(rows, int)  # as `takes_images` says
    for i in turn:
        place = geometries[i]
        if place.regions is None:
            raise DataError(
                f"the model takes {spec}, and the images come without regions",
                expected="a data set with proposals",
                fix="put `proposals:` before it, as in proposals:coco:DIR or proposals:folder:DIR",
            )
        scale = np.array([place.scale_x, place.scale_y] * 2, np.float32)
        moved = place.regions[:rows] * scale + np.array([place.offset_x, place.offset_y] * 2)
        each.append(np.pad(moved.astype(np.float32), ((0, rows - len(moved)), (0, 0))))
    found: Floats = np.array(each, np.float32).reshape(-1, rows, 4)
    return found


def batch(spec: TensorSpec) -> int | str:
    """Return how many images an input takes at once; a text: any number."""
    return spec.shape[0] if len(spec.shape) == RANK else 1


def unfilled(
    outputs: Mapping[str, NDArray[np.generic]], first: TensorSpec, count: int
) -> dict[str, Floats]:
    """Return a model's outputs for `count` images as float32, without those of what `feeds` added.

    first: its input of images.
    """
    fixed = batch(first)
    if isinstance(fixed, int) and fixed > count:
        outputs = {n: v[:count] if len(v) == fixed else v for n, v in outputs.items()}
    return {name: value.astype("float32", copy=False) for name, value in outputs.items()}


def formed(images: Floats, spec: TensorSpec) -> NDArray[np.generic]:
    """Return images float32[B, C, H, W] in the layout and the element type of an input.

    Integers get the nearest whole levels that they hold; an input of three dimensions takes the
    only image.
    """
    laid: NDArray[np.generic] = images
    if is_nhwc(spec):
        laid = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    elif len(spec.shape) == RANK - 1:
        laid = images[0]
    dtype = np.dtype(spec.dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        laid = np.rint(laid).clip(limits.min, limits.max)
    return laid.astype(dtype, copy=False)


def is_nhwc(spec: TensorSpec) -> bool:
    """Return whether an input takes the channels of an image last."""
    shape = spec.shape
    return len(shape) == RANK and shape[3] in CHANNELS and shape[1] not in CHANNELS


def nchw(spec: TensorSpec) -> TensorSpec:
    """Return an input of images as it would be with its batch and channels first."""
    shape = spec.shape
    if len(shape) == RANK - 1:
        return replace(spec, shape=(1, *shape))
    order = (0, 3, 1, 2) if is_nhwc(spec) else (0, 1, 2, 3)
    return replace(spec, shape=tuple(shape[i] for i in order))


def image_size(spec: TensorSpec) -> tuple[int | str, int | str]:
    """Return the height and the width of an input of images; a text is an open one."""
    _, _, height, width = nchw(spec).shape
    return height, width


def sizes(each: Iterable[Size]) -> Floats:
    """Return heights and widths as the input IMAGE_SIZES takes them."""
    found: Floats = np.array(list(each), np.float32).reshape(-1, 2)
    return found


def takes_images(inputs: Sequence[TensorSpec]) -> bool:
    """Return whether all inputs are made from a data set: images first, then what is beside."""
    others = [spec for spec in inputs[1:] if spec.name not in (IMAGE_SIZES, IMAGE_WINDOWS)]
    return bool(inputs) and _is_image(inputs[0]) and all(map(_holds_regions, others))


def _holds_regions(spec: TensorSpec) -> bool:
    """Return whether an input is that of proposals, with a number of rows."""
    rows = spec.shape[1] if len(spec.shape) == 3 else None
    return spec.name == PROPOSALS and isinstance(rows, int) and spec.shape[2] == 4


def _is_image(spec: TensorSpec) -> bool:
    """Return whether an input can hold images: some at once, or one with its channels first."""
    return len(spec.shape) == RANK or (len(spec.shape) == RANK - 1 and spec.shape[0] in CHANNELS)


def completed(inputs: Sequence[TensorSpec], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `given`, with images as large as their canvases where a model asks and nobody says."""
    wanted = {spec.name for spec in inputs} - given.keys()
    images = given.get(inputs[0].name) if inputs else None
    known = wanted <= {IMAGE_SIZES, IMAGE_WINDOWS}
    if not wanted or not known or images is None or len(images.shape) != 4:
        return given
    count, canvas = int(images.shape[0]), (int(images.shape[2]), int(images.shape[3]))
    window = np.array([[0, 0, *canvas[::-1]]] * count, np.float32).reshape(-1, 4)
    made = {IMAGE_SIZES: sizes([canvas] * count), IMAGE_WINDOWS: window}
    return {**given, **{name: made[name] for name in wanted}}
