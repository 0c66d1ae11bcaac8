"""When a candidate is wrong: where its error exceeds what rounding explains.

Every computation in a number format errs; a right rewrite errs otherwise, but not more. So the
reference is computed in float64, which is the truth here, and in the format itself; the largest
difference of the two is the rounding r. A candidate's largest error against the truth is allowed

    multiple * r + ulps * unit * max(magnitude, least)

with unit the distance of 1 from the next number of the format, and magnitude the largest one of
the truth. The range of an output plays no part: logits of 4000 that vary by 1 are as good as any.

r is that of a whole output, or of the columns of like magnitude where its last axis tells
quantities apart (boxes and scores): a column alone is too few numbers to say how large a rounding
can be. Numbers, measured on 28 networks (RepVGG, YOLOv6) and in `benchmarks/proofs.py`:

* ONNX Runtime errs 0.75 to 1.44 r on what PyTorch rounds by r, a folded network up to 2.5 r,
  a single column up to 16 r: hence 8, over pooled columns.
* ONNX Runtime's Sigmoid is off by an ulp of 1, not of its value (1.4e-7 at 1e-8), and so is
  whatever ends in one: hence `least` and 4 ulps.
* In float64 two equal networks differ by up to 5e-9 r, the smallest fault that a fold made (the
  bias of one channel dropped) was 0.02 r: hence 1e-5 r, in their middle, wherever both sides run
  in float64.
* An exported graph beside its network, both in float64, with the scalars of the code as float32 and
  the folded weights unrounded, is within 2e-8 r (RepVGG, YOLOv6, Mask R-CNN, nine of torchvision's
  classifiers): the same 1e-5 r. Where an exporter wrote numbers of its own, such as GELU's root of
  2, 4 times what moving them by half an ulp changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]
    Doubles: TypeAlias = NDArray[np.float64]

_REACH = 16.0
"""Columns whose magnitudes differ by no more than this factor are alike."""
_ENOUGH = 64
"""Rows from which on columns are told apart."""
_MOST = 4096
"""Columns up to which they are: a longer axis holds places, not quantities."""
_FLIPS = 1e-4
"""Share of an output of integers, such as a label map, that ties may decide either way."""


@dataclass(frozen=True)
class Rule:
    """How large an error may be."""

    multiple: float
    """Of the reference's own rounding."""
    ulps: float
    unit: float
    """Distance of 1 from the next number."""
    least: float = 0.0
    """Magnitude below which ulps shrink no further."""
    one: bool = False
    """Whether one feed is enough, the last: what runs in float64 is slow, and shows all in it."""

    def limits(self, stats: Stats) -> Doubles:
        """Return the largest error allowed to each group of columns."""
        floor = self.ulps * self.unit * np.maximum(stats.magnitude, self.least)
        allowed: Doubles = self.multiple * stats.error + floor
        return allowed


SINGLE = Rule(multiple=8.0, ulps=4.0, unit=2.0**-23, least=1.0)
"""Between two computations in float32."""
STRICT = replace(SINGLE, least=0.0)
"""The same without what runtimes may err by in small outputs."""
DOUBLE = Rule(multiple=1e-5, ulps=450.0, unit=2.0**-52, one=True)
"""Between two computations in float64, of which the reference's float32 rounding is known."""
NUMBERS = replace(DOUBLE, multiple=4.0)
"""The same where a few numbers are float32 in one of them, and what that changes is known."""
HALF = Rule(multiple=8.0, ulps=4.0, unit=2.0**-10, least=2.0**-14)
"""Between two computations in FP16, whose normal numbers end at 2**-14."""


@dataclass(frozen=True)
class Stats:
    """Largest errors of one output, per column or over all (one number)."""

    error: Doubles
    magnitude: Doubles
    """Largest finite magnitude of the truth."""

    def over(self, other: Stats) -> Stats:
        """Return the larger of both."""
        return Stats(
            np.maximum(self.error, other.error), np.maximum(self.magnitude, other.magnitude)
        )

    def pooled(self) -> Stats:
        """Return the same with the largest error among all columns of like magnitude."""
        size = self.magnitude
        alike = (size[:, None] <= _REACH * size) & (size <= _REACH * size[:, None])
        return Stats(np.where(alike, self.error, 0).max(1), size)


def stats(found: Array, truth: Array, *, columns: bool = False, lenient: bool = False) -> Stats:
    """Return the errors of `found`; columns: of each index of the last axis alone.

    The error is infinite (lenient: left out) where a number meets NaN or an infinity, 0 where both
    are the same. For integers it is the share of those that differ.
    """
    if not np.issubdtype(truth.dtype, np.floating):
        share = float(np.mean(found != truth)) if truth.size else 0.0
        return Stats(np.array([share]), np.zeros(1))
    width = truth.shape[-1] if columns else 1
    ours, theirs = (side.astype(np.float64).reshape(-1, width) for side in (found, truth))
    magnitude = np.abs(np.where(np.isfinite(theirs), theirs, 0)).max(0, initial=0)
    off = errors(ours, theirs)
    if lenient:
        off[np.isinf(off)] = 0
    return Stats(off.max(0, initial=0), magnitude)


def errors(found: Doubles, truth: Doubles) -> Doubles:
    """Return |found - truth|: 0 where both are the same NaN or infinity, else infinite there."""
    finite = np.isfinite(found) & np.isfinite(truth)
    same = (found == truth) | (np.isnan(found) & np.isnan(truth))
    result: Doubles = np.where(same, 0.0, np.inf)
    result[finite] = np.abs(found[finite] - truth[finite])
    return result


def has_columns(shape: Sequence[int]) -> bool:
    """Return whether the last axis tells quantities apart that are each seen often enough."""
    return len(shape) in (2, 3) and 0 < shape[-1] <= _MOST and math.prod(shape[:-1]) >= _ENOUGH


def allowed(rule: Rule, rounding: Stats, truth: Array) -> Doubles:
    """Return the largest error that `rule` allows each column of an output."""
    if not np.issubdtype(truth.dtype, np.floating):
        flips: Doubles = rule.multiple * rounding.error + _FLIPS
        return flips
    return rule.limits(rounding.pooled())
