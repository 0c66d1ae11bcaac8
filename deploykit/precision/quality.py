"""What INT8 costs: the noise that each layer adds to its own result, in decibels.

A layer multiplies its inputs by its weights. Errors of the two that do not depend on each other add
up in the product as energies relative to what they change: noise of the inputs over the inputs plus
noise of the weights over the weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.precision.placement.weighted import constant
from deploykit.precision.probing import Stored
from deploykit.precision.quantization.arithmetic import activation_scale, weight_scales
from deploykit.precision.quantization.sharing import readings
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from deploykit.precision.placement import Placement, Weight
    from deploykit.values import CalibrationTable

_UNIFORM = 1 / 12
"""Mean square of what rounding to whole numbers changes."""


def stored(placed: Placement, table: CalibrationTable) -> tuple[Stored, ...]:
    """Return the tensors that the model will have in INT8. Raises: InputError without a range."""
    return tuple(dict.fromkeys(readers(placed, table).values()))


def layer_noise(
    model: ir.Model, placed: Placement, table: CalibrationTable, noise: Mapping[Stored, float]
) -> dict[str, float]:
    """Return node -> energy of the noise that INT8 adds to its result, over the result's own.

    model: the float one. noise: of the tensors, see `probing`; a layer of which it lacks an input
    is left out.
    """
    found: dict[str, float] = {}
    inputs: dict[str, list[Stored]] = {}
    for (node, _), each in readers(placed, table).items():
        inputs.setdefault(node, []).append(each)
    for weight in placed.weights:
        read = inputs.get(weight.node, [])
        if read and all(each in noise for each in read):
            own = _weight_noise(weight, model.graph.initializers.get(weight.tensor))
            found[weight.node] = own + sum(noise[each] for each in read)
    return found


def decibels(noise: float) -> float:
    """Return the ratio of signal to noise, from that of their energies; inf without noise."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


def readers(placed: Placement, table: CalibrationTable) -> dict[tuple[str, int], Stored]:
    """Return (node, input index) -> what is read there."""
    found = {}
    for reading in readings(placed.activations, table):
        step = float(activation_scale(reading.threshold, Precision.FP32))
        found.update(dict.fromkeys(reading.readers, Stored(reading.tensor, step)))
    return found


def _weight_noise(weight: Weight, value: ir.Value | None) -> float:
    """Return the noise of a layer's weights: uniform within a step, as none is clipped."""
    tensor = constant(value)
    if tensor is None:
        return 0.0
    array = tensor.numpy()
    steps = weight_scales(array, weight.axis, Precision.FP32).astype(np.float64)
    energy = float(np.vdot(array, array))
    changed = _UNIFORM * float(np.square(steps).mean()) * array.size
    return changed / energy if energy > 0 else 0.0
