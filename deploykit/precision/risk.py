"""What INT8 may cost a network, foretold from its weights, before anything is calibrated.

An activation has one step for all of its channels. Where one channel reaches far, the step is wide
for the others, and the layer that reads them multiplies their rounding as it multiplies them. How
far channels reach is estimated from the weights that make them, layer by layer: with independent
inputs of the size a_i the channel o has the size a_o = sqrt(sum_i a_i^2 |W_oi|^2). The kernels' own
rounding counts too, by the largest weight of each channel, as where the branches of a RepVGG block
meet in the centre of one kernel. Where steps are known, as in a Q/DQ graph, a second sign is told
from them: rounding that is large beside the step of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from deploykit.graph import inferring, scaling
from deploykit.graph.editing import constant, integer, is_op
from deploykit.precision.lint import graph as qdq
from deploykit.values import INT8_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.values import CalibrationTable, Json

    Sizes: TypeAlias = NDArray[np.float64]
    """float64[channels], relative to each other."""

Level: TypeAlias = Literal["low", "high"]
HIGH = 20.0
"""Decibels of signal over rounding, below which a layer is at risk. Trained networks that keep what
they can have 25 and more in every layer; where channels were skewed until it was lost, the worst
layers have less than 10."""
_REACH = 4.0
"""Largest value of a channel, in its root mean squares."""
_LAYERS = (*scaling.OPS, "MatMul")
_SAME = (
    *(
        "AveragePool",
        "Cast",
        "Clip",
        "DequantizeLinear",
        "Dropout",
        "Elu",
        "Gelu",
        "GlobalAveragePool",
    ),
    *("GlobalMaxPool", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mish", "Pad", "PRelu"),
    *("QuantizeLinear", "Relu", "Resize", "Selu", "Softplus", "Swish"),
)
"""Operators behind which each channel is about as large as before."""
_GATES = ("Sigmoid", "HardSigmoid", "Tanh")
"""Operators whose results are about 1 at most, whatever they are of."""


class LayerRisk(NamedTuple):
    """What is foretold of one layer."""

    name: str
    decibels: float
    """Signal over rounding in its result, estimated."""
    uneven: float
    """Decibels that are lost because its input's channels are not equally large."""
    kernel: float
    """Largest weight over the root mean square, of the worst output channel."""


@dataclass(frozen=True)
class Risk:
    """What is foretold of a network, and from what."""

    layers: tuple[LayerRisk, ...]
    """The worst first."""
    total: int
    """Layers with weights, those included of whose inputs nothing is known."""
    stepped: bool = False
    """Whether steps of activations are known too."""

    @property
    def worst(self) -> tuple[LayerRisk, ...]:
        """Return the layers at risk."""
        return tuple(layer for layer in self.layers if layer.decibels < HIGH)

    @property
    def level(self) -> Level:
        """Return whether a layer is at risk."""
        return "high" if self.worst else "low"

    @property
    def limit(self) -> float:
        """Return the decibels below which a layer is at risk."""
        return HIGH

    @property
    def basis(self) -> str:
        """Return what it is told from."""
        sources = "weights and steps" if self.stepped else "weights alone"
        return f"estimated from {sources} for {len(self.layers)} of {self.total} layers"

    def to_json(self) -> Json:
        """Return it as plain JSON values."""
        layers = [each._asdict() for each in self.layers]
        return {"level": self.level, "high_below": HIGH, "basis": self.basis, "layers": layers}


@np.errstate(over="ignore", invalid="ignore")
def risk(model: ir.Model, table: CalibrationTable | None = None) -> Risk | None:
    """Return what is foretold of a network, float or with Q/DQ; None where nothing is known.

    table: Steps of its tensors; None: those of its Q nodes, as far as it has some. The model is
    left as it is, save that its shapes are inferred.
    """
    inferring.infer(model)
    steps = _steps(model, table)
    sizes: dict[ir.Value, Sizes] = {}
    layers, total = [], 0
    for node in model.graph:
        kernel = _kernel(node)
        if kernel is None:
            found = _passed(node, sizes)
            sizes.update({} if found is None else {node.outputs[0]: found})
            continue
        total += 1
        given = sizes.get(_data(node))
        known = given is not None and given.size == kernel.inputs
        layer = _Layer(kernel, given if known and given is not None else np.ones(kernel.inputs))
        if not np.isfinite(layer.signal).all():
            continue
        sizes[node.outputs[0]] = layer.sizes
        if known and layer.live.any():
            layers.append(layer.risk(str(node.name), _pair(node, steps)))
    ranked = sorted(layers, key=lambda each: each.decibels)
    return Risk(tuple(ranked), total, bool(steps)) if ranked else None


class _Kernel(NamedTuple):
    """The weights of a layer."""

    energy: NDArray[np.float64]
    """float64[groups, out / groups, in / groups]: of each window."""
    peak: NDArray[np.float64]
    """float64[groups, out / groups]: the largest magnitude."""
    window: int
    """Weights of one window."""

    @property
    def inputs(self) -> int:
        """Return the channels that it reads."""
        groups, _, each = self.energy.shape
        return int(groups * each)


@dataclass(frozen=True)
class _Layer:
    """A layer, and how large the channels are that it reads."""

    kernel: _Kernel
    given: Sizes

    @property
    def _parts(self) -> NDArray[np.float64]:
        groups, _, each = self.kernel.energy.shape
        found: NDArray[np.float64] = np.square(self.given).reshape(groups, 1, each)
        return found

    @property
    def signal(self) -> NDArray[np.float64]:
        """Return the energy of each channel that it gives."""
        found: NDArray[np.float64] = (self._parts * self.kernel.energy).sum(-1)
        return found

    @property
    def live(self) -> NDArray[np.bool_]:
        """Return which channels hold anything."""
        return self.signal > _DEAD * max(float(self.signal.max(initial=0.0)), _LEAST)

    @property
    def sizes(self) -> Sizes:
        """Return the sizes of its channels."""
        found: Sizes = np.sqrt(self.signal).reshape(-1)
        return found

    def risk(self, name: str, steps: tuple[float, float] | None) -> LayerRisk:
        """Return what is foretold of it; steps: of its input and its result."""
        live, signal, kernel = self.live, self.signal, self.kernel
        gain = kernel.energy.sum(-1)[live]
        largest = float(np.square(self.given).max())
        uneven = float((largest * gain / signal[live]).mean())
        rounding = uneven * (_REACH / INT8_LEVELS) ** 2 / 12
        wide = np.square(kernel.peak[live] / INT8_LEVELS) / 12
        own = wide * kernel.window * np.broadcast_to(self._parts.sum(-1), signal.shape)[live]
        decibels = -_db(rounding + float((own / signal[live]).mean()))
        mean = np.sqrt(kernel.energy.mean(-1)[live] / kernel.window)
        if steps is not None:
            before, after = steps
            result = (INT8_LEVELS * after / _REACH) ** 2
            decibels = min(decibels, _db(result / (before**2 / 12 * float(gain.mean()))))
        return LayerRisk(name, decibels, _db(uneven), float((kernel.peak[live] / mean).max()))


_DEAD, _LEAST = 1e-6, 1e-300
"""Of the largest channel's energy: what has less is taken for dead; and what is kept from 0."""


def _db(ratio: float) -> float:
    return 10 * math.log10(max(ratio, _LEAST))


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # every layer has one
    return value


def _kernel(node: ir.Node) -> _Kernel | None:
    """Return the weights of a layer, behind a DQ or not; None for another node."""
    if not is_op(node, *_LAYERS) or node.inputs[0] is None:
        return None
    weights = _weights(node.inputs[1])
    if weights is None or weights.ndim < 2 or (is_op(node, "MatMul") and weights.ndim > 2):
        return None
    if not weights.size or not np.isfinite(weights).all():
        return None
    parts = scaling.by_channels(node, weights)
    squares = np.square(parts.reshape(*parts.shape[:3], -1))
    return _Kernel(squares.sum(-1), np.sqrt(squares.max((-1, -2))), squares.shape[-1])


def _weights(value: ir.Value | None) -> NDArray[np.float64] | None:
    """Return constant weights, or those that a DQ makes of constant levels."""
    plain, behind = constant(value), qdq.dequantized(value)
    if plain is not None or behind is None or behind.scale is None:
        return None if plain is None else plain.astype(np.float64)
    levels = constant(behind.node.inputs[0])
    shape = [1] * (0 if levels is None else levels.ndim)
    if levels is None or (not behind.per_tensor and behind.axis >= levels.ndim):
        return None
    if not behind.per_tensor:
        shape[behind.axis] = -1
    zero = 0.0 if behind.zero is None else behind.zero.astype(np.float64).reshape(shape)
    found: NDArray[np.float64] = (levels.astype(np.float64) - zero) * behind.scale.astype(
        np.float64
    ).reshape(shape)
    return found


def _passed(node: ir.Node, sizes: Mapping[ir.Value, Sizes]) -> Sizes | None:
    """Return the sizes of what a node that is no layer gives; None: unknown."""
    inputs = [value for value in node.inputs if value is not None]
    known = [sizes[value] for value in inputs if value in sizes]
    if not known:
        return None
    if is_op(node, *_SAME, *_GATES):
        return known[0] if inputs[0] in sizes else None
    if is_op(node, "Mul"):
        ungated = [sizes[v] for v in inputs if v in sizes and not is_op(v.producer(), *_GATES)]
        return _together(ungated or known, lambda parts: np.prod(parts, axis=0))
    if is_op(node, "Add", "Sub", "Sum"):
        return _together(known, lambda parts: np.sqrt(np.square(parts).sum(0)))
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 0
    along = is_op(node, "Concat") and rank > 1 and integer(node, "axis", 0) % rank == 1
    return np.concatenate(known) if along and len(known) == len(inputs) else None


def _together(known: list[Sizes], function: Callable[[list[Sizes]], Sizes]) -> Sizes | None:
    alike = {each.size for each in known}
    return function(known) if len(alike) == 1 else None


def _steps(model: ir.Model, table: CalibrationTable | None) -> dict[str, float]:
    """Return tensor -> its step."""
    if table is not None:
        return {name: each.scale for name, each in table.ranges.items() if each.scale > 0}
    found = {}
    for node in model.graph:
        scale = qdq.step(node).scale if is_op(node, "QuantizeLinear") else None
        if scale is not None and scale.size == 1 and float(scale.reshape(())) > 0:
            found[str(_data(node).name)] = float(scale.reshape(()))
    return found


def _pair(node: ir.Node, steps: Mapping[str, float]) -> tuple[float, float] | None:
    """Return the steps of a layer's input and of its result; None where one has none."""
    before, after = _data(node), node.outputs[0]
    while is_op(before.producer(), "DequantizeLinear", "QuantizeLinear"):
        maker = before.producer()
        assert maker is not None  # it is one of these
        before = _data(maker)
    while str(after.name) not in steps:
        readers = {reader for reader, _ in after.uses()}
        reader = readers.pop() if len(readers) == 1 else None
        if reader is None or not is_op(reader, *_SAME):
            return None
        after = reader.outputs[0]
    first = steps.get(str(before.name))
    return None if first is None else (first, steps[str(after.name)])
