"""What the files in exporters/ and calib/ define: Recipe and Source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from PIL import Image

from deploykit.errors import DataError, InputError
from deploykit.values import Json, Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from deploykit.values import TensorSpec

    StateDict: TypeAlias = Mapping[str, Tensor]

Pixels: TypeAlias = "NDArray[np.uint8]"
"""An image: uint8[H, W, 3], RGB."""
Floats: TypeAlias = "NDArray[np.float32]"

PROPOSALS = "proposals"
"""Name of an input of boxes, float32[batch, R, 4]: x1, y1, x2, y2 in input pixels, padded with
boxes without area."""

Task: TypeAlias = Literal["detection", "instance_segmentation", "keypoints", "classification"]
"""All but the last give Detections; masks and keypoints come with a box each."""

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


@dataclass(frozen=True)
class KeepFloat:
    """Nodes that INT8 would hurt, and the reason."""

    pattern: str
    """Regular expression, searched in the ONNX node name (the module path, with dots)."""
    reason: str
    precision: Precision = Precision.FP16
    """FP32 where even half precision is too coarse."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first."""

    boxes: Floats
    """float32[N, 4]: x1, y1, x2, y2 in pixels of the original image."""
    scores: Floats
    """float32[N], 0 to 1."""
    classes: NDArray[np.int64]
    """int64[N], indices into the model's class names."""
    masks: Floats | None = None
    """float32[N, S, S], 0 to 1: the mask of each object on an even grid over its box, before
    that box was clipped to the image (`frames`)."""
    frames: Floats | None = None
    """float32[N, 4]: the boxes that `masks` span, x1, y1, x2, y2 in pixels of the original image;
    None: `boxes`."""
    keypoints: Floats | None = None
    """float32[N, K, 3]: x, y in pixels of the original image, and a score (a logit)."""


class Decode(Protocol):
    """Turns a model's outputs for a batch into one result per image."""

    def __call__(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return one Detections per geometry, coordinates in original pixels."""
        ...


@dataclass(frozen=True)
class Family:
    """The networks of a model family, and how its checkpoints are read."""

    build: Callable[[str, int], nn.Module]
    """(variant, number of classes) -> the network as it was trained, in eval mode."""
    adapt: Callable[[StateDict], StateDict]
    """Checkpoint keys of any known layout -> the keys of `build`'s module; drops known extras."""
    identify: Callable[[StateDict], tuple[str, int] | None]
    """Adapted state dict -> (variant, number of classes), or None: not this family."""
    deploy: Callable[[nn.Module], nn.Module]
    """The trained network -> a new one with every branch and batch norm folded."""


@dataclass(frozen=True)
class Recipe:
    """Everything about one model family that no other module may know."""

    name: str
    task: Task
    variants: tuple[str, ...]
    family: Family
    preprocess: Callable[[str, tuple[int, int] | None], Preprocess]
    """(variant, input size H, W or None for the family's own) -> how its input is made."""
    outputs: tuple[str, ...]
    """Names of the exported outputs, in the order the network returns them."""
    decode: Decode | None = None
    """None for a classifier, whose only output is float32[batch, classes] logits."""
    keep_float: tuple[KeepFloat, ...] = ()
    extra_inputs: Callable[[Preprocess], tuple[TensorSpec, ...]] = field(default=lambda _: ())
    """What the network takes beside the images, in the order of its arguments."""
    size_multiple: int = 32
    """Both sides of the input must be a multiple of this: the coarsest stride."""
    class_names: Callable[[int], tuple[str, ...]] = field(
        default=lambda count: tuple(f"class{i}" for i in range(count))
    )


@dataclass(frozen=True)
class Sample:
    """One image of a data set, read only when asked for."""

    name: str
    """Unique in its data set: a relative path or a generated name."""
    read: Callable[[], Pixels]
    """Returns uint8[H, W, 3] RGB, upright. Raises: DataError naming the file."""


@dataclass(frozen=True)
class Dataset:
    """Images, and the truth about them where it is known."""

    name: str
    samples: Sequence[Sample]
    truth: Callable[[], Json] | None = None
    """Returns a COCO `instances` object whose images' `file_name` are sample names."""


@dataclass(frozen=True)
class Source:
    """A kind of data set, opened from the text after the colon in `name:location`."""

    name: str
    summary: str
    open: Callable[[str], Dataset]
    """Raises: DataError or OptionError."""
