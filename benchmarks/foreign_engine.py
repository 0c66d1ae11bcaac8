"""What an engine's own text says of its layers, read by other means than deploykit's.

Products are counted from the shapes that ONNX Runtime finds when it runs the model, and looked up
in the plan by plain text search; nothing here is shared with `deploykit.backends` or `graph.cost`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime as ort
import tensorrt_rtx as trt
from onnx import inliner, shape_inference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
KINDS = "corrltn|deconvolution|fully_connected|runtime_fusion|function"
KERNELS = re.compile(rf"^  ({KINDS})=\{{ (.*)$", re.MULTILINE)
TENSOR = re.compile(r'tensor=\{[^\n]*? name="([^"]+)"[^\n]*? type=(\w+) \}')


def built(model: Path) -> tuple[bytes | None, str]:
    """Return an engine for SM86 and batch 1, or None and the parser's or the builder's words."""
    logger = Quiet()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        return None, str(parser.get_error(0).desc())[:200]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shape = [1 if size < 0 else size for size in value.shape]
        if -1 in tuple(value.shape):
            profile.set_shape(value.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (None, logger.last) if plan is None else (bytes(plan), "")


class Quiet(trt.ILogger):  # type: ignore[misc]  # untyped package
    """Keeps the last error."""

    def __init__(self) -> None:  # noqa: D107 - nothing to say
        super().__init__()
        self.last = ""

    def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - TensorRT's own type
        """Keep an error."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.last = message[:200]


def products(model: Path, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Return node -> multiply-accumulates of the products in a model, by running it."""
    proto = inliner.inline_local_functions(onnx.load(model))
    nodes = [node for node in proto.graph.node if node.op_type in WEIGHTED and not node.domain]
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    known = {value.name for value in proto.graph.input}
    wanted = {name for n in nodes for name in (*n.input[:2], n.output[0]) if name not in weights}
    outputs = {value.name for value in proto.graph.output}
    inferred = shape_inference.infer_shapes(proto)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    for name in sorted(wanted - outputs - known):
        kind = types.get(name) or onnx.TensorProto.FLOAT
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    session = opened(proto.SerializeToString())
    names = sorted(wanted - known)
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    shapes = {**weights, **{n: list(a.shape) for n, a in {**feeds, **found}.items()}}
    return {n.name or n.output[0]: _macs(n, shapes) for n in nodes}


def opened(model: str | bytes) -> ort.InferenceSession:
    """Return a session that changes nothing in a graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    data, weights, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if (
        node.op_type in RECURRENT
    ):  # weights [directions, gates * hidden, inputs], those of the state
        steps, images, _ = data
        directions, rows, inputs = weights
        return steps * images * directions * rows * (inputs + out[-1])
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weights[1:])
    if node.op_type == "Gemm":
        swapped = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * data[0 if swapped else 1]
    return math.prod(out) * data[-1]


def int8_nodes(plan: bytes) -> dict[str, bool]:
    """Return node -> whether every kernel that multiplies for it reads INT8 twice."""
    text = plan.decode("latin1")
    types = dict(TENSOR.findall(text))
    found: dict[str, bool] = {}
    fused: dict[str, bool] = {}
    for kind, statement in KERNELS.findall(text):
        attention = statement.startswith("name=_gemm_mha")
        if kind == "function" and not attention:
            continue
        operands = re.search(r" input(?:_args)?=\{([^}]*)\}", statement)
        names = re.findall(r'"([^"]+)"', operands[1]) if operands else []
        kinds = [types.get(name) for name in names]
        is_int8 = kinds.count("int8") > 2 if attention else kinds[:2] == ["int8", "int8"]
        layers = re.search(r' layers="([^"]*)"', statement)
        for node in re.findall(r"\[ONNX Layer: ([^\]]+)\]", layers[1]) if layers else []:
            into = fused if kind == "runtime_fusion" else found
            into[node] = is_int8 and into.get(node, True)
    return {**fused, **found}


def share(plan: bytes, macs: Mapping[str, int]) -> float:
    """Return the share of all products that an engine multiplies in INT8."""
    kinds = int8_nodes(plan)
    spelt = {re.sub(r"[\x00-\x20\"]", "_", name): count for name, count in macs.items()}
    total = sum(spelt.values())
    return sum(count for name, count in spelt.items() if kinds.get(name)) / total if total else 0.0
