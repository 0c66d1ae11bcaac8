"""How far each channel of a tensor reaches on a few images."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.precision.appending import SINGLE, Appended

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened

    Reaches: TypeAlias = Mapping[str, NDArray[np.float64]]
    """Tensor -> float64[channels], the largest magnitude of each; one number for the whole where
    it has no axis 1 of a known size."""


_ROWS = 2
"""Dimensions of a tensor whose channels are single numbers."""
_POOLED = 5
"""Dimensions at most of what ONNX Runtime pools: windows of a map have six."""


def reaches(model: Opened, tensors: Iterable[str], feeds: Iterable[Arrays]) -> Reaches:
    """Return the reach of the channels, axis 1, of float32 tensors over all `feeds`.

    No tensor leaves the runtime. One that is empty reaches nowhere.

    Raises: ModelError, BackendError where the model does not run.
    """
    add = Appended(model, "reach")
    asked = {
        name: add.answer(_largest(add, add.values[name]), rank=1)
        for name in dict.fromkeys(tensors)
        if name in add.values and add.values[name].dtype is SINGLE
    }
    session = onnxruntime.open_model(add.opened())
    found: dict[str, NDArray[np.float64]] = {}
    for feed in feeds:
        outputs = session.run(feed)
        for name, answer in asked.items():
            reach = _over_images(outputs[answer])
            found[name] = np.maximum(found[name], reach) if name in found else reach
    return found


def _largest(add: Appended, value: ir.Value) -> ir.Value:
    """Return max|x| of each image's channels, or over all; 0 where there are no values."""
    shape = () if value.shape is None else tuple(value.shape)
    magnitudes = add.node("Abs", value)
    if len(shape) > 1 and all(isinstance(size, int) and size > 0 for size in shape[1:]):
        if len(shape) > _POOLED:
            size = np.array([0, shape[1], -1], np.int64)
            magnitudes = add.node("Reshape", magnitudes, add.constant(f"flat.{shape[1]}", size))
        return magnitudes if len(shape) == _ROWS else add.node("GlobalMaxPool", magnitudes)
    flat = add.constant("flat", np.array([-1], np.int64))
    zero = add.constant("zero", np.zeros(1, np.float32))
    magnitudes = add.node("Concat", add.node("Reshape", magnitudes, flat), zero, axis=0)
    return add.node("ReduceMax", magnitudes, keepdims=0)


def _over_images(answer: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the largest finite number of each channel, 0 where there are no rows."""
    numbers = answer.astype(np.float64)
    finite = np.where(np.isfinite(numbers), numbers, 0.0)
    others = tuple(axis for axis in range(finite.ndim) if axis != 1)
    largest: NDArray[np.float64] = np.atleast_1d(finite.max(others, initial=0.0))
    return largest
