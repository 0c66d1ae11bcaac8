"""Magnitudes that wait until there are enough of them to be counted together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Counts: TypeAlias = "NDArray[np.int64]"
    Values: TypeAlias = "NDArray[np.float32]"

BLOCK = 1 << 17
"""Values handled at a time: with what a thread computes in they fit in a core's L2 cache."""


class Waiting:
    """Values that wait to be counted."""

    def __init__(self) -> None:
        """Start empty."""
        self.size = 0
        self._arrays: list[Values] = []

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return self.size > 0

    def add(self, values: Values) -> None:
        """Keep a flat array that holds no other in memory."""
        self.size += values.size
        self._arrays.append(values)

    def counted(self, width: float, *, signed: bool) -> Iterator[Counts]:
        """Yield counts that add up to those of all that waited, which does so no longer.

        Bin k counts the values with k <= |x| / width < k + 1. width: a power of two. signed:
        whether there are values below 0.
        """
        arrays, self.size, self._arrays = self._arrays, 0, []
        if not arrays:
            return
        scale = np.float32(1.0 / width)
        for block in blocks(np.concatenate(arrays)):
            scaled, index = _room(block.size)
            np.multiply(block, scale, out=scaled)
            if signed:
                np.absolute(scaled, out=scaled)
            np.copyto(index, scaled, casting="unsafe")  # towards zero
            yield np.bincount(index)


def blocks(values: Values) -> Iterator[Values]:
    """Yield the values of an array in flat parts of at most BLOCK."""
    flat = values.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def beyond(values: Values, least: float, *, negative: bool) -> Values:
    """Return a copy of those of at most BLOCK values with |x| >= least or NaN, in their order.

    negative: whether such values may be below 0.
    """
    if not least:
        return values.copy()
    inside, above = _room(values.size)[0].view(np.bool_).reshape(4, -1)[:2]
    np.less(values, least, out=inside)
    if negative:
        inside &= np.greater(values, -least, out=above)
    (places,) = np.logical_not(inside, out=inside).nonzero()
    found: Values = values.take(places)
    return found


_kept = threading.local()


def _room(size: int) -> tuple[Values, NDArray[np.intp]]:
    """Return what a thread computes in, two arrays of at most BLOCK values."""
    if not hasattr(_kept, "room"):
        _kept.room = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.intp)
    scaled, index = _kept.room
    return scaled[:size], index[:size]
