"""From an image to a model's input, pixel by pixel as the official pipelines of the families do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from deploykit.data import sides
from deploykit.data.resizing import Interpolation, Resampler, grey, resized
from deploykit.data.sides import Rounding
from deploykit.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.values import Json

Pixels: TypeAlias = "NDArray[np.uint8]"
"""An image: uint8[H, W, 3], RGB."""
Floats: TypeAlias = "NDArray[np.float32]"
Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""

PROPOSALS = "proposals"
"""Name of an input of boxes, float32[batch, R, 4]: x1, y1, x2, y2 in input pixels, padded with
boxes without area."""

Resize: TypeAlias = Literal["letterbox", "corner", "stretch", "crop"]
Channels: TypeAlias = Literal["RGB", "BGR", "GREY"]
"""GREY: one channel, the luminance of ITU-R 601 in whole levels, as Pillow and cv2 have it."""
Centre: TypeAlias = Literal["lower", "even"]
"""The first pixel of what is centred, where an odd number is left: half of it less 0.1 rounded, so
that the odd pixel follows the image, or half of it rounded to the even number."""
Mapping: TypeAlias = Literal["sides", "ratio"]
"""How boxes come back: by the rounded sides and the whole pixels beside them, or by the scale and
the margins before any rounding."""

_LOWER = 0.1
_CHOICES: dict[str, tuple[object, ...]] = {
    "resize": get_args(Resize),
    "channels": get_args(Channels),
    "interpolation": get_args(Interpolation),
    "resampler": get_args(Resampler),
    "rounding": (*get_args(Rounding), None),
    "centre": get_args(Centre),
    "mapping": get_args(Mapping),
}


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
    sides: Size | None = None
    """Height and width of the scaled image, in input pixels, where it lies at the top left of the
    input; None: elsewhere, or as large as the input."""
    canvas: Size | None = field(default=None, compare=False)
    """Height and width of the input."""
    regions: Floats | None = field(default=None, compare=False)
    """Where objects may be, float32[n, 4] in the image's own pixels; None: nobody has looked."""

    @property
    def window(self) -> tuple[float, float, float, float]:
        """Return x1, y1, x2, y2 of the scaled image, in input pixels."""
        right = self.offset_x + round(self.width * self.scale_x)
        lower = self.offset_y + round(self.height * self.scale_y)
        return self.offset_x, self.offset_y, right, lower

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
class Fit:
    """What becomes of an image of one size."""

    canvas: Size
    """Of the model's input."""
    sides: Size
    """Of the scaled image."""
    ratio: float
    """Its scale before the sides were rounded."""


@dataclass(frozen=True)
class Preprocess:
    """From an image to a model input: resize, channel order, (x * scale - mean) / std."""

    size: Size
    """Height and width of the model input, in pixels; the first of its canvases."""
    resize: Resize = "letterbox"
    """letterbox: fit inside and pad both sides; corner: the same at the top left; stretch: ignore
    the aspect ratio; crop: short side to size / crop_fraction, then the centre."""
    channels: Channels = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int | None = 114
    """Of the pixels beside the image; None: zero after normalisation."""
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"
    resampler: Resampler = "pillow"
    canvases: tuple[Size, ...] = ()
    """Further sizes of the input: an image takes the smallest that holds it (letterbox, corner)."""
    limits: Size | None = None
    """Short side and longest long side of the scaled image (letterbox, corner); None: as large as
    a canvas holds."""
    rounding: Rounding | None = None
    """None: `down` at the corner, else `even`. A crop that is rounded down is torchvision's: its
    short side exact, its long side cut off."""
    margin: int = 0
    """Pixels that a canvas has beside the image along each side, where one has."""
    centre: Centre = "lower"
    mapping: Mapping = "sides"

    def __call__(self, image: Pixels) -> tuple[Floats, Geometry]:
        """Return the input float32[planes, H, W] and where the image lies. Raises: DataError."""
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"an image of shape {image.shape}", expected="uint8[H, W, 3], H, W > 0")
        fit = self.fit(image.shape[0], image.shape[1])
        first = self._first(fit)
        shown = grey(image) if self.channels == "GREY" else image
        scaled = resized(
            shown, fit.sides, self.resampler, ratio=fit.ratio, interpolation=self.interpolation
        )
        return self._normalised(scaled, fit, first), self._geometry(image, fit, first)

    @property
    def planes(self) -> int:
        """Return the number of channels of the input."""
        return 1 if self.channels == "GREY" else 3

    def at_scale(self, short: int, long: int) -> Preprocess:
        """Return one with these limits where a canvas holds every image within them, else itself.

        What is smaller was chosen by the user: there an image is as large as the canvas holds.
        """
        holds = any(min(size) >= short and max(size) >= long for size in self.sizes)
        return replace(self, limits=(short, long)) if holds else self

    def sized(self, size: Size | None) -> Preprocess:
        """Return one for inputs of `size` alone, with the same limits where it holds them."""
        if size is None:
            return self
        bare = replace(self, size=size, canvases=(), limits=None)
        return bare if self.limits is None else bare.at_scale(*self.limits)

    def turned(self) -> Preprocess:
        """Return one with a canvas for images that are higher than wide too."""
        return replace(self, canvases=(self.size[::-1],))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Return all sizes of the input, `size` first."""
        return (self.size, *self.canvases)

    def fit(self, height: int, width: int) -> Fit:
        """Return the canvas and the scaled sides of an image of `height` x `width` pixels.

        The canvas is the smallest that holds it; of equal ones that which is upright as it is.
        """
        if self.resize == "stretch":
            return Fit(self.size, self.size, self.size[0] / height)
        if self.resize == "crop":
            return self._cropped(height, width)
        ratio, sides = self.scaled(height, width)
        if not self.holds(height, width):
            ratio = self._largest(height, width)
            sides = self._rounded(height * ratio), self._rounded(width * ratio)
        wanted = [side * ratio + self.margin for side in (height, width)] if self.margin else sides
        roomy = [size for size in self.sizes if _holds(size, wanted)]
        holding = roomy or [size for size in self.sizes if _holds(size, sides)]
        upright = height > width
        canvas = min(holding, key=lambda size: (size[0] * size[1], (size[0] > size[1]) != upright))
        return Fit(canvas, sides, ratio)

    def holds(self, height: int, width: int) -> bool:
        """Return whether an image has its own scale; else it is shrunk to the largest canvas."""
        if self.limits is None or self.resize in ("stretch", "crop"):
            return True
        _, sides = self.scaled(height, width)
        return any(_holds(size, sides) for size in self.sizes)

    def _largest(self, height: int, width: int) -> float:
        return max(min(size[0] / height, size[1] / width) for size in self.sizes)

    def scaled(self, height: int, width: int) -> tuple[float, Size]:
        """Return the scale of an image of `height` x `width` pixels, and its sides then."""
        if self.limits is not None:
            return sides.limited(height, width, self.limits, self._rounding())
        ratio = self._largest(height, width)
        return ratio, (self._rounded(height * ratio), self._rounded(width * ratio))

    def _rounded(self, side: float) -> int:
        return sides.rounded(side, self._rounding())

    def _rounding(self) -> Rounding:
        return self.rounding or ("down" if self.resize == "corner" else "even")

    def _cropped(self, height: int, width: int) -> Fit:
        out_h, out_w = self.size
        if self.rounding != "down":
            ratio = max(out_h / height, out_w / width) / self.crop_fraction
            sides = self._rounded(height * ratio), self._rounded(width * ratio)
            return Fit(self.size, sides, ratio)
        if out_h / height >= out_w / width:
            reach = int(out_h / self.crop_fraction)
            return Fit(self.size, (reach, int(reach * width / height)), reach / height)
        reach = int(out_w / self.crop_fraction)
        return Fit(self.size, (int(reach * height / width), reach), reach / width)

    def _first(self, fit: Fit) -> Size:
        """Return the row and the column of the canvas where the image begins, below 0 in a crop."""
        if self.resize == "corner":
            return 0, 0
        less = _LOWER if self.centre == "lower" else 0.0
        top, left = (
            round((room - side) / 2 - less)
            for room, side in zip(fit.canvas, fit.sides, strict=True)
        )
        return top, left

    def _normalised(self, scaled: Pixels | Floats, fit: Fit, first: Size) -> Floats:
        """Return the canvas float32[3, H, W] with the image from row and column `first` on."""
        gain = np.float32(self.scale) / np.array(self.std, np.float32)
        shift = np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        beside = 0 * gain if self.pad_value is None else np.float32(self.pad_value) * gain - shift
        chw = np.empty((3, *fit.canvas), np.float32)
        there, here = zip(
            *(
                (slice(max(start, 0), start + side), slice(max(-start, 0), room - min(start, 0)))
                for start, side, room in zip(first, fit.sides, fit.canvas, strict=True)
            ),
            strict=True,
        )
        if fit.sides != fit.canvas:
            chw[:] = beside[:, None, None]
        inside = scaled[here].transpose(2, 0, 1)[:: -1 if self.channels == "BGR" else 1]
        part = chw[:, there[0], there[1]]
        np.multiply(inside, gain[:, None, None], out=part)
        np.subtract(part, shift[:, None, None], out=part)
        return chw[: self.planes]

    def _geometry(self, image: Pixels, fit: Fit, first: Size) -> Geometry:
        height, width = image.shape[:2]
        sides = fit.sides if self.resize == "corner" else None
        if self.mapping == "sides" or self.resize == "stretch":
            scales = fit.sides[1] / width, fit.sides[0] / height
            return Geometry(height, width, *scales, first[1], first[0], sides, fit.canvas)
        margins = [0.0, 0.0]
        if self.resize != "corner":
            margins = [
                (room - side * fit.ratio) / 2
                for room, side in zip(fit.canvas, (height, width), strict=True)
            ]
        scales = fit.ratio, fit.ratio
        return Geometry(height, width, *scales, margins[1], margins[0], sides, fit.canvas)

    def to_json(self) -> Json:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Preprocess:
        """Return what `to_json` wrote, of a version with fewer fields too. Raises: InputError."""
        fields = {name: _tuples(value) for name, value in data.items()}
        if fields.pop("antialias", True) is False:
            fields["resampler"] = "torch"
        for name, known in _CHOICES.items():
            if name in fields and fields[name] not in known:
                raise InputError(
                    f"not a preprocessing description: {name} {fields[name]!r}",
                    expected="one of " + ", ".join(map(str, known)),
                )
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"not a preprocessing description: {error}") from error


def _holds(canvas: Size, sides: Sequence[float]) -> bool:
    return sides[0] <= canvas[0] and sides[1] <= canvas[1]


def _tuples(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
