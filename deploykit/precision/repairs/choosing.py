"""The range of each tensor by what it does to the layers that read it.

The error of a tensor says little where its channels differ: one that reaches far makes the others'
errors small beside its own. What counts is what a layer makes of them. For each method's threshold
the error e = x - Q(x) is sent through the layer's weights; its energy in each output channel, over
how much that channel varies, is averaged over the channels, and over the layers that read the
tensor. Tensors that meet in a Concat take their range from one method together. Only one number per
channel leaves the runtime.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.graph.editing import is_op
from deploykit.precision.appending import SINGLE, Appended
from deploykit.precision.quantization.arithmetic import activation_scale
from deploykit.precision.quantization.sharing import readings
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.precision.placement import Placement
    from deploykit.precision.quantization.sharing import Reading
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

    Real: TypeAlias = NDArray[np.float64]

LABEL = "chosen by readers"
"""What a table says of its method."""
WHOLE = "entropy"
"""The method that clips most. By the errors of layers it seldom wins, and rightly so for networks
that live on their large activations; and yet the outputs of others are several dB better with it,
for all tensors (RepVGG) or those whose readers choose it (EfficientNet). So outputs decide."""
LABELS = (LABEL, f"{WHOLE}, chosen by outputs")
"""What a table may say of its method."""
_STILL = 1e-6
"""Of the most that a channel varies: what varies less is dead."""


class _Asked(NamedTuple):
    """One layer that reads one tensor, and the outputs that tell of it."""

    tensors: tuple[str, ...]
    """Whose ranges it needs."""
    error: str
    """float32[methods * images, channels, 1...]: mean squares of the error."""
    mean: str
    """float32[images, channels, 1...]: of the layer's result."""
    square: str


def chosen(
    model: Opened, placed: Placement, table: CalibrationTable, feeds: Iterable[Arrays]
) -> tuple[CalibrationTable, CalibrationTable]:
    """Return `table`, with the range of each tensor that of the method which costs readers least.

    The first one without WHOLE among the methods, the second one with it.

    table: with candidates; where it has none for a tensor, its range stays.

    Raises: InputError without a range; ModelError, BackendError where the model does not run.
    """
    methods = sorted({name for each in table.candidates.values() for name in each})
    if not methods:
        return table, table
    costs = _costs(model, placed, table, methods, feeds)
    others = [name for name in methods if name != WHOLE]
    columns = [methods.index(name) for name in others]
    fewer = {names: cost[columns] for names, cost in costs.items()}
    return _cheapest(table, others, fewer), _cheapest(table, methods, costs)


def _cheapest(
    table: CalibrationTable, methods: Sequence[str], costs: Mapping[tuple[str, ...], Real]
) -> CalibrationTable:
    ranges = dict(table.ranges)
    for group in _groups(costs):
        cost = np.sum([costs[names] for names in costs if set(names) <= group], axis=0)
        method = methods[int(np.argmin(cost))]
        for name in group & table.candidates.keys():
            ranges[name] = replace(ranges[name], threshold=table.candidates[name][method])
    return replace(table, ranges=ranges, observer=LABEL)


def whole(table: CalibrationTable) -> CalibrationTable:
    """Return `table` with the ranges of `WHOLE` for all tensors that it has one for."""
    ranges = {
        name: replace(each, threshold=table.candidates.get(name, {}).get(WHOLE, each.threshold))
        for name, each in table.ranges.items()
    }
    return replace(table, ranges=ranges, observer=LABELS[1])


def _groups(costs: Mapping[tuple[str, ...], Real]) -> list[set[str]]:
    """Return the tensors that are read with one range, together with those of others of theirs."""
    groups: list[set[str]] = []
    for names in costs:
        meeting = [group for group in groups if group & set(names)]
        groups = [group for group in groups if group not in meeting]
        groups.append(set(names).union(*meeting))
    return groups


def _costs(
    model: Opened,
    placed: Placement,
    table: CalibrationTable,
    methods: Sequence[str],
    feeds: Iterable[Arrays],
) -> dict[tuple[str, ...], Real]:
    """Return ranges -> float64[methods], the summed cost of their layers."""
    add = Appended(model, "choose")
    asked = list(_ask(add, placed, table, methods))
    session = onnxruntime.open_model(add.opened())
    sums: dict[int, list[Real]] = {}
    for feed in feeds:
        outputs = session.run(feed)
        for number, each in enumerate(asked):
            found = [
                _per_channel(outputs[name], n)
                for name, n in zip(each[1:], (len(methods), 1, 1), strict=True)
            ]
            known = sums.get(number)
            sums[number] = found if known is None else [*map(np.add, known, found)]
    costs: dict[tuple[str, ...], Real] = {}
    for number, (error, mean, square) in sums.items():
        names = asked[number].tensors
        costs[names] = costs.get(names, 0.0) + _cost(error, mean[0], square[0])
    return costs


def _per_channel(answer: NDArray[np.generic], methods: int) -> Real:
    """Return float64[methods, channels], the mean over images."""
    channels = answer.shape[1]
    found: Real = answer.astype(np.float64).reshape(methods, -1, channels).mean(1)
    return np.where(np.isfinite(found), found, 0.0)


def _cost(error: Real, mean: Real, square: Real) -> Real:
    """Return float64[methods]: energy of the error over how much a channel varies."""
    spread = square - np.square(mean)
    live = spread > _STILL * spread.max(initial=0.0)
    cost: Real = (error[:, live] / spread[live]).mean(1) if live.any() else np.zeros(len(error))
    return cost


def _ask(
    add: Appended, placed: Placement, table: CalibrationTable, methods: Sequence[str]
) -> Iterator[_Asked]:
    """Yield what is asked of every layer with constant weights, whose nodes are added."""
    nodes = {str(node.name): node for node in add.graph}
    weighted = {weight.node for weight in placed.weights}
    for reading in tuple(readings(placed.activations, table)):
        layers = [nodes[name] for name, index in reading.readers if index == 0 and name in weighted]
        value = add.values[reading.tensor]
        if not layers or value.dtype is not SINGLE or not _competing(reading, table):
            continue
        errors = _errors(add, value, [_threshold(reading, table, name) for name in methods])
        for node in layers:
            if not is_op(node, "Conv", "Gemm"):
                continue
            result, off = node.outputs[0], add.again(node, [errors, node.inputs[1]])
            off.shape = None  # its batch is that of all methods
            squares = [add.node("Mul", each, each) for each in (off, result)]
            answers = [_over_places(add, node, each) for each in (squares[0], result, squares[1])]
            yield _Asked(tuple(reading.ranges), *answers)


def _competing(reading: Reading, table: CalibrationTable) -> bool:
    return all(table.candidates.get(name) for name in reading.ranges)


def _threshold(reading: Reading, table: CalibrationTable, method: str) -> float:
    return max(table.candidates[name][method] for name in reading.ranges)


def _errors(add: Appended, value: ir.Value, thresholds: Sequence[float]) -> ir.Value:
    """Return what each threshold changes in a tensor, one after the other along the batch."""
    steps = [float(activation_scale(each, Precision.FP32)) for each in thresholds]
    errors = [add.node("Sub", value, add.stored(value, step)) for step in steps]
    return add.node("Concat", *errors, axis=0)


def _over_places(add: Appended, node: ir.Node, value: ir.Value) -> str:
    """Return the output with the mean of each image's channels."""
    mean = (
        add.node("GlobalAveragePool", value) if is_op(node, "Conv") else add.node("Identity", value)
    )
    return add.answer(mean, rank=4 if is_op(node, "Conv") else 2)
