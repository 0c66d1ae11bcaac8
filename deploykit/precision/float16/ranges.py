"""Which nodes FP16 would break on real inputs: their tensors leave its range, or its precision.

The float32 model runs with the largest magnitude of every tensor as a further output, for an FP16
model in ONNX Runtime on a CPU computes most in float32 and shows no overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.backends import onnxruntime
from deploykit.backends.recorded import Recorded
from deploykit.graph.editing import is_op, unique, value_names
from deploykit.precision.float16.rules import MAX_HALF, SINGLE, Wide
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened

HEADROOM = 2.0
"""A tensor may become so many times larger on other inputs than on those it was seen on."""
MIN_NORMAL = 2.0**-14
"""FP16 numbers below it have fewer digits the smaller they are."""


@dataclass(frozen=True)
class Reached:
    """A float32 model on some inputs."""

    magnitudes: Mapping[str, float] = field(default_factory=dict)
    """Tensor -> its largest magnitude over all inputs."""
    ran: Recorded | None = None
    """The inputs, and the outputs; None: it was not run."""


def reach(model: Opened, feeds: Iterable[Arrays], known: Collection[str] = ()) -> Reached:
    """Return the largest magnitude of the float32 tensors of the main graph over all `feeds`.

    Left out are those `known`, and those that only a Relu reads: what it leaves of one is its
    output, and what it takes away does no harm even as an infinity.

    Raises: ModelError, BackendError where the model does not run.
    """
    graph = model.copy()
    ShapeInferencePass()(graph)
    own = [str(value.name) for value in graph.graph.outputs]
    names = _expose(graph.graph, known)
    session = onnxruntime.open_model(opened.made(graph, model.path))
    found = dict.fromkeys(names.values(), 0.0)
    given, results = list(feeds), []
    for feed in given:
        outputs = session.run(feed)
        results.append({name: outputs[name] for name in own})
        for output, name in names.items():
            found[name] = max(found[name], float(outputs[output]))
    specs = tuple(spec for spec in session.outputs if spec.name in own)
    return Reached(found, Recorded(session.inputs, specs, given, results))


def _expose(graph: ir.Graph, known: Collection[str]) -> dict[str, str]:
    """Make the largest magnitude of each tensor asked for an output; return output -> tensor."""
    taken, names = value_names(graph), dict[str, str]()
    flat, zero = (
        _constant(graph, unique(name, taken), array)
        for name, array in (
            ("reach.flat", np.array([-1], np.int64)),
            ("reach.zero", np.zeros(1, np.float32)),
        )
    )
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    seen = [value for node in graph for value in node.outputs]
    for value in [*inputs, *seen]:
        if value.dtype is not SINGLE or not value.name or value.name in known or _cut(value):
            continue
        largest = _largest(graph, value, (flat, zero), taken)
        graph.outputs.append(largest)
        names[str(largest.name)] = value.name
    return names


def _cut(value: ir.Value) -> bool:
    """Return whether nothing but a Relu reads a value."""
    readers = [node for node, _ in value.uses()]
    return len(readers) == 1 and is_op(readers[0], "Relu") and not value.is_graph_output()


def _largest(
    graph: ir.Graph, value: ir.Value, constants: tuple[ir.Value, ir.Value], taken: set[str]
) -> ir.Value:
    """Return a value, computed by new nodes, that is the largest magnitude in `value`.

    Where that may be empty, a zero is added, so that it has a maximum.
    """
    flat, zero = constants
    steps: list[tuple[str, tuple[ir.Value, ...], dict[str, int]]] = [("Abs", (), {})]
    if not _has_values(value, graph):
        steps += [("Reshape", (flat,), {}), ("Concat", (zero,), {"axis": 0})]
    for op, more, attributes in [*steps, ("ReduceMax", (), {"keepdims": 0})]:
        name = unique(f"{value.name}.reach", taken)
        result = ir.Value(name=name, type=ir.TensorType(SINGLE))
        graph.append(ir.node(op, [value, *more], attributes, outputs=[result], name=name))
        value = result
    value.shape = ir.Shape([])
    return value


def _has_values(value: ir.Value, graph: ir.Graph) -> bool:
    """Return whether a value is never empty: its sizes are known, or the images of the batch."""
    shapes = [each.shape for each in graph.inputs if each.shape is not None and len(each.shape)]
    batches = {str(shape[0]) for shape in shapes} - {"None"}
    sizes = () if value.shape is None else tuple(value.shape)
    known = [isinstance(size, int) and size > 0 for size in sizes]
    return len(sizes) > 1 and all(known[1:]) and (known[0] or str(sizes[0]) in batches)


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def unfit(graph: ir.Graph, reached: Mapping[str, float]) -> Wide:
    """Return each node that must not compute in FP16, for a tensor it reads or writes."""
    found: Wide = {}
    for node in graph:
        values = (*node.inputs, *node.outputs)
        reasons = (_reason(value, reached) for value in values if value is not None)
        reason = next(filter(None, reasons), None)
        if reason is not None:
            found[str(node.name)] = reason
    return found


def _reason(value: ir.Value, reached: Mapping[str, float]) -> str | None:
    largest = reached.get(str(value.name))
    if largest is None or value.const_value is not None:
        return None
    if not largest * HEADROOM <= MAX_HALF:
        return f"{value.name} reaches {largest:.3g}, and FP16 ends at {MAX_HALF:g}"
    if 0 < largest < MIN_NORMAL:
        return f"{value.name} stays below {largest:.2g}, where FP16 has few digits"
    return None


def with_int8(graph: ir.Graph, wide: Wide) -> Wide:
    """Return `wide` and what must follow it in a graph with Q/DQ.

    A Cast between a DequantizeLinear and its reader would cost the reader its INT8. So the pairs
    that a node in FP32 reads are FP32 too, and so are all that read these. Where a scale is no
    number of FP16, its pair is where this begins.
    """
    found = dict(wide)
    for node in graph:
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and not _is_half(node.inputs[1]):
            found.setdefault(str(node.name), "its step is too small for FP16")
    waiting = [node for node in graph if str(node.name) in found]
    while waiting:
        for node, reason in _neighbours(waiting.pop()):
            if str(node.name) not in found:
                found[str(node.name)] = reason
                waiting.append(node)
    return found


def _neighbours(node: ir.Node) -> Iterator[tuple[ir.Node, str]]:
    """Yield the nodes that must be FP32 because `node` is, over pairs of Q/DQ."""
    if is_op(node, "DequantizeLinear"):
        for reader, _ in node.outputs[0].uses():
            yield reader, f"reads {node.name}, which is FP32"
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and is_op(producer, "DequantizeLinear", "QuantizeLinear"):
            yield producer, f"feeds {node.name}, which is FP32"


def _is_half(scale: ir.Value | None) -> bool:
    """Return whether a scale is made of FP16 numbers."""
    if scale is None or scale.const_value is None:
        return True
    array = scale.const_value.numpy()
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16) == array).all())
