"""Where a float model gives NaN or infinity by itself: the first layer, and on which image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.graph.editing import constant
from deploykit.precision.appending import SINGLE, Appended
from deploykit.precision.float16 import rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import onnx_ir as ir

    from deploykit.backends import Arrays
    from deploykit.backends.recorded import Recorded
    from deploykit.recipes.opened import Opened

_SAID = "the float model itself gives NaN or infinity on"


def of_outputs(model: Opened, ran: Recorded, names: Iterable[str]) -> str:
    """Return what is to be said of outputs that are not finite; empty: all are.

    ran: what the model gave; names: of each of its inputs, in words.
    """
    for feed, result, name in zip(ran.feeds, ran.results, names, strict=False):
        wrong = [key for key, array in result.items() if not _is_finite(array)]
        if wrong:
            return f"{_SAID} {name}{_at(model, feed, wrong)}"
    return ""


def of_tensor(model: Opened, tensor: str, feeds: Iterable[tuple[str, Arrays]]) -> str:
    """Return what is to be said of a tensor that is not finite on one of some inputs.

    feeds: inputs with their names, in words. Empty: it is finite on each.
    """
    for name, feed in feeds:
        where = _at(model, feed, [tensor])
        if where:
            return f"{_SAID} {name}{where}"
    return ""


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _at(model: Opened, feed: Arrays, wrong: Collection[str]) -> str:
    """Return `, first at NODE`: where what makes one of the tensors `wrong` stops being finite."""
    asked = Appended(model, "finite")
    zero = asked.constant("zero", np.array(0, np.float32))
    answers = {
        name: asked.answer(asked.node("ReduceSum", asked.node("Mul", value, zero), keepdims=0))
        for name, value in list(asked.values.items())
        if rules.dtype(value) is SINGLE and value.producer() is not None
    }
    session = onnxruntime.open_model(asked.opened())
    found = session.run(feed)
    bad = {name for name, answer in answers.items() if np.isnan(found[answer])}
    node = _first(model.graph.graph, bad, bad.intersection(wrong))
    if node is None:
        return ""
    weights = [constant(value) for value in node.inputs]
    held = any(array is not None and not _is_finite(array) for array in weights)
    return f", first at {node.name} ({node.op_type}){', which holds such numbers' if held else ''}"


def _first(graph: ir.Graph, bad: Collection[str], wrong: Iterable[str]) -> ir.Node | None:
    """Return the first node that makes tensors of `bad` of others, and that `wrong` follows."""
    makers = {str(value.name): node for node in graph for value in node.outputs}
    pending, seen = list(wrong), set[str]()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            inputs = (str(v.name) for v in makers[name].inputs if v is not None)
            pending += [each for each in inputs if each in bad]
    return next((node for node in graph if any(str(v.name) in seen for v in node.outputs)), None)
