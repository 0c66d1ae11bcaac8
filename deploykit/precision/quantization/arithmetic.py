"""The arithmetic of symmetric INT8: scales, and weights as levels.

x is stored as clamp(round_half_even(x / scale), -128, 127), zero-point 0, with one scale per
activation tensor and one per output channel of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.values import DEAD_STEP, INT8_LEVELS, LEAST_STEP, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MIN_SCALE: Mapping[Precision, float] = {Precision.FP32: LEAST_STEP, Precision.FP16: 2.0**-14}
"""Smallest scale of what is not always 0: FP16's smallest normal number."""

MAX_HALF = float(np.finfo(np.float16).max)
"""Largest FP16 number."""
MAX_LOSS = 10**0.1
"""Factor, of the squared error that INT8 makes in weights, that FP16 steps may add: 1 dB."""


def activation_scale(threshold: float, float_type: Precision) -> np.float32:
    """Return the step `threshold / 127` as a number of `float_type`, at least `MIN_SCALE`."""
    exact = threshold / INT8_LEVELS
    if float_type is Precision.FP16:
        return np.float32(np.float16(max(exact, MIN_SCALE[float_type])))
    return np.float32(exact if exact >= MIN_SCALE[float_type] else DEAD_STEP)


def scale_type(threshold: float, float_type: Precision) -> Precision:
    """Return FP32 for an activation whose step FP16 could not hold, else `float_type`.

    A step below FP16's normal numbers would be raised to the least of them, which covers a range
    of 0.008: a tensor within 0.001 would keep 4 bits of its 7. One above FP16 would be infinite.
    """
    exact = threshold / INT8_LEVELS
    small = MIN_SCALE[Precision.FP32] <= exact < MIN_SCALE[Precision.FP16]
    return Precision.FP32 if small or exact > MAX_HALF else float_type


def weight_scale_type(
    weights: NDArray[np.float32], axis: int | None, float_type: Precision
) -> Precision:
    """Return FP32 for weights that steps rounded to FP16 would cost MAX_LOSS, else `float_type`.

    A step above FP16 would be infinite.
    """
    if float_type is Precision.FP32 or not (float(np.abs(weights).max(initial=0)) > 0):
        return float_type
    exact = weight_scales(weights, axis, Precision.FP32)
    if exact.max() > MAX_HALF:
        return Precision.FP32
    if exact.min() >= MIN_SCALE[Precision.FP16]:
        return float_type
    noise, more = (
        float(np.square(_noise(weights, scales, axis), dtype=np.float64).sum())
        for scales in (exact, weight_scales(weights, axis, float_type))
    )
    return Precision.FP32 if more > MAX_LOSS * noise else float_type


def _noise(
    weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.float32]:
    """Return what quantisation changes in the weights."""
    return dequantized(quantized(weights, scales, axis), scales, axis) - weights


def weight_scales(
    weights: NDArray[np.float32], axis: int | None, float_type: Precision
) -> NDArray[np.float32]:
    """Return the smallest scale per index of `axis` (None: one) that clips no weight.

    max |w| / 127, rounded up to a number of `float_type`; `DEAD_STEP` where all are 0.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis) if axis is not None else None
    largest = np.abs(weights).max(axis=others).astype(np.float64)
    exact = largest / INT8_LEVELS
    exact = np.where(exact >= MIN_SCALE[Precision.FP32], exact, DEAD_STEP)
    kind = np.float16 if float_type is Precision.FP16 else np.float32
    rounded: NDArray[Any] = exact.astype(kind)
    up = np.nextafter(rounded, kind(np.inf))
    scales: NDArray[np.float32] = np.where(rounded < exact, up, rounded).astype(np.float32)
    return scales


def rounded_scales(scales: NDArray[np.float32], float_type: Precision) -> NDArray[np.float32]:
    """Return given scales as the nearest numbers of `float_type`."""
    if float_type is not Precision.FP16:
        return scales
    half: NDArray[np.float32] = scales.astype(np.float16).astype(np.float32)
    return half


def quantized(
    weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.int8]:
    """Return round_half_even(weights / scales), -127 to 127."""
    steps = along(scales, weights.ndim, axis)
    levels: NDArray[np.int8] = np.rint(weights / steps).clip(-127, 127).astype(np.int8)
    return levels


def dequantized(
    levels: NDArray[np.int8], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.float32]:
    """Return levels * scales, what `levels` stand for."""
    return levels.astype(np.float32) * along(scales, levels.ndim, axis)


def along(scales: NDArray[np.float32], rank: int, axis: int | None) -> NDArray[np.float32]:
    """Return the scales of an axis in a shape that multiplies weights of that rank."""
    return scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(rank)])
