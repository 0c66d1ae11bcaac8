"""Numbers of a graph that its network's code does not name.

An exporter writes some operators out in others: GELU with the root of 2, an attention with the root
of its scale. PyTorch has such a number in float64 inside a kernel, the graph has it in float32.
What that may change is measured: by the graph itself, with these numbers moved by as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from deploykit.proof.float64.running import Watch

    Array: TypeAlias = NDArray[np.generic]
    Doubles: TypeAlias = NDArray[np.float64]

_SHORT = 2.0**12
"""A number of so many digits and no more is what it was meant to be."""
_HALF_ULP = 2.0**-24
_MOST = 4096
"""Elements of the largest table that a body of an op holds."""


def numbers(model: ir.Model, known: AbstractSet[float]) -> Doubles:
    """Return the constants in float32 that are rounded and none of `known`, sorted.

    Of local functions, the bodies of our ops, every number counts; of weights those of one element.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    inner = [node for function in model.functions.values() for node in function]
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    held = [t.numpy() for t in weights if t.dtype.is_floating_point() and t.size == 1]
    single = [array for array in _constants(nodes) if array.size == 1]
    arrays = (*held, *single, *_constants(inner))
    found = {float(n) for array in arrays for n in array.astype(np.float32).flat}
    return np.array(sorted(n for n in found if not _is_short(n) and n not in known))


def nudging(found: Doubles, seed: int) -> Watch:
    """Return a watch that moves these numbers, where they are held, by half of an ulp at most."""
    rng = np.random.default_rng(seed)

    def watch(_: str, array: Array) -> Array:
        if array.dtype != np.float64 or array.size > _MOST or not np.isin(array, found).any():
            return array
        moved = array.astype(np.float64) * (1 + _HALF_ULP * rng.choice([-1.0, 1.0], array.shape))
        changed: Array = np.where(np.isin(array, found), moved, array)
        return changed

    return watch


def _constants(nodes: Iterable[ir.Node]) -> Iterator[Array]:
    """Yield what the Constant nodes among `nodes` hold, where it is float."""
    for node in nodes:
        for name, attribute in node.attributes.items():
            if node.op_type != "Constant" or attribute.is_ref():
                continue
            if name in ("value_float", "value_floats"):
                yield np.atleast_1d(np.array(attribute.value, np.float32))
            elif name == "value" and attribute.as_tensor().dtype.is_floating_point():
                yield attribute.as_tensor().numpy()


def _is_short(number: float) -> bool:
    if not np.isfinite(number):
        return True
    mantissa, _ = np.frexp(number)
    return bool(mantissa * _SHORT == np.rint(mantissa * _SHORT))
