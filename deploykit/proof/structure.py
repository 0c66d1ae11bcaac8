"""A graph whose precision was changed computes what it did: compared node by node, not by numbers.

Casts and Q/DQ are looked through; what is left must be the reference's nodes in their order, each
with the same attributes, reading the same tensors. Constants may be rounded to the type that they
have: to FP16, or to the nearest level of INT8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.errors import ProofError
from deploykit.graph.editing import WAYS, is_op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    Counterparts: TypeAlias = dict[ir.Value, ir.Value]
    """Value of the candidate -> value of the reference."""

_ADDED = ("Cast", "QuantizeLinear", "DequantizeLinear")
_SLACK = 1e-3
"""Of a step of INT8, beyond half of it: scales are rounded, too."""
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def check(candidate: ir.Model, reference: ir.Model) -> None:
    """Raise ProofError where `candidate` is not `reference` in another precision.

    Subgraphs are not looked into.
    """
    named = {str(value.name): value for value in reference.graph.inputs}
    same: Counterparts = {
        value: named[str(value.name)]
        for value in candidate.graph.inputs
        if str(value.name) in named
    }
    for ours, theirs in _pairs(candidate, reference):
        where = f"node {theirs.name!r} ({theirs.op_type})"
        if _attributes(ours) != _attributes(theirs):
            raise _wrong(f"{where} has other attributes", "those of the model it was made from")
        if len(ours.inputs) != len(theirs.inputs):
            raise _wrong(f"{where} has {len(ours.inputs)} inputs", f"{len(theirs.inputs)}")
        for index, (found, expected) in enumerate(zip(ours.inputs, theirs.inputs, strict=True)):
            if not _alike(found, expected, same):
                name = None if expected is None else expected.name
                raise _wrong(f"input {index} of {where} is another one", f"{name!r}, rounded")
        same.update(zip(ours.outputs, theirs.outputs, strict=True))
    outputs = zip(candidate.graph.outputs, reference.graph.outputs, strict=True)
    for found, expected in outputs:
        if not _alike(found, expected, same):
            raise _wrong(f"output {expected.name!r} is another tensor", "the same tensor, rounded")


def _pairs(candidate: ir.Model, reference: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield each node of the reference with its counterpart."""
    ours = iter(candidate.graph)
    for theirs in reference.graph:
        found = next((node for node in ours if not _is_added(node, theirs)), None)
        if found is None or _kind(found) != _kind(theirs):
            has = "nothing" if found is None else f"{found.name!r} ({found.op_type})"
            raise _wrong(f"{has} is where node {theirs.name!r} was", f"a {theirs.op_type}")
        yield found, theirs
    rest = next((node for node in ours if not is_op(node, *_ADDED)), None)
    if rest is not None:
        raise _wrong(f"node {rest.name!r} ({rest.op_type}) was added", "Cast and Q/DQ alone")


def _is_added(node: ir.Node, expected: ir.Node) -> bool:
    return is_op(node, *_ADDED) and (node.name, node.op_type) != (expected.name, expected.op_type)


def _kind(node: ir.Node) -> tuple[str, str]:
    return node.domain, node.op_type


def _attributes(node: ir.Node) -> dict[str, object]:
    """Return the attributes by name, tensors as what numpy prints of them all."""
    found: dict[str, object] = {}
    for name, attribute in node.attributes.items():
        if attribute.type in _GRAPHS or name.startswith("plugin_"):
            continue
        value = attribute.value
        is_tensor = isinstance(value, ir.TensorProtocol)
        found[name] = value.numpy().tobytes() if is_tensor else value
    return found


def _alike(found: ir.Value | None, expected: ir.Value | None, same: Counterparts) -> bool:
    """Return whether a value is the reference's, looking through what changes its precision."""
    if found is None or expected is None:
        return found is expected
    while found not in same and is_op(node := found.producer(), *_ADDED):
        assert node is not None  # `is_op` has said so
        if is_op(node, "DequantizeLinear") and not is_op(
            _producer(node.inputs[0]), "QuantizeLinear"
        ):
            return _is_quantised(node, expected)
        source = node.inputs[0]
        assert source is not None  # these ops have an input
        found = source
    if found in same:
        return same[found] is expected
    ours, theirs = _constant(found), _constant(expected)
    return ours is not None and theirs is not None and _is_rounded(ours, theirs)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _constant(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _is_rounded(ours: Array, theirs: Array) -> bool:
    """Return whether a constant is the reference's in its own type."""
    if ours.shape != theirs.shape:
        return False
    with np.errstate(over="ignore"):
        rounded = theirs.astype(ours.dtype)
    return ours.tobytes() == rounded.tobytes() or np.array_equal(ours, rounded)


def _is_quantised(node: ir.Node, expected: ir.Value) -> bool:
    """Return whether a DequantizeLinear of constants gives the weights within half a step.

    Within one where the reference says that a number shall not go to the nearest level.
    """
    levels, scale = (_constant(value) for value in node.inputs[:2])
    weights = _constant(expected)
    if levels is None or scale is None or weights is None or levels.shape != weights.shape:
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    steps = scale.astype(np.float64)
    if steps.ndim:
        steps = steps.reshape([-1 if i == axis % levels.ndim else 1 for i in range(levels.ndim)])
    off = np.abs(levels.astype(np.float64) * steps - weights)
    reach = np.where(expected.meta[WAYS] != 0, 1.0, 0.5) if WAYS in expected.meta else 0.5
    return bool((off <= (reach + _SLACK) * steps).all())


def _wrong(found: str, expected: str) -> ProofError:
    return ProofError(
        f"the rewritten graph is not the model in another precision: {found}",
        expected=expected,
        fix="report the model it was made from",
    )
