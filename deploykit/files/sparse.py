"""Sparse weights of an ONNX file, made dense: nothing behind this reads them as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

from deploykit.errors import ModelError
from deploykit.files import protos

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from onnx import ModelProto, SparseTensorProto

MOST = 1 << 28
"""Elements of all of them together (1 GB of float32): a small file may claim any size."""


def densify(proto: ModelProto, where: Path) -> None:
    """Turn sparse initializers and constants of a model into dense ones, in place.

    Raises: ModelError where they are together too large, or are not what ONNX says they are.
    """
    left = MOST
    for graph in protos.graphs(proto):
        if isinstance(graph, GraphProto) and graph.sparse_initializer:
            for sparse in graph.sparse_initializer:
                left = _left(left, sparse, where)
                graph.initializer.append(_dense(sparse, where))
            del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    left = _left(left, attribute.sparse_tensor, where)
                    made = _dense(attribute.sparse_tensor, where)
                    attribute.Clear()
                    attribute.name, attribute.type = "value", AttributeProto.TENSOR
                    attribute.t.CopyFrom(made)


def _left(left: int, sparse: SparseTensorProto, where: Path) -> int:
    """Return how many elements the others may have. Raises: ModelError."""
    size: int = math.prod(sparse.dims)
    if size > left:
        raise ModelError(
            f"{where} has the sparse weight {sparse.values.name!r} of shape {list(sparse.dims)}",
            expected=f"at most {MOST} elements in all sparse weights, which are made dense",
            fix="export the model with dense weights",
        )
    return left - size


def _dense(sparse: SparseTensorProto, where: Path) -> TensorProto:
    """Return a sparse tensor with all its zeros. Raises: ModelError."""
    name = sparse.values.name
    try:
        values, flat = _array(sparse.values), _array(sparse.indices)
        array = np.zeros(tuple(sparse.dims), values.dtype)
        if flat.ndim > 1:
            flat = np.ravel_multi_index(tuple(flat.T), array.shape)
        np.put(array, np.where(flat < 0, array.size, flat), values)  # raises for a place outside
    except (ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{where} is damaged: the sparse weight {name!r} cannot be read: {error}",
            expected="values, and the place of each within the shape",
            fix="export the model again",
        ) from error
    return numpy_helper.from_array(array, name)


def _array(tensor: TensorProto) -> NDArray[Any]:
    """Return what a tensor holds itself. Raises: ValueError."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("its numbers are in another file")
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array
