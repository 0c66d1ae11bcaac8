"""Bias correction: what INT8 adds to a layer's result on average is taken off its bias.

Rounding and clipping do not cancel out: each output channel of a layer has a mean error, which all
positions of all images share and which the layers behind it see as a shift. It is measured with the
layer standing twice in the float graph, the second time with its input and its weights as INT8
holds them, over a few images,

    shift[c] = -m[c] * m[c]^2 / (m[c]^2 + s[c]^2)

with m the mean over the images of each one's mean error, and s^2 the variance of that mean as the
images scatter: an error that differs from image to image as much as its mean is no bias.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
1906.04721, section 4.2, measured as in appendix D; all layers in one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.backends import onnxruntime
from deploykit.graph import scaling
from deploykit.graph.editing import is_op
from deploykit.precision.appending import SINGLE, Appended
from deploykit.precision.quality import readers
from deploykit.precision.quantization import rounding
from deploykit.precision.quantization.shifting import bias
from deploykit.precision.quantization.writing import appended_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.precision.placement import Placement
    from deploykit.precision.probing import Stored
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

    Real: TypeAlias = NDArray[np.float64]

_FEWEST = 2
"""Images that say how far a mean scatters."""


def shifts(
    model: Opened, placed: Placement, table: CalibrationTable, feeds: Iterable[Arrays]
) -> dict[str, tuple[float, ...]]:
    """Return layer -> what is to be added to its bias, one number per output channel.

    Layers without a place for a bias, and those without an error, are left out.

    Raises: InputError without a range; ModelError, BackendError where the model does not run.
    """
    add = Appended(model, "correct")
    rounding.remember(add.graph, table.ways)
    asked = _asked(add, placed, table)
    session = onnxruntime.open_model(add.opened())
    seen: dict[str, list[Real]] = {name: [] for name in asked}
    for feed in feeds:
        outputs = session.run(feed)
        for name, answer in asked.items():
            found = outputs[answer].astype(np.float64)
            if found.size and not np.isnan(found).all():  # an image without objects has no rows
                seen[name].append(found.reshape(*found.shape[:2], -1).mean((0, 2)))
    shifted = {name: _shift(np.array(errors)) for name, errors in seen.items()}
    return {name: tuple(each.tolist()) for name, each in shifted.items() if each.any()}


def _shift(errors: Real) -> Real:
    """Return float64[channels] of float64[images, channels], rounded as a file holds it."""
    if len(errors) < _FEWEST:
        return np.zeros(errors.shape[-1])
    finite = np.where(np.isfinite(errors).all(0), errors, 0.0)
    square, variance = np.square(finite.mean(0)), finite.var(0, ddof=1) / len(errors)
    share = np.divide(square, square + variance, out=np.zeros_like(square), where=square > 0)
    found: Real = (-finite.mean(0) * share).astype(np.float32).astype(np.float64)
    return found


def _asked(add: Appended, placed: Placement, table: CalibrationTable) -> dict[str, str]:
    """Return layer -> output with its mean error, float32[images, channels, 1...]; nodes added."""
    nodes = {str(node.name): node for node in add.graph}
    reads: Mapping[tuple[str, int], Stored] = readers(placed, table)
    stored, found = dict["Stored", "ir.Value"](), {}
    for weight in placed.weights:
        node = nodes[weight.node]
        value, read = node.inputs[0], reads.get((weight.node, 0))
        if bias(node) is None or value is None or node.outputs[0].dtype is not SINGLE:
            continue
        if read is not None:
            if read not in stored:
                stored[read] = add.stored(add.values[read.tensor], read.step)
            value = stored[read]
        weights = appended_weights(add, node, weight)
        twin = add.again(node, [value, weights, *node.inputs[2:]])
        error = add.node("Sub", twin, node.outputs[0])
        found[weight.node] = add.answer(_mean(add, node, error), rank=3)
    return found


def _mean(add: Appended, node: ir.Node, error: ir.Value) -> ir.Value:
    """Return the mean over the places of a map, or over the rows of a product; NaN without rows."""
    if is_op(node, "Conv"):
        return add.node("GlobalAveragePool", error)
    columns = scaling.channels(node)
    form = add.constant(f"rows.{columns}", np.array([1, -1, columns], np.int64))
    rows = add.node("Transpose", add.node("Reshape", error, form), perm=(0, 2, 1))
    total = add.node("ReduceSum", rows, add.constant("over", np.array([2], np.int64)), keepdims=1)
    size = add.node("Size", rows, dtype=ir.DataType.INT64)
    values = add.node("Cast", size, to=int(SINGLE))
    channels = add.constant(f"channels.{columns}", np.array(columns, np.float32))
    return add.node("Div", total, add.node("Div", values, channels))
