"""Signal to noise of a quantised file against the float one, in ONNX Runtime, nothing optimised.

An output that a Softmax ends is measured before it: a saturated one says next to nothing. There
are as many images as give some thousands of values, where outputs are few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from foreign_engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FEWEST, MOST = 6, 96
"""Images that are compared."""
VALUES = 3000
"""Numbers of the smallest output, on all images, that are enough."""
BEHIND = ("Identity", "Reshape", "Cast", "QuantizeLinear", "DequantizeLinear")
"""Ops that may stand behind a Softmax."""
LEAST = 1e-12
"""Of the signal, that counts as noise at least: 120 dB is exact."""
SAME = 1e-5
"""Of an output's root mean square, below which its changes from image to image are rounding."""


class Wanted(NamedTuple):
    """What the float file gives."""

    outputs: list[NDArray[np.float64]]
    """float64[images, ...] each."""
    images: NDArray[np.float32]
    """The ones that were enough."""

    @property
    def same(self) -> bool:
        """Return whether no output depends on the image: then there is nothing to compare."""
        with np.errstate(over="ignore"):
            return all(bool(np.all(o.std(0) <= SAME * np.abs(o).max())) for o in self.outputs)


def wanted(model: Path, images: NDArray[np.float32]) -> Wanted:
    """Return the float file's outputs on enough images."""
    few = _outputs(model, images[:1])
    least = min(output[0].size for output in few)
    used = images[: max(FEWEST, min(MOST, math.ceil(VALUES / least)))]
    return Wanted(_outputs(model, used), used)


def ratios(model: Path, float_: Wanted) -> list[float]:
    """Return the signal to noise ratio of each output in dB, the mean of all images'."""
    found = _outputs(model, float_.images)
    return [_ratio(*pair) for pair in zip(float_.outputs, found, strict=True)]


def _outputs(model: Path, images: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Return the float outputs of a model on images, one at a time."""
    proto = onnx.load(model)
    names = list(_watched(proto.graph))
    known = {value.name for value in proto.graph.output}
    for name in names:
        if name not in known:
            kind = onnx.TensorProto.FLOAT
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    session = opened(proto.SerializeToString())
    given = session.get_inputs()[0]
    rows = [session.run(names, {given.name: image[None]}) for image in images]
    return [np.stack([np.asarray(row[i], np.float64) for row in rows]) for i in range(len(names))]


def _watched(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the tensors that stand for the float outputs of a graph."""
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            continue
        node = makers.get(value.name)
        while node is not None and node.op_type in BEHIND:
            node = makers.get(node.input[0])
        softmax = node is not None and node.op_type == "Softmax"
        yield node.input[0] if softmax and node is not None else value.name


def _ratio(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    axes = tuple(range(1, wanted.ndim))
    signal, noise = np.square(wanted).sum(axes), np.square(found - wanted).sum(axes)
    used = signal > 0
    decibels = 10 * np.log10(signal[used] / np.maximum(noise[used], signal[used] * LEAST))
    return round(float(decibels.mean()), 2) if used.any() else 0.0
