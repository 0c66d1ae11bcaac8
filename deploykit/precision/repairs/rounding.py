"""Weights rounded up or down as their layer's result wants it, not each to its nearest level.

Errors of weights add up in what a layer computes, and inputs go together: one weight up and another
down can cost less than both to the nearest. Each weight W / s gets a share h of the way from its
lower level to its upper one,

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

which is learnt by gradients of the layer's squared error, its inputs as INT8 holds them and its
wanted result from the float ones, and of a penalty 1 - |2h - 1|^b whose b falls from 20 to 2: so
that shares end at 0 or 1. The error needs only the second moments H = x_q x_q^T of a layer's
patches and C = x x_q^T,

    error = tr(w H w^T) - 2 tr(w (W C)^T) + constant

so that images are looked at once. At last single weights go the other way as long as that lowers
the error. An output channel keeps its nearest levels where learnt ones are
not better.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv
2004.10568, sections 3 and 4, with the error before the activation function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.graph import inferring
from deploykit.graph.editing import constant, integer, is_op, text
from deploykit.precision.quality import readers
from deploykit.precision.quantization import given, rounding
from deploykit.precision.quantization.arithmetic import along, weight_scales
from deploykit.recipes import opened
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.precision.placement import Placement, Weight
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

    Floats: TypeAlias = NDArray[np.float32]
    Real: TypeAlias = NDArray[np.float64]

_WIDEST = 2304
"""Weights of an output channel up to which their second moments are kept, 40 MB."""
_PATCHES = 512
"""Of each image that are looked at."""
_STEPS, _FREE = 300, 0.2
"""Of the gradient, and the share of them without a penalty."""
_RATE, _PENALTY = 0.03, 0.05
_SHARP, _BLUNT = 20.0, 2.0
"""The penalty's exponent at first and at last."""
_STRETCH, _BELOW = 1.2, 0.1
_TURNS = 256
"""Weights of an output channel at most that go the other way after all."""
_HALF = 0.5
_MAP, _MATRIX = 4, 2
"""Dimensions of the weights of a convolution of maps, and of a product."""


class _Layer(NamedTuple):
    node: ir.Node
    weight: Weight
    input: ir.Value
    step: float
    """Of its input."""


class _Moments(NamedTuple):
    """Sums over patches, float64[groups, K, K] each, K the weights of an output channel."""

    second: Real
    cross: Real


def ways(
    model: Opened,
    placed: Placement,
    table: CalibrationTable,
    names: Collection[str],
    feeds: Iterable[Arrays],
) -> dict[str, rounding.Written]:
    """Return weight -> the ways that it is rounded, of those layers of `names` that can be learnt.

    They are convolutions of maps and products of rows, of weights whose levels no file gave and
    that no other layer has.

    Raises: InputError without a range; ModelError, BackendError where the model does not run.
    """
    graph = model.copy()
    inferring.infer(graph)
    layers = list(_layers(graph.graph, placed, table, names))
    known = {str(value.name) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    asked = {str(layer.input.name): layer.input for layer in layers}
    graph.graph.outputs.extend(value for name, value in asked.items() if name not in known)
    session = onnxruntime.open_model(opened.made(graph, model.path))
    seen: dict[str, _Moments] = {}
    for feed in feeds:
        outputs = {**feed, **session.run(feed)}
        for layer in layers:
            found = _moments(layer, outputs[str(layer.input.name)].astype(np.float32))
            before = seen.get(layer.weight.tensor, found)
            same = before is found
            seen[layer.weight.tensor] = found if same else _Moments(*map(np.add, before, found))
    learnt = ((layer, _learnt(layer, seen[layer.weight.tensor])) for layer in layers if seen)
    return {layer.weight.tensor: rounding.written(each) for layer, each in learnt if each.any()}


def _layers(
    graph: ir.Graph, placed: Placement, table: CalibrationTable, names: Collection[str]
) -> Iterator[_Layer]:
    nodes = {str(node.name): node for node in graph}
    reads = readers(placed, table)
    for weight in placed.weights:
        node, read = nodes[weight.node], reads.get((weight.node, 0))
        value, held = node.inputs[0], node.inputs[1]
        if weight.node not in names or read is None or value is None or held is None:
            continue
        array = constant(held)
        alone = len(held.uses()) == 1 and not given.has_levels(held)
        if array is not None and alone and _forms(node, array.shape) and weight.axis is not None:
            yield _Layer(node, weight, value, read.step)


def _forms(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Return whether a layer's patches are known here, and not too wide."""
    if is_op(node, "Conv"):
        stays = text(node, "auto_pad", "NOTSET") == "NOTSET"
        return stays and len(shape) == _MAP and int(np.prod(shape[1:])) <= _WIDEST
    plain = not integer(node, "transA", 0) if is_op(node, "Gemm") else is_op(node, "MatMul")
    return plain and len(shape) == _MATRIX and max(shape) <= _WIDEST


def _moments(layer: _Layer, values: Floats) -> _Moments:
    """Return those of a layer's patches in a batch."""
    held = np.clip(np.rint(values / layer.step), -128, 127) * np.float32(layer.step)
    exact, stored = (_patches(layer.node, np.nan_to_num(each)) for each in (values, held))
    second = np.matmul(stored, stored.transpose(0, 2, 1), dtype=np.float64)
    return _Moments(second, np.matmul(exact, stored.transpose(0, 2, 1), dtype=np.float64))


def _patches(node: ir.Node, values: Floats) -> Floats:
    """Return float32[groups, K, patches] of a batch: some of them, the same for all values."""
    if not is_op(node, "Conv"):
        rows = values.reshape(-1, values.shape[-1]).T[None]
        return rows[:, :, _some(rows.shape[2])]
    weight = constant(node.inputs[1])
    assert weight is not None  # `_layers` has looked
    pads, strides, dilations = (
        _numbers(node, name, default)
        for name, default in (("pads", 0), ("strides", 1), ("dilations", 1))
    )
    around = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    window = tuple(
        (size - 1) * each + 1 for size, each in zip(weight.shape[2:], dilations, strict=False)
    )
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(values, around), window, (2, 3))
    seen = seen[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    images, _, height, width = seen.shape[:4]
    places = _some(images * height * width)
    image, y, x = np.unravel_index(places, (images, height, width))
    groups = integer(node, "group", 1)
    found = seen[image, :, y, x].reshape(len(places), groups, -1)  # [patches, groups, K]
    return np.ascontiguousarray(found.transpose(1, 2, 0))


def _numbers(node: ir.Node, name: str, default: int) -> Sequence[int]:
    attribute = node.attributes.get(name)
    return [default] * 4 if attribute is None else attribute.as_ints()


def _some(count: int) -> NDArray[np.intp]:
    """Return at most _PATCHES of so many numbers, in order, the same in every run."""
    if count <= _PATCHES:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, _PATCHES, replace=False))


def _learnt(layer: _Layer, moments: _Moments) -> rounding.Ways:
    """Return the ways of a layer's weights, 0 where they go to the nearest level."""
    held, axis = constant(layer.node.inputs[1]), layer.weight.axis
    assert held is not None
    assert axis is not None  # `_layers` has looked
    weight = held.astype(np.float32)
    groups = len(moments.second)
    steps = along(weight_scales(weight, axis, Precision.FP32), weight.ndim, axis)
    exact = np.moveaxis((weight / steps).astype(np.float64), axis, 0)  # output channels in front
    scales = np.moveaxis(np.broadcast_to(steps.astype(np.float64), weight.shape), axis, 0)
    forms = (groups, exact.shape[0] // groups, -1)
    found = ways_of(exact.reshape(forms), scales.reshape(forms)[..., :1], moments)
    return np.ascontiguousarray(np.moveaxis(found.reshape(exact.shape), 0, axis))


def ways_of(exact: Real, steps: Real, moments: _Moments) -> rounding.Ways:
    """Return which way each of W / s goes, float64[groups, channels, K], by the moments."""
    target = np.matmul(exact * steps, moments.cross)

    def error(levels: Real) -> Real:
        held = levels * steps
        found: Real = (held * (held @ moments.second - 2 * target)).sum(-1, keepdims=True)
        return found

    nearest, low = np.rint(exact).clip(-127, 127), np.floor(exact)
    size = np.trace(moments.second, axis1=1, axis2=2)[:, None, None] / exact.shape[-1]
    unit = steps * np.where(size > 0, size, 1.0)
    shares = _shares(exact, lambda levels: ((levels * steps) @ moments.second - target) / unit)
    levels = _polished(low + (shares > _HALF), low, steps, moments.second, target).clip(-127, 127)
    better = error(levels) < error(nearest)
    found: rounding.Ways = np.where(better, np.sign(levels - nearest), 0).astype(np.int8)
    return found


def _polished(levels: Real, low: Real, steps: Real, second: Real, target: Real) -> Real:
    """Return levels of which single ones went the other way while that lowered the error."""
    size = np.diagonal(second, axis1=1, axis2=2)[:, None]
    slopes = (levels * steps) @ second - target
    group = np.arange(len(levels))[:, None]
    for _ in range(min(levels.shape[-1], _TURNS)):
        turn = np.where(levels > low, -1.0, 1.0) * steps
        gain = turn * (2 * slopes + turn * size)
        best = gain.argmin(-1)[..., None]
        helps = np.take_along_axis(gain, best, -1) < 0
        if not helps.any():
            break
        change = np.where(helps, np.take_along_axis(turn, best, -1), 0.0)
        moved = np.take_along_axis(levels, best, -1) + change / steps
        np.put_along_axis(levels, best, np.rint(moved), -1)
        slopes += change * second[group, best[..., 0]]
    return levels


def _shares(exact: Real, slope: Callable[[Real], Real]) -> Real:
    """Return the learnt share h of each weight's way up, by Adam. slope: of levels, the error's."""
    low = np.floor(exact)
    start = ((exact - low + _BELOW) / _STRETCH).clip(1e-3, 1 - 1e-3)
    logits = np.log(start / (1 - start))
    mean, square = np.zeros_like(exact), np.zeros_like(exact)
    shares = exact - low
    for step in range(1, _STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-logits))
        open_ = _STRETCH * sigmoid - _BELOW
        shares = open_.clip(0, 1)
        gradient = slope(low + shares)
        past = (step / _STEPS - _FREE) / (1 - _FREE)
        if past > 0:
            power = _BLUNT + (_SHARP - _BLUNT) * (1 + np.cos(np.pi * past)) / 2
            away = 2 * shares - 1
            gradient = gradient - _PENALTY * 2 * power * np.sign(away) * np.abs(away) ** (power - 1)
        inside = (open_ > 0) & (open_ < 1)
        gradient = np.where(inside, gradient, 0.0) * _STRETCH * sigmoid * (1 - sigmoid)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * np.square(gradient)
        ahead = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        logits -= _RATE * ahead
    return shares
