"""What is remembered of a tensor's values: their extremes, and a histogram of their magnitudes.

`Histogram` counts |x| on a linear grid of 32768 bins over [0, 2**e), where 2**e is the smallest
power of two above the largest |x| so far. When a larger value comes, each 2**k neighbouring bins
are added into one: a bin's edges are multiples of a power of two, so the counts are those of a
histogram made with the final range from the start. The largest |x| lies in the upper half of the
grid, so 16384 bins or more resolve [0, max|x|]. Values wait until there are enough to be counted
together.

To count a value costs ten times what it costs to compare it, and most values say little: one in
sixteen tells how the millions of small ones are distributed, while the few large ones decide where
to clip. Therefore of arrays with long rows (a row is what one image or one proposal has) only the
16384 largest magnitudes of all that was seen are counted one by one. The others are counted at
fixed places for sixteen times as many: one line of 16 neighbours, which come from memory together,
out of each 16 lines.

Which values are the largest depends on no order, and a place is one of its row: the counts are the
same in whatever order and batches the values come, and however they are merged.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import InputError
from deploykit.precision.waiting import BLOCK, Waiting, beyond, blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = "NDArray[np.int64]"
    Real: TypeAlias = "NDArray[np.float64]"
    Values: TypeAlias = "NDArray[np.float32]"

_BITS = 15
BINS = 1 << _BITS
"""Bins of the histogram over [0, 2**e)."""
SEARCH_BINS = 2048
"""Bins over [0, max|x|] among whose edges entropy and mse choose, as TensorRT does."""
LARGEST = 1 << 14
"""Magnitudes that are counted one by one in any case: the largest of all seen."""
_LEAST_EXPONENT = -100
"""Keeps 2**(_BITS - e) within float32; far below any threshold."""
_STRIDE = 16
"""Of so many lines one is counted."""
_LINE = 16
"""Neighbours that come from memory together."""
_LONG = 1 << 14
"""Values of a row from which on that is done."""
_ENOUGH = 1 << 17
"""Values that are counted together, at least: what goes with counting is as much for one."""
_NEWS = LARGEST
"""The same of large ones: once they are counted, fewer are large."""


def _places() -> NDArray[np.intp]:
    """Return one line of each _STRIDE lines of a block, in no rhythm with a map's width."""
    starts = np.arange(0, BLOCK // _LINE, _STRIDE)
    places: NDArray[np.intp] = starts + np.random.default_rng(0).integers(0, _STRIDE, starts.size)
    return places


_PLACES = _places()


@functools.lru_cache(maxsize=64)
def _among(lines: int) -> NDArray[np.intp]:
    """Return the places among so many lines of a block."""
    return _PLACES[: np.searchsorted(_PLACES, lines)]


class Extremes:
    """The smallest and the largest value of one tensor."""

    positive = False
    """Whether it has no values below 0: where 0 was seen, none is smaller."""

    def __init__(self, tensor: str) -> None:
        """Start empty; `tensor` is named in errors."""
        self.tensor = tensor
        self.minimum = math.inf
        self.maximum = -math.inf

    @property
    def largest(self) -> float:
        """Return max|x|. Raises: InputError where no value was observed."""
        if self.minimum > self.maximum:
            raise InputError(
                f"tensor {self.tensor!r} had no values in any image",
                fix="calibrate with images in which the model finds objects, or keep its layer in "
                "float",
            )
        return max(-self.minimum, self.maximum)

    def observe(self, values: Values) -> None:
        """Take in an array of any shape. Raises: InputError for NaN or infinity."""
        for block in blocks(values):
            low = 0.0 if self._at_floor else float(block.min())
            self._extend(low, float(block.max()))

    def merge(self, other: Extremes) -> None:
        """Take in what `other` observed."""
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def _at_floor(self) -> bool:
        return self.positive and self.minimum == 0.0

    def _extend(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                f"tensor {self.tensor!r} takes the value {high if math.isfinite(low) else low}",
                expected="finite activations",
                fix="check the model's weights and the preprocessing of the images",
            )
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)


class Histogram(Extremes):
    """The extremes, and how often each magnitude occurs.

    `settle` brings its fields up to date; what is asked of it is.
    """

    def __init__(self, tensor: str) -> None:
        """Start empty; `tensor` is named in errors."""
        super().__init__(tensor)
        self.exponent = _LEAST_EXPONENT
        self.top: Counts = np.zeros(BINS, np.int64)
        """Complete from the bin of the LARGEST-th magnitude up, at least."""
        self.spread: Counts = np.zeros(BINS, np.int64)
        """Of the places alone, each for its neighbours."""
        self._least = 0.0
        """Magnitude from which on values are counted one by one."""
        self._all, self._large, self._some = Waiting(), Waiting(), Waiting()

    @property
    def width(self) -> float:
        """Return the width of a bin, in the tensor's unit."""
        self.settle()
        return math.ldexp(1.0, self.exponent - _BITS)

    @property
    def counts(self) -> Counts:
        """Return int64[BINS]: bin k counts the values with k <= |x| / width < k + 1."""
        self.settle()
        reached = self._reached()
        # The bin that is reached may have been made of one that was counted and one that was not.
        return np.concatenate([self.spread[: reached + 1], self.top[reached + 1 :]])

    def observe(self, values: Values) -> None:
        """Take in an array of any shape. Raises: InputError for NaN or infinity."""
        rows = values.reshape(len(values) if values.ndim else 1, -1) if values.size else values
        if rows[:1].size >= _LONG:
            for block in (block for row in rows for block in blocks(row)):
                self._look_at(block)
                self._settle_many()
        else:
            super().observe(values)
            self._all.add(values.flatten())
            self._settle_many()

    def merge(self, other: Extremes) -> None:
        """Take in what `other`, a histogram too, observed."""
        if not isinstance(other, Histogram):
            raise TypeError(f"a histogram cannot take in {type(other).__name__}")
        self.settle()
        other.settle()
        super().merge(other)
        self._grow(other.exponent)
        shift = self.exponent - other.exponent
        self.top += _folded(other.top, shift)
        self.spread += _folded(other.spread, shift)

    def rebinned(self) -> Real:
        """Return the counts in SEARCH_BINS equal bins over [0, max|x|].

        A bin goes where its centre lies: its edges move by at most 1/16 of the new width.
        """
        centres = np.arange(BINS) + 0.5
        target = (centres * (self.width / self.largest * SEARCH_BINS)).astype(np.int64)
        target = np.minimum(target, SEARCH_BINS - 1)
        found: Real = np.bincount(target, self.counts, SEARCH_BINS).astype(np.float64)
        return found

    def _look_at(self, block: Values) -> None:
        """Take in the extremes of a block; keep its largest values and those at the places.

        An extreme that was beyond `_least` before is only exceeded by values that are kept too.
        """
        low = 0.0 if self._at_floor else None if self.minimum <= -self._least else block.min()
        high = None if self.maximum >= self._least else block.max()
        large = beyond(block, self._least, negative=low is None or not low > -self._least)
        if large.size:
            low = large.min() if low is None else low
            high = large.max() if high is None else high
        self._extend(
            self.minimum if low is None else float(low),
            self.maximum if high is None else float(high),
        )
        self._large.add(large)
        lines = block[: block.size - block.size % _LINE].reshape(-1, _LINE)
        self._some.add(lines.take(_among(len(lines)), 0).reshape(-1))

    def _settle_many(self) -> None:
        """Count what waits if that is enough."""
        if max(self._all.size, self._some.size) >= _ENOUGH or self._large.size >= _NEWS:
            self.settle()

    def settle(self) -> None:
        """Count what waits."""
        if not (self._all or self._large or self._some):
            return
        self._grow(_exponent(self.largest))
        width, signed = math.ldexp(1.0, self.exponent - _BITS), self.minimum < 0
        for found in self._all.counted(width, signed=signed):
            self.top[: found.size] += found
            self.spread[: found.size] += found
        for found in self._large.counted(width, signed=signed):
            self.top[: found.size] += found
        for found in self._some.counted(width, signed=signed):
            self.spread[: found.size] += _STRIDE * found
        self._least = max(self._reached(), 0) * width

    def _reached(self) -> int:
        """Return the bin of the LARGEST-th magnitude; -1 where fewer were seen."""
        above = np.cumsum(self.top[::-1])
        return BINS - 1 - int(np.searchsorted(above, LARGEST))

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            shift, self.exponent = exponent - self.exponent, exponent
            self.top, self.spread = _folded(self.top, shift), _folded(self.spread, shift)


def _exponent(largest: float) -> int:
    """Return the smallest e with largest < 2**e, but no less than _LEAST_EXPONENT."""
    return max(_LEAST_EXPONENT, math.frexp(largest)[1]) if largest else _LEAST_EXPONENT


def _folded(counts: Counts, shift: int) -> Counts:
    """Return the counts on the grid whose bins are 2**shift times as wide."""
    group = 1 << min(shift, _BITS)
    folded = np.zeros(BINS, np.int64)
    folded[: BINS // group] = counts.reshape(-1, group).sum(axis=1)
    return folded
