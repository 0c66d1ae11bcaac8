"""Sessions that give what a model computes inside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnxruntime as ort

from deploykit.backends import onnxruntime, overloads
from deploykit.data import ahead
from deploykit.errors import ModelError, unknown_name
from deploykit.files import onnxfile, protos
from deploykit.precision import blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.precision.blocks import Tapped
    from deploykit.recipes.opened import Opened

_FLOAT32 = "tensor(float)"
"""float32 in the runtime's words."""
_SEVERAL = 4
"""Convolutions, where a transformer has one that makes tokens."""
_MOST_WORKERS = 4
"""Batches at a time: one core each is faster than all cores on one, but takes memory."""


def most_workers() -> int:
    """Return how many batches at a time the cores are for; each runs on its share of them."""
    return ahead.threads(_MOST_WORKERS)


def open_session(model: Opened, tensors: Sequence[str]) -> Tapped:
    """Return a session that computes `tensors`, all of them float32.

    Raises: ModelError for a tensor that the model does not compute, or not in float32.
    """
    beside = onnxfile.data_folder(model.graph)
    inner = _inner(model, tensors)
    data = overloads.runnable(protos.with_outputs(model.data, inner), model.graph)
    try:
        if beside is None and _convolves(model):
            tapped = blocks.tapped(data, inner, _options)
        else:
            options = _options()
            if beside is not None:
                options.add_session_config_entry(onnxruntime.WEIGHTS_BESIDE, str(beside.resolve()))
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            tapped = blocks.Tapped(session, {})
    except Exception as error:  # the errors of the runtime have no common class
        raise ModelError(f"ONNX Runtime cannot run {model.path}: {error}") from error
    types = {output.name: output.type for output in tapped.session.get_outputs()}
    for name in tensors:
        if types.get(name, _FLOAT32) != _FLOAT32:
            raise ModelError(
                f"cannot calibrate {name!r}, a {types[name]}",
                expected=_FLOAT32,
                fix="calibrate the float32 model, before its precision is converted",
            )
    return tapped


def _convolves(model: Opened) -> bool:
    """Return whether a model has so many convolutions that their order in memory costs time."""
    graphs = (model.graph.graph, *(function.graph for function in model.graph.functions.values()))
    return sum(node.op_type == "Conv" for graph in graphs for node in graph) >= _SEVERAL


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, so it need not be logged too
    options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // most_workers())
    # A thread that waits for work leaves its core to the observers and the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _inner(model: Opened, tensors: Sequence[str]) -> list[str]:
    """Return those of `tensors` that are neither inputs nor outputs. Raises: ModelError."""
    graph = model.graph.graph
    ends = {value.name for value in (*graph.inputs, *graph.outputs)}
    values = {value.name: value for node in graph for value in node.outputs if value.name}
    absent = [name for name in tensors if name not in ends and name not in values]
    if absent:
        near = unknown_name("tensor", absent[0], values).fix
        raise ModelError(f"{model.path} computes no tensor {absent[0]!r}", fix=near)
    return [name for name in tensors if name not in ends]
