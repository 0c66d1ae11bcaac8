"""Class scores on the grid of a network's output, brought to the pixels of the original image.

As mmsegmentation and the SegFormer of transformers do it: the scores are interpolated linearly to
the size of the original image, and then the best class of each pixel is taken. The corners of both
are aligned only where the network was trained so.
What lies beside the image in the input is left out first. A network that returns class indices
instead gives each pixel the nearest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from deploykit.data import resizing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.data.preprocess import Geometry

    Doubles: TypeAlias = NDArray[np.float64]
    Labels: TypeAlias = NDArray[np.integer[Any]]

LINEAR = "class scores interpolated linearly to the size of the image, then the best class"
NEAREST = "the nearest of the network's class indices"
_BLOCK = 1 << 24
"""Scores in memory at a time."""
_NEAR = 1e-4
"""Of a sample: sides are products of rounded scales."""


class _Line(NamedTuple):
    """Along one axis: between which two samples each pixel lies, and how near the second."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    part: NDArray[np.float32]
    inside: slice
    """The samples on the image."""
    whole: bool
    """Whether the image ends where these do, so that they are its samples alone."""


def best(scores: NDArray[Any], place: Geometry, *, aligned: bool = False) -> Labels:
    """Return the best class of each pixel of the original image, uint8 or int32[height, width].

    scores: float[classes, h, w], over the whole of the input. aligned: their corner samples lie on
    the corner pixels of the input.
    """
    down, across = _axes(scores.shape[1:], place, aligned=aligned)
    if down.whole and across.whole:
        return _grown(scores[:, down.inside, across.inside], (place.height, place.width))
    labels = np.empty((place.height, place.width), np.uint8 if len(scores) <= 256 else np.int32)
    rows = max(1, _BLOCK // (len(scores) * place.width))
    for first in range(0, place.height, rows):
        block = slice(first, first + rows)
        lines = _mixed(
            scores[:, down.low[block]], scores[:, down.high[block]], down.part[block, None]
        )
        whole = _mixed(lines[..., across.low], lines[..., across.high], across.part)
        labels[block] = whole.argmax(0)
    return labels


def _grown(scores: NDArray[Any], size: tuple[int, int]) -> Labels:
    """Return the best class of each pixel where the samples lie within the image exactly."""
    labels = np.zeros(size, np.uint8 if len(scores) <= 256 else np.int32)
    top: NDArray[Any] | None = None
    for number, plane in enumerate(scores):
        grown = resizing.linear(plane, size)
        if top is None:
            top = grown
            continue
        better = grown > top
        np.copyto(top, grown, where=better)
        labels[better] = number
    return labels


def nearest(labels: NDArray[Any], place: Geometry) -> Labels:
    """Return the class of each pixel of the original image; labels: [h, w] over the input."""
    down, across = (
        np.where(line.part < 0.5, line.low, line.high) for line in _axes(labels.shape, place)
    )
    found: Labels = labels[np.ix_(down, across)]
    return found


def _mixed(low: NDArray[Any], high: NDArray[Any], part: NDArray[np.float32]) -> NDArray[Any]:
    mixed: NDArray[Any] = low + (high - low) * part
    return mixed


def _axes(shape: tuple[int, ...], place: Geometry, *, aligned: bool = False) -> tuple[_Line, _Line]:
    height, width = place.canvas or (
        max(1, round(place.height * place.scale_y + 2 * place.offset_y)),
        max(1, round(place.width * place.scale_x + 2 * place.offset_x)),
    )
    line = _aligned if aligned else _line
    down = line(shape[0], height, (place.height, place.scale_y, place.offset_y))
    across = line(shape[1], width, (place.width, place.scale_x, place.offset_x))
    return down, across


def _line(samples: int, side: int, placed: tuple[int, float, float]) -> _Line:
    """Return where the pixels of an image lie among the samples of an output along one axis.

    samples: Of the output. side: Of the input, in pixels. placed: Pixels of the image, its scale
    and where it begins in the input.
    """
    pixels, scale, offset = placed
    ratio = samples / side
    where = ((np.arange(pixels) + 0.5) * scale + offset) * ratio - 0.5
    start, end = offset * ratio, (offset + pixels * scale) * ratio
    first, last = _inside(samples, start, end)
    whole = max(abs(start - first), abs(end - last - 1)) < _NEAR
    return _between(where, first, last, whole=whole)


def _aligned(samples: int, side: int, placed: tuple[int, float, float]) -> _Line:
    """Return what `_line` does where the outer samples lie on the outer pixels of the input."""
    pixels, scale, offset = placed
    step = (samples - 1) / max(side - 1, 1)
    where = ((np.arange(pixels) + 0.5) * scale + offset - 0.5) * step
    return _between(where, 0, samples - 1, whole=False)


def _between(where: NDArray[np.floating[Any]], first: int, last: int, *, whole: bool) -> _Line:
    where = np.clip(where, first, last)
    low = np.floor(where).astype(np.int64)
    part = (where - low).astype(np.float32)
    return _Line(low, np.minimum(low + 1, last), part, slice(first, last + 1), whole)


def _inside(samples: int, start: float, end: float) -> tuple[int, int]:
    """Return the first and the last sample whose centres lie on the image: at least one."""
    first = min(max(0, int(np.ceil(start - 0.5 - _NEAR))), samples - 1)
    last = max(min(samples - 1, int(np.floor(end - 0.5 + _NEAR))), first)
    return first, last
