"""Tensors as ONNX Runtime holds them between convolutions: in blocks of channels.

Whatever leaves the runtime is brought back into the order N, C, H, W: with every activation of a
ResNet-50 as an output, that takes a fifth of its time. How far values reach, and how often they
occur, asks for no order. So the graph is taken that the runtime makes of a model, and its tensors
are outputs as they stand there.

A tensor float32[N, C, H, W] lies in memory as [N, C / b, H, W, b], its channels in blocks of b.
Tensors whose channels do not fill their blocks leave in the usual order: what fills them up counts
for nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from deploykit.files import temporaries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from deploykit.data.preprocess import Floats

_FILE, _WEIGHTS = "model.onnx", "weights"
_TOLD = "session.optimized_model_external_initializers_"
_FOUND = "session.model_external_initializers_file_folder_path"
_SMALL = 1 << 10
"""Bytes below which a constant stays in the file itself."""
_PROVIDERS = ["CPUExecutionProvider"]


class Tapped(NamedTuple):
    """A session, and under which names it gives the tensors that leave it in blocks."""

    session: ort.InferenceSession
    blocked: Mapping[str, str]


def tapped(
    data: bytes, tensors: Sequence[str], options: Callable[[], ort.SessionOptions]
) -> Tapped:
    """Return a session of a model whose outputs `tensors` leave it in blocks, where they can.

    data: a model with convolutions, without files beside it. options: makes those of a session.

    Raises: what the runtime raises where it cannot run the model.
    """
    if block() is not None:
        try:
            return _tapped(data, tensors, options, _full)
        except Exception:  # noqa: BLE001, S110 - no room, or a graph that is not read again
            pass
    return Tapped(ort.InferenceSession(data, options(), providers=_PROVIDERS), {})


def plain(values: Floats) -> Floats:
    """Return a tensor [N, C, H, W] that left the runtime in blocks in the usual order."""
    size = block()
    assert size is not None  # else nothing leaves it so
    count, channels, height, width = values.shape
    parts = values.reshape(count, channels // size, height, width, size)
    return parts.transpose(0, 1, 4, 2, 3).reshape(values.shape)


@functools.lru_cache(maxsize=1)
def block() -> int | None:
    """Return how many channels the runtime puts into a block on this machine.

    None: it has none, or they are not as described above. It is seen in a convolution that adds
    the number of its channel to zeros.
    """
    channels, side = 64, 3
    weight = np.zeros((channels, channels, 1, 1), np.float32)
    shape = [1, channels, side, side]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    constants = (("weight", weight), ("bias", np.arange(channels, dtype=np.float32)))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight", "bias"], ["y"])],
        "numbers",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    opset = helper.make_opsetid("", 13)
    data = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    try:
        found = _tapped(data, ["y"], _quiet, lambda _: True)
        feed = {"x": np.zeros(shape, np.float32)}
        (values,) = found.session.run([found.blocked["y"]], feed)
    except Exception:  # noqa: BLE001 - whatever it is, there are no blocks to rely on
        return None
    expected = np.arange(channels, dtype=np.float32)
    flat = np.asarray(values).ravel()
    size = int(np.argmax(flat[1:] == 0)) + 1
    if channels % size or np.shape(values) != tuple(shape):
        return None
    told = np.broadcast_to(expected.reshape(-1, 1, size), (channels // size, side * side, size))
    return size if np.array_equal(flat, told.ravel()) else None


def _full(channels: int) -> bool:
    """Return whether channels fill their blocks."""
    return channels % (block() or 1) == 0


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def _tapped(
    data: bytes,
    tensors: Sequence[str],
    options: Callable[[], ort.SessionOptions],
    full: Callable[[int], bool],
) -> Tapped:
    with temporaries.folder() as folder:
        writing = options()
        writing.optimized_model_filepath = str(folder / _FILE)
        writing.add_session_config_entry(f"{_TOLD}file_name", _WEIGHTS)
        writing.add_session_config_entry(f"{_TOLD}min_size_in_bytes", str(_SMALL))
        session = ort.InferenceSession(data, writing, providers=_PROVIDERS)
        shapes = {output.name: output.shape for output in session.get_outputs()}
        made = onnx.load(folder / _FILE, load_external_data=False)
        blocked = _in_blocks(made.graph, {name: shapes[name] for name in tensors}, full)
        return (
            Tapped(_reopened(made, folder, options()), blocked) if blocked else Tapped(session, {})
        )


def _reopened(
    made: onnx.ModelProto, folder: Path, options: ort.SessionOptions
) -> ort.InferenceSession:
    """Return a session of a graph that the runtime has optimised already."""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(_FOUND, str(folder))
    return ort.InferenceSession(made.SerializeToString(), options, providers=_PROVIDERS)


def _in_blocks(
    graph: onnx.GraphProto,
    tensors: Mapping[str, Sequence[int | str | None]],
    full: Callable[[int], bool],
) -> dict[str, str]:
    """Let tensors leave a graph as they are before they are reordered; return their names there.

    tensors: outputs of the graph, and their shapes.
    """
    reorders = {node.output[0]: node for node in graph.node if node.op_type == "ReorderOutput"}
    used = Counter(name for node in graph.node for name in node.input)
    found = {}
    for name in tensors:
        told = {a.name: a.i for a in reorders[name].attribute} if name in reorders else {}
        if told and not told.get("channels_last") and full(told["channels"]) and not used[name]:
            found[name] = reorders[name].input[0]
    nodes = [node for node in graph.node if node.output[0] not in found]
    ends = [output for output in graph.output if output.name not in found]
    for name, inner in found.items():
        ends.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, tensors[name]))
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(ends)
    return found
