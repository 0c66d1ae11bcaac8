"""Shapes of detector heads: levels of cells, and outputs that stand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.preprocess import Floats, Size

    Shapes: TypeAlias = Mapping[str, Sequence[Any]]
    """Output -> its sizes; a text is an open one."""

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Of the levels of a head, in pixels, the most frequent first."""


def cells(size: Size, strides: Sequence[int]) -> int:
    """Return the cells of levels with these strides, in an input of `size`."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def strides_of(count: int, size: Size) -> tuple[int, ...] | None:
    """Return the strides of levels that have `count` cells together."""
    return next((each for each in STRIDES if cells(size, each) == count), None)


def single(outputs: Shapes) -> list[Any] | None:
    """Return the sizes of the only output, where it has three."""
    shapes = [list(shape) for shape in outputs.values()]
    return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 3 else None


def one(outputs: Mapping[str, Floats]) -> Floats:
    """Return the only output."""
    return next(iter(outputs.values()))
