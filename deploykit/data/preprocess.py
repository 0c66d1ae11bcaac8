"""From an image to a model input, and back to the pixels of the image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from deploykit.errors import DataError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.values import Json

Pixels: TypeAlias = "NDArray[np.uint8]"
"""An image: uint8[H, W, 3], RGB."""
Floats: TypeAlias = "NDArray[np.float32]"

PROPOSALS = "proposals"
"""Name of an input of boxes, float32[batch, R, 4]: x1, y1, x2, y2 in input pixels, padded with
boxes without area."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """How an image was placed in the model's input: x_input = x_image * scale + offset."""

    height: int
    """Of the original image, in pixels."""
    width: int
    scale_x: float
    scale_y: float
    offset_x: float = 0.0
    offset_y: float = 0.0

    def to_image(self, boxes: Floats) -> Floats:
        """Return xyxy boxes (float32[N, 4]) in original pixels, clipped to the image."""
        limit = np.array([self.width, self.height] * 2, np.float32)
        clipped: Floats = np.clip(self.unclipped(boxes), 0, limit)
        return clipped

    def unclipped(self, boxes: Floats) -> Floats:
        """Return xyxy boxes (float32[N, 4]) in original pixels."""
        offset = np.array([self.offset_x, self.offset_y] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        moved: Floats = (boxes - offset) / scale
        return moved


@dataclass(frozen=True)
class Preprocess:
    """From an image to a model input: resize, channel order, (x * scale - mean) / std."""

    size: tuple[int, int]
    """Height and width of the model input, in pixels."""
    resize: Literal["letterbox", "corner", "stretch", "crop"] = "letterbox"
    """letterbox: fit inside and pad both sides; corner: the same at the top left; stretch: ignore
    the aspect ratio; crop: short side to size / crop_fraction, then the centre."""
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int | None = 114
    """Of the pixels beside the image; None: zero after normalisation."""
    crop_fraction: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    """False: bilinear between the four nearest pixels, unrounded, as torch's `interpolate`."""

    def __call__(self, image: Pixels) -> tuple[Floats, Geometry]:
        """Return the input float32[3, H, W] and where the image lies in it.

        Raises: DataError for an image without pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"an image of shape {image.shape}", expected="uint8[H, W, 3], H, W > 0")
        placed, geometry = self._place(image)
        if self.channels == "BGR":
            placed = placed[:, :, ::-1]
        gain = np.float32(self.scale) / np.array(self.std, np.float32)
        shift = np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        chw = np.empty((3, *self.size), np.float32)
        np.multiply(placed.transpose(2, 0, 1), gain[:, None, None], out=chw)
        np.subtract(chw, shift[:, None, None], out=chw)
        if self.pad_value is None:
            _clear(chw, geometry)
        return chw, geometry

    def _place(self, image: Pixels) -> tuple[Pixels | Floats, Geometry]:
        (height, width), (out_h, out_w) = image.shape[:2], self.size
        if self.resize == "stretch":
            return self._scaled(image, out_w, out_h), Geometry(
                height, width, out_w / width, out_h / height
            )
        if self.resize == "crop":
            ratio = max(out_h / height, out_w / width) / self.crop_fraction
        else:
            ratio = min(out_h / height, out_w / width)
        if self.resize == "corner":  # rounded down, as torchvision does
            new_w, new_h = max(1, int(width * ratio)), max(1, int(height * ratio))
            left = top = 0
        else:
            new_w, new_h = max(1, round(width * ratio)), max(1, round(height * ratio))
            # YOLOv6's rounding: an odd row of padding goes to the bottom and the right.
            left, top = round((out_w - new_w) / 2 - 0.1), round((out_h - new_h) / 2 - 0.1)
        scaled = self._scaled(image, new_w, new_h)
        canvas = np.full((out_h, out_w, 3), self.pad_value or 0, scaled.dtype)
        canvas[max(top, 0) : top + new_h, max(left, 0) : left + new_w] = scaled[
            max(-top, 0) : max(-top, 0) + out_h, max(-left, 0) : max(-left, 0) + out_w
        ]
        return canvas, Geometry(height, width, new_w / width, new_h / height, left, top)

    def _scaled(self, image: Pixels, width: int, height: int) -> Pixels | Floats:
        if image.shape[:2] == (height, width):
            return image
        if not self.antialias:
            return _sampled(_sampled(image.astype(np.float32), height, 0), width, 1)
        resized = Image.fromarray(image).resize((width, height), _FILTERS[self.interpolation])
        return np.asarray(resized)

    def to_json(self) -> Json:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Preprocess:
        """Return what `to_json` wrote. Raises: InputError."""
        try:
            lists: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
            }
            return cls(**lists)
        except TypeError as error:
            raise InputError(f"not a preprocessing description: {error}") from error


def _sampled(image: Floats, size: int, axis: int) -> Floats:
    """Return `image` with `size` samples along an axis, each between its two nearest pixels."""
    length = image.shape[axis]
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size)
    place = np.clip(place - np.float32(0.5), 0, length - 1)
    low = place.astype(np.int64)
    part = (place - low).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    near, far = image.take(low, axis), image.take(np.minimum(low + 1, length - 1), axis)
    mixed: Floats = near + (far - near) * part
    return mixed


def _clear(chw: Floats, geometry: Geometry) -> None:
    """Set what lies beside the image to zero."""
    top, left = max(0, round(geometry.offset_y)), max(0, round(geometry.offset_x))
    bottom = round(geometry.offset_y + geometry.height * geometry.scale_y)
    right = round(geometry.offset_x + geometry.width * geometry.scale_x)
    chw[:, :top], chw[:, bottom:] = 0, 0
    chw[:, :, :left], chw[:, :, right:] = 0, 0
