"""Random inputs for a model: images with large and small structure, boxes, numbers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.data import feeding
from deploykit.data.feeding import IMAGE_SIZES, IMAGE_WINDOWS
from deploykit.data.preprocess import PROPOSALS
from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess
    from deploykit.values import TensorSpec

    Array: TypeAlias = NDArray[np.generic]

_LEVELS = {
    **dict.fromkeys(("float16", "float32", "float64"), 1),
    **dict.fromkeys(("bool", "int8", "int16", "int32", "int64"), 2),
    "uint8": 256,
}
"""Element type -> how many values a random one takes; 1: any from 0 to 1."""
_PATCH = 16
"""Side in pixels of the even patches in a random image: objects, where noise is texture."""


def feeds(
    inputs: Sequence[TensorSpec],
    *,
    seed: int,
    batch: int = 1,
    preprocess: Preprocess | None = None,
) -> dict[str, Array]:
    """Return input name -> random values: `batch` images, or as many as a fixed batch holds.

    With `preprocess`, an input of images holds pixels of 0 to 255 prepared as it says. The input
    `PROPOSALS` gets boxes in the image, some of them without area, as padding; `IMAGE_SIZES` the
    sizes of images that end within the input, every other one with it, `IMAGE_WINDOWS` such images
    anywhere.
    The same seed gives the same values on every machine. Raises: ModelError as `images`.
    """
    size = next((feeding.image_size(spec) for spec in inputs if len(spec.shape) == 4), ())
    found = {}
    for i, spec in enumerate(inputs):
        found[spec.name] = _maker(spec, size)(spec, seed + i, batch)
        if preprocess is not None and spec.dtype == "float32" and _is_image(spec, preprocess):
            pixels = found[spec.name].astype(np.float32)
            found[spec.name] = _prepared(pixels, preprocess, last=feeding.is_nhwc(spec))
    return found


def _maker(spec: TensorSpec, size: Sequence[int | str]) -> Callable[[TensorSpec, int, int], Array]:
    """Return what makes random values of an input, beside images of `size` (H, W)."""
    if size and spec.name == PROPOSALS and spec.shape[2:] == (4,):
        return functools.partial(_boxes, size=size)
    if size and spec.name == IMAGE_SIZES and spec.shape[1:] == (2,):
        return functools.partial(_sizes, size=size)
    if size and spec.name == IMAGE_WINDOWS and spec.shape[1:] == (4,):
        return functools.partial(_windows, size=size)
    return images


def _windows(spec: TensorSpec, seed: int, count: int, *, size: Sequence[int | str]) -> Array:
    """Return float32[count, 4]: x1, y1, x2, y2 in `size` (H, W), in each second row a part."""
    whole = np.array([size[1], size[0]], np.float32)
    shares = np.random.default_rng(seed).uniform(0, 0.25, _shape(spec, count)).astype(np.float32)
    shares[::2] = 0
    windows: Array = np.rint(
        np.concatenate([shares[:, :2], 1 - shares[:, 2:]], 1) * np.tile(whole, 2)
    )
    return windows


def _sizes(spec: TensorSpec, seed: int, count: int, *, size: Sequence[int | str]) -> Array:
    """Return float32[count, 2]: `size` (H, W), and in each second row from half of it on."""
    whole = np.array(size, np.float32)
    shares = np.random.default_rng(seed).uniform(0.5, 1, _shape(spec, count)).astype(np.float32)
    shares[::2] = 1
    sizes: Array = np.rint(whole * shares)
    return sizes


def _is_image(spec: TensorSpec, preprocess: Preprocess) -> bool:
    return len(spec.shape) == 4 and feeding.nchw(spec).shape[1] == preprocess.planes


def _prepared(values: NDArray[np.float32], preprocess: Preprocess, *, last: bool) -> Array:
    """Return float32 images of 0 to 1 as whole pixels of 0 to 255, prepared.

    last: their channels are the last dimension, not the second.
    """
    planes = preprocess.planes
    mean, std = (
        np.array(numbers[:planes], np.float32).reshape((-1,) if last else (-1, 1, 1))
        for numbers in (preprocess.mean, preprocess.std)
    )
    pixels = np.rint(values * np.float32(255))
    prepared: Array = (pixels * np.float32(preprocess.scale) - mean) / std
    return prepared


def _boxes(spec: TensorSpec, seed: int, count: int, *, size: Sequence[int | str]) -> Array:
    """Return boxes, float32[count, R, 4], in an image of `size` (H, W).

    Their sides go from nothing to the whole of the image, most are short; the last eighth of the
    boxes are zeros.
    """
    shape = _shape(spec, count)
    limit = np.array([size[1], size[0]], np.float32)
    numbers = np.random.default_rng(seed).random(shape, np.float32)
    centre, half = numbers[..., :2] * limit, np.square(numbers[..., 2:]) * limit / 2
    boxes: Array = np.clip(np.concatenate([centre - half, centre + half], -1), 0, np.tile(limit, 2))
    boxes[:, shape[1] - shape[1] // 8 :] = 0
    return boxes


def images(spec: TensorSpec, seed: int, count: int) -> Array:
    """Return `count` random images for one input: flat patches under noise, values 0 to 1.

    A float input gets values from 0 to 1, uint8 gets 0 to 255, other integers and bool 0 or 1. A
    fixed batch keeps its size. Raises: ModelError where another dimension is dynamic, or for an
    element type that has no random values.
    """
    shape = _shape(spec, count)
    if spec.dtype not in _LEVELS:
        raise ModelError(
            f"cannot make random values for the input {spec}",
            expected="an element type among " + ", ".join(sorted(_LEVELS)),
        )
    rng = np.random.default_rng(seed)
    values = 0.5 * rng.random(shape, np.float32)
    values += 0.5 * _patches(rng, shape)
    levels = _LEVELS[spec.dtype]
    chosen: Array = (values if levels == 1 else np.floor(values * levels)).astype(spec.dtype)
    return chosen


def _shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    first, rest = spec.shape[:1], spec.shape[1:]
    sizes = [count if isinstance(dim, str) or dim < 0 else dim for dim in first]
    for dim in rest:
        if isinstance(dim, str) or dim < 0:
            raise ModelError(
                f"the size of {spec} is open: dimension {dim!r}",
                expected="a fixed size in every dimension but the first",
                fix="`deploykit describe` with --input-size HxW writes a copy of one size",
            )
        sizes.append(dim)
    return tuple(sizes)


def _patches(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return uniform values, even over squares of `_PATCH` in the last two dimensions."""
    if len(shape) < 3:
        return rng.random(shape, np.float32)
    coarse = rng.random((*shape[:-2], *(-(-side // _PATCH) for side in shape[-2:])), np.float32)
    tall = coarse.repeat(_PATCH, axis=-2)[..., : shape[-2], :]
    return tall.repeat(_PATCH, axis=-1)[..., : shape[-1]]
