"""Signal to noise of a quantised file against the float one, in ONNX Runtime, nothing optimised.

An output that a Softmax ends is measured before it, less the mean of its classes, which Softmax
does not see: a saturated one says next to nothing. Where all classes are equal, as in networks
whose weights are all one number, the mean is what is left to measure. There are as many images as
give some thousands of values, where outputs are few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import onnx
from foreign_engine import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Reals: TypeAlias = NDArray[np.float64]

FEWEST, MOST = 6, 96
"""Images that are compared."""
VALUES = 3000
"""Numbers of the smallest output, on all images, that are enough."""
BEHIND = ("Identity", "Reshape", "Cast", "QuantizeLinear", "DequantizeLinear")
"""Ops that may stand behind a Softmax."""
LEAST = 1e-12
"""Of the signal, that counts as noise at least: 120 dB is exact."""
ROUNDING = 1e-5
"""Of an output's largest magnitude, below which differences say nothing."""


class Output(NamedTuple):
    """An output on all images."""

    values: Reals
    """float64[images, ...]."""
    less_mean: Callable[[], Reals] | None
    """The same less the mean of the classes, where a Softmax follows."""


class Wanted(NamedTuple):
    """What the float file gives."""

    outputs: list[Output]
    images: NDArray[np.float32]
    """The ones that were enough."""

    @property
    def same(self) -> bool:
        """Return whether no output depends on the image: then there is nothing to compare."""
        return all(bool(_nothing(o.values, np.ptp(o.values, axis=0))) for o in self.outputs)


def wanted(model: Path, images: NDArray[np.float32]) -> Wanted:
    """Return the float file's outputs on enough images."""
    least = min(output.values.size for output in _outputs(model, images[:1]))
    used = images[: max(FEWEST, min(MOST, math.ceil(VALUES / least)))]
    return Wanted(_outputs(model, used), used)


def ratios(model: Path, float_: Wanted) -> list[float]:
    """Return the signal to noise ratio of each output in dB, the mean of all images'."""
    found = _outputs(model, float_.images)
    return [_compared(*pair) for pair in zip(float_.outputs, found, strict=True)]


def _compared(wanted: Output, found: Output) -> float:
    if wanted.less_mean is not None and found.less_mean is not None:
        centred = wanted.less_mean()
        if not _nothing(wanted.values, centred):
            return _ratio(centred, found.less_mean())
    return _ratio(wanted.values, found.values)


def _nothing(values: Reals, differences: Reals) -> bool:
    return float(np.abs(differences).max()) <= ROUNDING * float(np.abs(values).max())


def _ratio(wanted: Reals, found: Reals) -> float:
    axes = tuple(range(1, wanted.ndim))
    found = found.reshape(wanted.shape)
    signal, noise = np.square(wanted).sum(axes), np.square(found - wanted).sum(axes)
    used = signal > 0
    decibels = 10 * np.log10(signal[used] / np.maximum(noise[used], signal[used] * LEAST))
    return round(float(decibels.mean()), 2) if used.any() else 0.0


def _outputs(model: Path, images: NDArray[np.float32]) -> list[Output]:
    """Return the float outputs of a model on images, one at a time."""
    proto = onnx.load(model)
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    watched = dict(_watched(proto.graph, opset))
    known = {value.name for value in proto.graph.output}
    for name in watched.keys() - known:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        proto.graph.output.append(value)
    session = opened(proto.SerializeToString())
    given = session.get_inputs()[0]
    names = list(watched)
    rows = [session.run(names, {given.name: image[None]}) for image in images]
    return [
        _output(np.stack([np.asarray(row[i], np.float64) for row in rows]), watched[name])
        for i, name in enumerate(names)
    ]


def _output(values: Reals, axes: Callable[[int], tuple[int, ...]] | None) -> Output:
    if axes is None:
        return Output(values, None)
    return Output(values, lambda: values - values.mean(axes(values.ndim), keepdims=True))


def _watched(
    graph: onnx.GraphProto, opset: int
) -> Iterator[tuple[str, Callable[[int], tuple[int, ...]] | None]]:
    """Yield the tensors that stand for the float outputs, and the axes of a Softmax behind them.

    The axes are of the stacked values: rank -> axes.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            continue
        node = makers.get(value.name)
        while node is not None and node.op_type in BEHIND:
            node = makers.get(node.input[0])
        if node is None or node.op_type != "Softmax":
            yield value.name, None
        elif opset < SOFTMAX_OF_ONE_AXIS:
            first = next((a.i for a in node.attribute if a.name == "axis"), 1)
            yield node.input[0], lambda rank, f=first: tuple(range(1 + f, rank)) or (-1,)  # type: ignore[misc]
        else:
            yield node.input[0], lambda _: (-1,)


SOFTMAX_OF_ONE_AXIS = 13
"""First opset where Softmax is not over all axes from one on."""
