"""The inputs of a graph brought to a form that every stage takes: images alone, of one size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.errors import OptionError, unknown_name
from deploykit.graph.passes import known_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Size

_RANK = 4
_WEIGHTS_ARE_NO_INPUTS = 4
"""First IR version whose weights need not be among the inputs."""
_BATCH = "batch"


@dataclass(frozen=True)
class Wanted:
    """What an interface becomes."""

    size: Size | None = None
    """Height and width of images, where the graph leaves them open."""
    stated: bool = False
    """Whether the user stated it: then a fixed one that differs is refused."""
    planes: int = 3
    nhwc: bool = False
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Inputs that become constants -> their values."""


def closed(model: ir.Model, wanted: Wanted) -> tuple[str, ...]:
    """Return what was done to a model's inputs, in place; nothing where it was right already.

    Weights among the inputs are no inputs any more; sizes of -1 or 0 have names; an open height
    and width become `wanted.size`; given inputs become constants.

    Raises: OptionError where what is wanted does not fit the inputs.
    """
    notes = (*_weights(model), *_constants(model, wanted.constants), *_named(model.graph))
    images = _images(model.graph)
    if images is not None and wanted.size is not None:
        notes += _sized(model, images, wanted)
    return notes


def _weights(model: ir.Model) -> tuple[str, ...]:
    """Take weights from the inputs: what callers may replace cannot be folded."""
    graph = model.graph
    weights = [value for value in graph.inputs if value.is_initializer()]
    for value in weights:
        graph.inputs.remove(value)
    if not weights:
        return ()
    model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
    return (f"{len(weights)} weights were inputs too: they are constants",)


def _constants(model: ir.Model, given: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Make inputs constants. Raises: OptionError."""
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    for name, array in given.items():
        if name not in inputs:
            raise unknown_name("input", name, inputs)
        value = inputs[name]
        graph.inputs.remove(value)
        fitted = _fitted(value, array)
        value.const_value, value.shape = ir.tensor(fitted, name=name), ir.Shape(fitted.shape)
        graph.register_initializer(value)
    if given:
        known_shapes.infer(model)
    return (f"constant inputs: {', '.join(given)}",) if given else ()


def _fitted(value: ir.Value, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as an input takes it; one number fills it. Raises: OptionError."""
    dtype = array.dtype if value.dtype is None else value.dtype.numpy()
    shape: Sequence[Any] = array.shape if value.shape is None else list(value.shape)
    if array.size == 1 and array.ndim == 0:
        sizes = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in shape]
        array = np.broadcast_to(array, sizes)
    fits = len(shape) == array.ndim and all(
        has == want or not isinstance(want, int) or want < 1
        for has, want in zip(array.shape, shape, strict=False)
    )
    if not fits or not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise OptionError(
            f"{array.dtype}{list(array.shape)} for the input {value.name!r}",
            expected=f"{dtype}[{', '.join(map(str, shape))}]",
        )
    return np.ascontiguousarray(array.astype(dtype))


def _named(graph: ir.Graph) -> tuple[str, ...]:
    """Give sizes of inputs that are no sizes a name."""
    changed = [value for value in graph.inputs if _unsaid(value)]
    for value in changed:
        names = [_BATCH if i == 0 else f"{value.name}_{i}" for i in range(len(value.shape or ()))]
        value.shape = ir.Shape(
            names[i] if isinstance(dim, int) and dim < 1 else dim
            for i, dim in enumerate(value.shape or ())
        )
    if not changed:
        return ()
    for value in (value for node in graph for value in node.outputs if _unsaid(value)):
        value.shape = ir.Shape(  # as shape inference spread such sizes, to the outputs too
            None if isinstance(dim, int) and dim < 1 else dim for dim in value.shape or ()
        )
    return ("sizes of -1 are open ones",)


def _unsaid(value: ir.Value) -> bool:
    """Return whether a size of a value is -1 or 0."""
    return any(isinstance(dim, int) and dim < 1 for dim in value.shape or ())


def _images(graph: ir.Graph) -> ir.Value | None:
    """Return the first input of four dimensions, or the only one of an unknown number."""
    known = [value for value in graph.inputs if value.shape is not None]
    found = next((value for value in known if len(value.shape or ()) == _RANK), None)
    if found is None and len(graph.inputs) == 1 and graph.inputs[0].shape is None:
        return graph.inputs[0]
    return found


def _sized(model: ir.Model, images: ir.Value, wanted: Wanted) -> tuple[str, ...]:
    """Fix the sizes of images that are open. Raises: OptionError where a fixed one differs."""
    assert wanted.size is not None
    height, width = wanted.size
    sizes: list[Any] = [_BATCH, wanted.planes, height, width]
    if wanted.nhwc:
        sizes = [_BATCH, height, width, wanted.planes]
    old = list(images.shape) if images.shape is not None else [_BATCH, *[None] * 3]
    dims = [old[0], *(new if not isinstance(has, int) else has for has, new in _pairs(old, sizes))]
    if any(has != new for has, new in _pairs(dims, sizes)):
        if not wanted.stated:
            return ()
        shape = ", ".join(map(str, old))
        raise OptionError(
            f"images of {height}x{width} and {wanted.planes} channels for the input "
            f"{images.name}[{shape}]",
            expected="the size, the channels and the layout that the model has",
        )
    if dims == old:
        return ()
    fixed = {str(has): new for has, new in _pairs(old, sizes) if isinstance(has, ir.SymbolicDim)}
    images.shape = ir.Shape(dims)
    for other in model.graph.inputs:
        if other.shape is not None:
            other.shape = ir.Shape(
                fixed.get(str(d), d) if isinstance(d, ir.SymbolicDim) else d for d in other.shape
            )
    known_shapes.infer(model)
    return (f"images of {height}x{width}, which the file leaves open",)


def _pairs(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return the sizes but for the batch, side by side."""
    return list(zip(old[1:], new[1:], strict=True))
