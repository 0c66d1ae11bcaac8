"""Resize an image with the arithmetic of one library: they differ by whole levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from typing_extensions import assert_never

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels: TypeAlias = "NDArray[np.uint8]"
    Floats: TypeAlias = "NDArray[np.float32]"

Resampler: TypeAlias = Literal["pillow", "torch", "cv2-linear", "cv2-area", "cv2-float", "skimage"]
"""pillow: antialiased, rounded. torch: its `interpolate` of a float tensor, without antialiasing.
cv2-linear: INTER_LINEAR of bytes, without antialiasing, rounded. cv2-area: INTER_AREA where the
image shrinks, else cv2-linear. cv2-float: INTER_LINEAR of floats by a factor (`fx`, `fy`). skimage:
its `resize` with zeros beside the image, without antialiasing, cut to whole levels."""
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

_LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue. Source: ITU-R BT.601."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def grey(image: Pixels) -> Pixels:
    """Return the luminance of an image, uint8[H, W, 3], in each of its three channels."""
    levels = image.astype(np.float32) @ np.array(_LUMINANCE, np.float32)
    found: Pixels = np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=2)
    return found


def resized(
    image: Pixels,
    sides: tuple[int, int],
    resampler: Resampler,
    *,
    ratio: float,
    interpolation: Interpolation = "bilinear",
) -> Pixels | Floats:
    """Return `image` (uint8[H, W, 3]) with `sides` (H, W); levels stay 0 to 255.

    ratio: result over image, before the sides were rounded. interpolation: pillow's alone.
    """
    if image.shape[:2] == sides:
        return image
    height, width = sides
    match resampler:
        case "pillow":
            return np.asarray(
                Image.fromarray(image).resize((width, height), _FILTERS[interpolation])
            )
        case "torch":
            return _sampled(_sampled(image.astype(np.float32), height, 0), width, 1)
        case "skimage":
            high = _sampled(image.astype(np.float64), height, 0, beside=True)
            return _sampled(high, width, 1, beside=True).round(9).astype(np.uint8)
        case "cv2-linear" | "cv2-area" | "cv2-float":
            found: Pixels | Floats = _by_cv2(image, sides, resampler, ratio)
            return found
        case _:
            assert_never(resampler)


def _by_cv2(image: Pixels, sides: tuple[int, int], resampler: str, ratio: float) -> Any:  # noqa: ANN401 - the package's types depend on numpy's version
    import cv2  # noqa: PLC0415 - 0.1 s that no other resampler needs

    size = sides[::-1]
    if resampler != "cv2-float":
        area = resampler == "cv2-area" and ratio < 1
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    floats = image.astype(np.float32)
    if min(round(side * ratio) for side in image.shape[:2]) < 1:  # a side that would vanish
        return cv2.resize(floats, size, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(floats, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_LINEAR)


def linear(plane: NDArray[Any], sides: tuple[int, int]) -> Floats:
    """Return float32[h, w] with `sides` (H, W): linear, corners not aligned, not antialiased."""
    import cv2  # noqa: PLC0415 - as above

    floats = np.ascontiguousarray(plane, np.float32)
    found = cv2.resize(floats, sides[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(found, np.float32)


def _sampled(image: NDArray[Any], size: int, axis: int, *, beside: bool = False) -> NDArray[Any]:
    """Return `image` with `size` samples along an axis, each between its two nearest pixels.

    beside: whether what lies beyond the image is zero, not its last pixel. Floats stay of one type.
    """
    real, length = image.dtype.type, image.shape[axis]
    place = (np.arange(size, dtype=real) + real(0.5)) * real(length / size) - real(0.5)
    if beside:
        image = np.pad(image, [(1, 1) if i == axis else (0, 0) for i in range(image.ndim)])
        place, length = place + 1, length + 2
    place = np.clip(place, 0, length - 1)
    low = place.astype(np.int64)
    part = (place - low).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    near, far = image.take(low, axis), image.take(np.minimum(low + 1, length - 1), axis)
    mixed: NDArray[Any] = near + (far - near) * part
    return mixed
