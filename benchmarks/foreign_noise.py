"""Signal to noise of a quantised file against the float one, in ONNX Runtime, nothing optimised.

An output that a Softmax ends is compared by the logarithms of its probabilities less their mean,
which are the numbers before it less theirs: a saturated output says next to nothing. Where all
classes are equal, as in networks whose weights are all one number, it is compared as it is: what
changes then is its one value. There are as many images as give some thousands of values, where
outputs are few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import onnx
from foreign_engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Reals: TypeAlias = NDArray[np.float64]

FEWEST, MOST = 6, 96
"""Images that are compared."""
VALUES = 3000
"""Numbers of the smallest output, on all images, that are enough."""
BEHIND = ("Identity", "Reshape", "Cast")
"""Ops that may stand behind a Softmax."""
LEAST = 1e-12
"""Of the signal, that counts as noise at least: 120 dB is exact."""
ROUNDING = 1e-5
"""Of an output's largest magnitude, below which differences say nothing."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""Probability that takes the place of 0."""


class Wanted(NamedTuple):
    """What the float file gives."""

    outputs: list[Reals]
    """float64[images, ...] each, as it is compared."""
    classes: Mapping[int, int]
    """Output that a Softmax ends -> first axis of its classes."""
    images: NDArray[np.float32]
    """The ones that were enough."""

    @property
    def same(self) -> bool:
        """Return whether no output depends on the image."""
        return all(_nothing(output, np.ptp(output, axis=0)) for output in self.outputs)


def wanted(model: Path, images: NDArray[np.float32]) -> Wanted:
    """Return the float file's outputs on enough images."""
    least = min(output.size for output in _outputs(model, images[:1]))
    used = images[: max(FEWEST, min(MOST, math.ceil(VALUES / least)))]
    outputs = _outputs(model, used)
    ends = {i: axis + (axis >= 0) for i, axis in _softmaxes(onnx.load(model))}  # images in front
    classes = {i: axis for i, axis in ends.items() if not _even(outputs[i], axis)}
    return Wanted(_compared(outputs, classes), classes, used)


def ratios(model: Path, float_: Wanted) -> list[float]:
    """Return the signal to noise ratio of each output in dB, the mean of all images'."""
    found = _compared(_outputs(model, float_.images), float_.classes)
    return [_ratio(*pair) for pair in zip(float_.outputs, found, strict=True)]


def _compared(outputs: list[Reals], classes: Mapping[int, int]) -> list[Reals]:
    return [_centred(o, classes[i]) if i in classes else o for i, o in enumerate(outputs)]


def _centred(probabilities: Reals, first: int) -> Reals:
    """Return logarithms less their mean over the classes, on all axes from one on."""
    logarithms = np.log(np.maximum(probabilities, SMALLEST))
    axes = tuple(range(first % logarithms.ndim, logarithms.ndim))
    centred: Reals = logarithms - logarithms.mean(axes, keepdims=True)
    return centred


def _even(probabilities: Reals, first: int) -> bool:
    return float(np.abs(_centred(probabilities, first)).max()) < ROUNDING


def _nothing(values: Reals, differences: Reals) -> bool:
    return float(np.abs(differences).max()) <= ROUNDING * float(np.abs(values).max())


def _ratio(wanted: Reals, found: Reals) -> float:
    axes = tuple(range(1, wanted.ndim))
    signal, noise = np.square(wanted).sum(axes), np.square(found - wanted).sum(axes)
    used = signal > 0
    decibels = 10 * np.log10(signal[used] / np.maximum(noise[used], signal[used] * LEAST))
    return round(float(decibels.mean()), 2) if used.any() else 0.0


def _outputs(model: Path, images: NDArray[np.float32]) -> list[Reals]:
    """Return the float outputs of a model on images, one at a time."""
    session = opened(str(model))
    given = session.get_inputs()[0]
    names = [each.name for each in session.get_outputs() if each.type == "tensor(float)"]
    rows = [session.run(names, {given.name: image[None]}) for image in images]
    return [np.stack([np.asarray(row[i], np.float64) for row in rows]) for i in range(len(names))]


def _softmaxes(model: onnx.ModelProto) -> Iterator[tuple[int, int]]:
    """Yield the float outputs that a Softmax ends, and the first axis that it is over."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    makers = {name: node for node in model.graph.node for name in node.output}
    floats = [o for o in model.graph.output if o.type.tensor_type.elem_type == _FLOAT]
    for index, value in enumerate(floats):
        node = makers.get(value.name)
        while node is not None and node.op_type in BEHIND:
            node = makers.get(node.input[0])
        if node is not None and node.op_type == "Softmax":
            default = 1 if opset < ONE_AXIS else -1
            yield index, next((a.i for a in node.attribute if a.name == "axis"), default)


_FLOAT = onnx.TensorProto.FLOAT
ONE_AXIS = 13
"""First opset where Softmax is over one axis, not over all from one on; here it is the last."""
