"""The arithmetic of symmetric INT8: scales, and weights as levels.

x is stored as clamp(round_half_even(x / scale), -128, 127), zero-point 0, with one scale per
activation tensor and one per output channel of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.values import INT8_LEVELS, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MIN_WEIGHT_SCALE = 2.0**-24
"""Scale of a dead channel, whose weights are all 0: FP16's smallest number, for it must be > 0."""
MIN_SCALE: Mapping[Precision, float] = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-14}
"""Smallest scale of an activation; in FP16 its reciprocal must be finite too."""


def activation_scale(threshold: float, float_type: Precision) -> np.float32:
    """Return the step `threshold / 127` as a number of `float_type`, at least `MIN_SCALE`."""
    scale = max(threshold / INT8_LEVELS, MIN_SCALE[float_type])
    return np.float32(np.float16(scale)) if float_type is Precision.FP16 else np.float32(scale)


def weight_scales(
    weights: NDArray[np.float32], axis: int | None, float_type: Precision
) -> NDArray[np.float32]:
    """Return the smallest scale per index of `axis` (None: one) that clips no weight.

    max |w| / 127, rounded up to a number of `float_type`, at least `MIN_WEIGHT_SCALE`.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis) if axis is not None else None
    largest = np.abs(weights).max(axis=others).astype(np.float64)
    exact = np.maximum(largest / INT8_LEVELS, MIN_WEIGHT_SCALE)
    kind = np.float16 if float_type is Precision.FP16 else np.float32
    rounded = exact.astype(kind)
    up = np.nextafter(rounded, kind(np.inf))
    scales: NDArray[np.float32] = np.where(rounded < exact, up, rounded).astype(np.float32)
    return scales


def quantized(
    weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.int8]:
    """Return round_half_even(weights / scales), -127 to 127."""
    if axis is not None:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    levels: NDArray[np.int8] = np.rint(weights / scales).clip(-127, 127).astype(np.int8)
    return levels
