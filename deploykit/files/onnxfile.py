"""Read and write ONNX files: one file, checked on the way in, atomic on the way out."""

from __future__ import annotations

from copy import copy as shallow
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import (  # type: ignore[import-untyped]  # protobuf ships no types
    DecodeError,
    EncodeError,
)

from deploykit.errors import ModelError, OutputError
from deploykit.files import artifacts, contents, protos, soundness, sparse
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT = (1 << 31) - 1
"""Bytes that one protobuf message can hold, and so the largest ONNX file."""
_DATA, _SMALL = ".data", 256
"""How the file of weights beside a model ends, and bytes from which on a weight goes there."""
_WHAT = "an ONNX model"
_REDO = "export the model again"
_OPEN = "?"
"""How a dimension without size or name is written."""


def read_model(path: Path) -> ir.Model:
    """Return the model in `path`; weights beside it (external data) are mapped, not read.

    Raises: ModelError where the file is missing, not ONNX, damaged, newer than the installed
    onnx, or refers to data that is absent.
    """
    return parse(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return what the file `path`, which should hold a model, holds. Raises: ModelError."""
    return contents.read(path, ModelError, _WHAT, check=lambda size: check_size(path, size))


def parse(data: bytes, path: Path) -> ir.Model:
    """Return the model in `data`, the content of `path`; see `read_model`. Raises: ModelError."""
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        first = data[: contents.HEAD]
        foreign = contents.foreign(path, first, ModelError, _WHAT)
        if contents.kind(first) == "checkpoint":
            foreign.fix = (
                "export it first, if it is a checkpoint: deploykit export FILE -o NEW.onnx"
            )
        raise foreign from error
    _check_proto(path, proto)
    protos.shorten_domains(proto)
    soundness.check(proto, path)
    sparse.densify(proto, path)
    try:
        model: ir.Model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is a damaged ONNX model: {error}", fix=_REDO) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    _check_graph(path, model)
    return model


def check_size(path: Path, size: int) -> None:
    """Check that a file of `size` bytes can be one ONNX model. Raises: ModelError."""
    if size > LIMIT:
        raise ModelError(
            f"{path} has {size} bytes",
            expected=f"at most {LIMIT}: a larger file cannot be one protobuf message",
            fix="save the weights beside the model, as external data",
        )


def _check_proto(path: Path, proto: onnx.ModelProto) -> None:
    """Check what a cut or foreign file lacks even where it parses. Raises: ModelError."""
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path} has ONNX IR version {proto.ir_version}",
            expected=f"at most {onnx.IR_VERSION}: the newest that onnx {onnx.__version__} knows",
            fix="upgrade onnx, or export with an older opset",
        )
    absent = [
        part
        for part, present in (
            ("an IR version", proto.ir_version),
            ("an opset", proto.opset_import),
            ("outputs", proto.graph.output),
        )
        if not present
    ]
    if absent:
        raise ModelError(f"{path} has no {' and no '.join(absent)}", expected=_WHAT, fix=_REDO)


def _check_graph(path: Path, model: ir.Model) -> None:
    """Check that every value comes from somewhere. Raises: ModelError."""
    for user, value in _used(model.graph):
        if value.producer() is None and not value.is_graph_input() and value.const_value is None:
            raise ModelError(
                f"{path} is damaged: {user} needs {value.name!r}, which nothing makes", fix=_REDO
            )
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, tensor)


def has_loops(model: ir.Model) -> bool:
    """Return whether a model has a loop, whose rounds may have no end."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    nodes = (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph))
    return any(node.op_type == "Loop" for node in nodes)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every constant, those of functions, of branches and of attributes too."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        inner = list(ir.traversal.RecursiveGraphIterator(graph))
        owners = {id(node.graph): node.graph for node in inner} | {id(graph): graph}
        for owner in owners.values():
            if isinstance(owner, ir.Graph):
                yield from (v.const_value for v in owner.initializers.values() if v.const_value)
        for node in inner:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                    yield attribute.as_tensor()


def _used(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    """Yield each value that is used, with a name for its user."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is not None:
                yield f"node {node.name!r} ({node.op_type})", value
    for value in graph.outputs:
        yield "the model's output", value


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    """Check that the data of `tensor` is in a file beside `path`. Raises: ModelError."""
    data = (path.parent / tensor.location).resolve()
    if path.parent.resolve() not in data.parents:
        raise ModelError(
            f"{path} keeps the data of {tensor.name!r} outside its folder: {tensor.location}",
            fix="put the model and its data files into one folder, and save it again",
        )
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if not data.is_file() or data.stat().st_size < end:
        state = "cut short" if data.is_file() else "missing"
        raise ModelError(
            f"the data file {data.name} of {path} is {state}: weight {tensor.name!r} is not there",
            expected=f"a file of at least {end} bytes beside the model",
            fix="copy every file of the model together",
        )


def copied(model: ir.Model) -> ir.Model:
    """Return a copy that may be changed at will; the weights' values are shared.

    A clone of onnx-ir shares the types of its values, which are changed in place.
    """
    copy: ir.Model = model.clone()
    for graph in (copy.graph, *(function.graph for function in copy.functions.values())):
        for value in _values(graph):
            value.type = shallow(value.type)
    return copy


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs


def write_model(model: ir.Model, path: Path) -> None:
    """Write `model` with all its weights to `path`, atomically; beside it where they are too large.

    Raises: OutputError where it cannot be written.
    """
    data = to_bytes(model, path)
    if has_data_beside(model):
        _write_beside(model, path)
        return
    with artifacts.replacing(path) as temporary:
        temporary.write_bytes(data)


def _write_beside(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, and its larger weights to a file beside it, one after the other."""
    beside, offset = weights_beside(path), 0
    bare, name = copied(model), beside.name
    with artifacts.replacing(path) as temporary, artifacts.replacing(beside) as data:
        with data.open("wb") as file:
            for value in bare.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALL:
                    continue
                file.write(tensor.tobytes())
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor(
                    name, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name)
                )
                offset += tensor.nbytes
        temporary.write_bytes(ir.to_proto(bare).SerializeToString(deterministic=True))


def weights_beside(path: Path) -> Path:
    """Return where the weights of a file `path` go that are too large for it."""
    return path.with_name(path.name + _DATA)


def weight_files(model: ir.Model) -> list[Path]:
    """Return the files that hold the weights of `model` which its own does not, sorted."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sorted({Path(each.path) for each in tensors if isinstance(each, ir.ExternalTensor)})


def to_bytes(model: ir.Model, path: Path) -> bytes:
    """Return the content of the file `path` that holds `model` with all its weights.

    Where these are more than LIMIT bytes, those that lie beside the file they came from stay there.
    Raises: OutputError where the others are too many.
    """
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    size = sum(tensor.nbytes for tensor in tensors)
    if size > LIMIT:
        size = sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
        if size > LIMIT:
            raise _too_large(path, size)
    else:
        ir.external_data.load_to_model(model)
    try:
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise _too_large(path, size) from error
    return data


def has_data_beside(model: ir.Model) -> bool:
    """Return whether weights of `model` are in files beside its own (external data)."""
    return data_folder(model) is not None


def data_folder(model: ir.Model) -> Path | None:
    """Return where the weights of `model` lie that are not in its own file; None: nowhere."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            return Path(value.const_value.base_dir)
    return None


def _too_large(path: Path, size: int) -> OutputError:
    return OutputError(
        f"cannot write {path}: the weights have {size} bytes",
        expected=f"at most {LIMIT} in one ONNX file",
        fix="store the model in half precision",
    )


def interface(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs (those that are not weights) and the outputs of `model`."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return _specs(inputs), _specs(model.graph.outputs)


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(value.name or "", _dtype(value), _shape(value)) for value in values)


def _dtype(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else value.dtype.numpy().name


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else dim.value or _OPEN for dim in value.shape)
