"""An engine's layers brought back to the ONNX nodes they were made of, with their MACs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import DeployError, ModelError, ProofError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import cost
from deploykit.values import LayerPrecision, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

UNKNOWN = "unknown"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""ONNX ops that do the work; their precision is the model's precision."""
_SHOWN = 8
"""Layers that an error names one by one."""

_PRECISIONS = {
    "int8": "int8",
    "half": "fp16",
    "fp16": "fp16",
    "float16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "float32": "fp32",
}
"""How builders write an element type -> how it is reported."""


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of an engine, as the engine itself describes it."""

    kind: str
    """The engine's own word, such as `corrltn` or `CaskConvolution`."""
    name: str
    inputs: tuple[str, ...]
    """Element types of its operands; a weighted layer's first is its activation."""
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """Names of the ONNX nodes it was made of."""
    weighted: bool
    """Whether it convolves or multiplies matrices, rather than preparing data for that."""

    @property
    def precision(self) -> str:
        """Return what it computes in: INT8 only where activation and weight both are."""
        found = {_PRECISIONS.get(dtype, UNKNOWN) for dtype in self.inputs[:2] or self.outputs}
        if self.weighted:
            return _widest(found)
        return _widest(found - {UNKNOWN})


def from_file(layers: Iterable[EngineLayer]) -> tuple[LayerPrecision, ...]:
    """Return each layer of an engine whose ONNX is not at hand: no MACs, the engine's own words."""
    return tuple(
        LayerPrecision(" + ".join(layer.nodes) or layer.name, layer.kind, layer.precision)
        for layer in layers
    )


def read_back(layers: Sequence[EngineLayer], model: ir.Model) -> tuple[LayerPrecision, ...]:
    """Return the precision of `model`'s layers: every weighted node once, then all the rest.

    A weighted node that several kernels claim has the widest of their precisions; one that none
    claims is `unknown`.
    """
    macs = macs_or_none(model)
    ops = {name_of(node): node.op_type for node in model.graph}
    weighted = {name: op for name, op in ops.items() if op in WEIGHTED}
    found: list[LayerPrecision] = []
    for name, op in weighted.items():
        precisions = {kernel.precision for kernel in _kernels_of(name, layers)}
        found.append(LayerPrecision(name, op, _widest(precisions), macs.get(name, 0)))
    for layer in layers:
        if not (layer.weighted and weighted.keys() & set(layer.nodes)):
            kinds = sorted({ops[n] for n in layer.nodes if n in ops} - set(WEIGHTED))
            found.append(
                LayerPrecision(
                    " + ".join(layer.nodes) or layer.name,
                    " + ".join(kinds) or layer.kind,
                    layer.precision,
                )
            )
    return tuple(found)


def _kernels_of(node: str, layers: Iterable[EngineLayer]) -> Iterator[EngineLayer]:
    """Yield the kernels that compute `node`, not those that only pad or rescale for it.

    The parser calls a node without a name after its output.
    """
    names = {node, f"node_of_{node}"}
    return (layer for layer in layers if layer.weighted and names & set(layer.nodes))


def _widest(precisions: Iterable[str]) -> str:
    found = set(precisions)
    return next((p for p in (UNKNOWN, "fp32", "fp16", "int8") if p in found), UNKNOWN)


def name_of(node: ir.Node) -> str:
    """Return a node's name, that of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


def macs_or_none(model: ir.Model) -> dict[str, int]:
    """Return node name -> MACs, empty where the shapes of the model are open."""
    try:
        return cost.macs(model)
    except ModelError:
        return {}


def quantized_nodes(model: ir.Model) -> dict[str, str]:
    """Return node name -> op of each weighted node whose operands are all dequantized."""
    return {
        name_of(node): node.op_type
        for node in model.graph
        if node.op_type in WEIGHTED and all(map(_dequantized, node.inputs[:2]))
    }


def is_quantized(model: ir.Model) -> bool:
    """Return whether the graph asks for INT8 anywhere."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph)


def float32_products(model: ir.Model) -> list[str]:
    """Return the names of the matrix products that work in single precision."""
    typed = model.clone()
    common.ShapeInferencePass(check_type=False, strict_mode=False)(typed)
    return [
        name_of(node)
        for node in typed.graph
        if node.op_type in ("Gemm", "MatMul")
        and any(value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs)
    ]


def _dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def prove(layers: Sequence[LayerPrecision], model: ir.Model, builder: str) -> str:
    """Return a note on what could not be read back, empty where everything could.

    Raises: ProofError where a node with quantized operands was found to compute in float.
    """
    precision = {layer.name: layer.precision for layer in layers}
    asked = quantized_nodes(model)
    floats = [n for n in asked if precision.get(n, UNKNOWN) in (Precision.FP16, Precision.FP32)]
    if floats:
        named = ", ".join(f"{n} ({asked[n]}, {precision[n]})" for n in floats[:_SHOWN])
        more = f" and {len(floats) - _SHOWN} more" if len(floats) > _SHOWN else ""
        raise ProofError(
            f"{builder} runs {len(floats)} of {len(asked)} quantized layers in float: "
            f"{named}{more}",
            expected="INT8 for every layer whose inputs the graph dequantizes",
            fix="`deploykit inspect` the ONNX file says what makes a layer fall back; "
            "or leave those layers in float: quantize with a --plan that says so",
        )
    unread = [n.name for n in layers if n.op in WEIGHTED and n.precision == UNKNOWN]
    if not unread:
        return ""
    return f"precision not proven: {len(unread)} layers could not be read back: " + ", ".join(
        unread[:_SHOWN]
    )


def origin(path: Path) -> ir.Model | None:
    """Return the ONNX model that `path` was built from, where it lies beside it unchanged."""
    parents: Mapping[str, str] = {}
    try:
        parents = artifacts.read(path).parents
        for name, digest in parents.items():
            parent = path.parent / name
            if parent.suffix == ".onnx" and parent.is_file() and artifacts.sha256(parent) == digest:
                return onnxfile.read_model(parent)
    except DeployError:
        return None  # no sidecar, or not its sidecar: the engine speaks for itself
    return None
