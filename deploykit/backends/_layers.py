"""An engine's layers brought back to the ONNX nodes they were made of, with their MACs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.backends._naming import as_built, name_of, spelt
from deploykit.errors import DeployError, ModelError, ProofError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import cost, inferring
from deploykit.values import LayerPrecision, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from deploykit.graph.cost import Work

UNKNOWN = "unknown"
WEIGHTED = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
"""ONNX ops that a graph may ask INT8 of."""
_COMPARED = 4096
"""Numbers of a constant, such as scales, that are compared one by one; another is itself alone."""
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


@dataclass(frozen=True)
class ReadBack:
    """What an engine's own description says of a model's nodes."""

    nodes: tuple[LayerPrecision, ...]
    """Every node that multiplies, once, and what cannot be counted."""
    kernels: tuple[LayerPrecision, ...]
    """The kernels that compute none of them alone: what prepares, rescales and moves."""
    asked: tuple[LayerPrecision, ...]
    """Of the nodes, those whose operands the graph dequantizes."""

    @property
    def layers(self) -> tuple[LayerPrecision, ...]:
        """Return the nodes, then the kernels."""
        return self.nodes + self.kernels


def from_file(layers: Iterable[EngineLayer]) -> tuple[LayerPrecision, ...]:
    """Return each layer of an engine whose ONNX is not at hand: no MACs, the engine's own words."""
    return tuple(
        LayerPrecision(" + ".join(layer.nodes) or layer.name, layer.kind, layer.precision)
        for layer in layers
    )


def read_back(
    layers: Sequence[EngineLayer],
    model: ir.Model,
    own: Mapping[str, str] | None = None,
    *,
    works: Sequence[Work] | None = None,
) -> ReadBack:
    """Return the precision of `model`'s nodes, and of the kernels beside them.

    A node that several kernels compute has the widest of their precisions; one that none computes
    is `unknown`. A kernel that only prepares or rescales for a node says nothing about it, though
    it bears its name.

    own: names of nodes as built -> as they are shown. works: `counted(model)`, where it is known.
    """
    shown = own or {}
    works = counted(model) if works is None else works
    names = {work.name for work in works}
    claims = _merged(_claims(layers, names), works)
    nodes, asked = [], []
    for work in works:
        name, quantized = work.name, _asks_int8(work.node)
        precision = _found(claims.get(name, ()), quantized=quantized)
        shown_as = shown.get(name, name)
        row = LayerPrecision(shown_as, work.node.op_type, precision, work.macs or 0, work.note)
        nodes.append(row)
        asked += [row] * quantized
    beside = [k for k in layers if not (k.weighted and names & set(_names(k, names)))]
    return ReadBack(tuple(nodes), _kernel_rows(beside, shown, model), tuple(asked))


def _claims(layers: Iterable[EngineLayer], names: set[str]) -> dict[str, list[EngineLayer]]:
    """Return node -> the kernels made of it."""
    found: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node in _names(layer, names):
            found.setdefault(node, []).append(layer)
    return found


def _merged(
    claims: dict[str, list[EngineLayer]], works: Sequence[Work]
) -> dict[str, list[EngineLayer]]:
    """Return the claims, with a twin's for a node that no kernel names.

    Of nodes that compute the same a builder keeps one.
    """
    made = {_formula(work.node): claims[work.name] for work in works if work.name in claims}
    absent = {work.name: made.get(_formula(work.node)) for work in works if work.name not in claims}
    return {**claims, **{name: found for name, found in absent.items() if found}}


def _formula(node: ir.Node) -> tuple[object, ...]:
    """Return what tells whether two nodes compute the same, Q/DQ before them written out."""
    attributes = sorted(f"{name}={given.value}" for name, given in node.attributes.items())
    return (node.domain, node.op_type, *attributes, *map(_operand, node.inputs))


def _operand(value: ir.Value | None) -> object:
    node = None if value is None else value.producer()
    stores = node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear")
    if node is not None and stores:
        return _formula(node)
    if value is None or value.const_value is None or value.const_value.size > _COMPARED:
        return value
    return value.const_value.numpy().tobytes()


def _names(layer: EngineLayer, names: set[str]) -> tuple[str, ...]:
    """Return the nodes of a layer under the model's names, without repeats.

    The parser calls a node without a name after its output, and adds to that of a node in a
    subgraph where it was: `conv | body (then_branch) | branch (If)`.
    """
    found: dict[str, None] = {}
    for node in layer.nodes:
        spellings = (node, node.removeprefix("node_of_"), node.split(" | ")[0], spelt(node))
        found[next((text for text in spellings if text in names), node)] = None
    return tuple(found)


def _found(kernels: Iterable[EngineLayer], *, quantized: bool) -> str:
    """Return what a node computes in, by the kernels that were made of it.

    A product may also have become pointwise kernels. Of a node that should be INT8 these prove
    nothing: they rescale its result.
    """
    kernels = tuple(kernels)
    weighted = {k.precision for k in kernels if k.weighted}
    if weighted or quantized:
        return _widest(weighted)
    return _widest({k.precision for k in kernels} - {UNKNOWN})


def _kernel_rows(
    layers: Iterable[EngineLayer], shown: Mapping[str, str], model: ir.Model
) -> tuple[LayerPrecision, ...]:
    ops = {name_of(node): node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    rows = []
    for layer in layers:
        kinds = sorted({ops[n] for n in layer.nodes if n in ops} - set(WEIGHTED))
        named = " + ".join(shown.get(node, node) for node in layer.nodes)
        row = (named or layer.name, " + ".join(kinds) or layer.kind, layer.precision)
        rows.append(LayerPrecision(*row))
    return tuple(rows)


def _widest(precisions: Iterable[str]) -> str:
    found = set(precisions)
    return next((p for p in (UNKNOWN, "fp32", "fp16", "int8") if p in found), UNKNOWN)


def counted(model: ir.Model) -> tuple[Work, ...]:
    """Return what multiplies in a model, nothing where its functions cannot be written out."""
    try:
        return cost.works(model)
    except ModelError:
        return ()


def _asks_int8(node: ir.Node) -> bool:
    """Return whether all operands of a node are dequantized."""
    return node.op_type in WEIGHTED and all(map(_dequantized, node.inputs[:2]))


def is_quantized(model: ir.Model) -> bool:
    """Return whether the graph asks for INT8 anywhere."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)


def float32_products(model: ir.Model) -> list[str]:
    """Return the names of the matrix products that work in single precision."""
    typed = model.clone()
    inferring.infer(typed)
    return [
        name_of(node)
        for node in ir.traversal.RecursiveGraphIterator(typed.graph)
        if node.op_type in ("Einsum", "Gemm", "MatMul")
        and any(value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs)
    ]


def _dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def prove(found: ReadBack, builder: str) -> str:
    """Return a note on what could not be read back, empty where everything could.

    Raises: ProofError where a node with quantized operands was found to compute in float.
    """
    floats = [n for n in found.asked if n.precision in (Precision.FP16, Precision.FP32)]
    if floats:
        named = ", ".join(f"{n.name} ({n.op}, {n.precision})" for n in floats[:_SHOWN])
        more = f" and {len(floats) - _SHOWN} more" if len(floats) > _SHOWN else ""
        raise ProofError(
            f"{builder} runs {len(floats)} of {len(found.asked)} quantized layers in float: "
            f"{named}{more}",
            expected="INT8 for every layer whose inputs the graph dequantizes",
            fix="`deploykit inspect` the ONNX file says what makes a layer fall back; "
            "or leave those layers in float: quantize with a --plan that says so",
        )
    unread = [node.name for node in found.nodes if node.precision == UNKNOWN]
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


def of_engine(path: Path, kernels: Sequence[EngineLayer]) -> tuple[LayerPrecision, ...]:
    """Return an engine's layers, under its ONNX model's names and with MACs where that is here."""
    model = origin(path)
    if model is None:
        return from_file(kernels)
    try:
        built, own = as_built(model)
    except ModelError:
        return from_file(kernels)
    return read_back(kernels, built, own).layers
