"""A chart's axis: values to pixels, and round numbers to mark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOGARITHMIC_FROM = 8
"""Ratio of the largest to the smallest value above which a linear axis would hide the small."""


@dataclass(frozen=True)
class Axis:
    """Maps `low` to the pixel `start` and `high` to the pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`; values beyond the axis stay at its ends."""
        inside = min(max(value, self.low), self.high)
        low, high, at = (self._linear(v) for v in (self.low, self.high, inside))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def value(self, part: float) -> float:
        """Return the value at `part` (0 to 1) of the axis' length."""
        low, high = self._linear(self.low), self._linear(self.high)
        at = low + (high - low) * part
        return math.exp(at) if self.logarithmic else at

    def _linear(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def ticks(self, most: int = 8) -> list[float]:
        """Return at most `most` round values on the axis: 1, 2 or 5 times a power of ten."""
        if self.logarithmic:
            marks = [d * 10.0**e for e in self._decades() for d in (1, 2, 5)]
            inside = [mark for mark in marks if self.low <= mark <= self.high]
            return inside if 2 <= len(inside) <= most else self._linear_ticks(most)
        return self._linear_ticks(most)

    def _decades(self) -> range:
        return range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)

    def _linear_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / (most - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(d for d in (1, 2, 5, 10, 20) if d * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def spanning(values: Sequence[float], start: float, end: float, *, margin: float = 0.05) -> Axis:
    """Return the axis from `start` to `end` that shows all `values`, and a margin on both sides.

    It is logarithmic where the values are positive and span a factor of 8 or more.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOGARITHMIC_FROM:
        ratio = (high / low) ** margin
        return Axis(low / ratio, high * ratio, start, end, logarithmic=True)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Axis(low - room, high + room, start, end)
