"""Boxes of every kind, whole and hostile, and feature maps, for the checks of ops and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    Size: TypeAlias = tuple[float, float]

SPECIAL = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0, 1e-40, 5.0], np.float32)
CHANNELS = (1, 2, 3, 5, 31, 32, 33, 35)
"""A block of the kernels takes 32."""


@dataclass(frozen=True)
class Regions:
    """The boxes of a batch."""

    boxes: Array
    """float32[B, R, 4]: x1, y1, x2, y2 in input pixels."""
    count: Array
    """int32[B]: the rows after these are padding."""

    def valid(self) -> Array:
        """Return which rows are pooled, bool[B, R]."""
        present = np.arange(self.boxes.shape[1]) < self.count[:, None]
        valid: Array = present & np.isfinite(self.boxes).all(-1)
        return valid

    def by_image(self) -> Array:
        """Return the valid boxes as torchvision takes them, float32[n, 5], the image first."""
        image, _ = self.valid().nonzero()
        rows: Array = np.column_stack([image, self.boxes[self.valid()]]).astype(np.float32)
        return rows


# --- boxes: each kind returns float64[n, 4] for an image of `size` (H, W) -------------------------


def inside(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes within the image."""
    low, high = (rng.random((n, 2)) * [size[1], size[0]] for _ in range(2))
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], 1)


def tiny(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes of a pixel or less, some with no side at all."""
    boxes = inside(rng, n, size)
    boxes[:, 2:] = boxes[:, :2] + rng.choice([0, 1e-6, 0.5, 1], (n, 2)) * max(size) / 100
    return boxes


def wide(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes that reach far beyond the image."""
    reach = (rng.random((n, 4)) + 0.2) * max(size) * rng.choice([1.0, 30.0])
    return np.asarray(inside(rng, n, size) + reach * [-1, -1, 1, 1])


def outside(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes beside the image."""
    away = rng.choice([-1.0, 1.0], (n, 2)) * (rng.random((n, 2)) + 1) * [size[1], size[0]]
    return np.asarray(inside(rng, n, size) + np.tile(away, 2))


def across(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes across the border, at places where halves of a cell are exact."""
    step = max(size) / 16
    moved = inside(rng, n, size) + rng.choice([-1.0, 1.0], (n, 1)) * max(size) / 2
    return np.asarray(np.round(moved / step) * step)


def inverted(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes with their sides in any order."""
    return inside(rng, n, size)[:, rng.permutation(4)]


def unknown(rng: Generator, n: int, size: Size) -> Array:
    """Return boxes of which some have a coordinate that is no finite number."""
    boxes = inside(rng, n, size)
    return np.where(rng.random((n, 4)) < 0.3, rng.choice(SPECIAL[:3], (n, 4)), boxes)


def whole(rng: Generator, n: int, size: Size) -> Array:
    """Return the image, n times."""
    del rng
    return np.tile([0.0, 0.0, size[1], size[0]], (n, 1))


KINDS: tuple[Callable[[Generator, int, Size], Array], ...] = (
    *(inside, tiny, wide, outside, across, inverted, unknown, whole),
)


def regions(rng: Generator, seed: int, size: Size) -> Regions:
    """Return up to 3 images of up to 8 boxes, all of one kind; some rows are padding."""
    images, rows = int(rng.choice([0, 1, 2, 2, 3, 3])), int(rng.integers(0, 9))
    boxes = KINDS[seed % len(KINDS)](rng, images * rows, size).reshape(images, rows, 4)
    count = rng.integers(-1, rows + 2, images).astype(np.int32)
    return Regions(boxes.astype(np.float32), count)


def maps_of(rng: Generator, images: int, channels: int, size: tuple[int, int]) -> Array:
    """Return float32[B, C, H, W]."""
    return rng.standard_normal((images, channels, *size)).astype(np.float32)


def padded(found: Regions, values: Array) -> Array:
    """Return the values of the valid rows [n, ...] among zeros for the others, [B * R, ...]."""
    pooled = np.zeros((found.valid().size, *values.shape[1:]), values.dtype)
    pooled[found.valid().ravel()] = values
    return pooled
