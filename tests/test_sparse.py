"""Sparse weights of foreign files are dense ones; what is too large, or broken, is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net
from onnx import TensorProto, helper, numpy_helper

from deploykit import pipeline
from deploykit.errors import ModelError
from deploykit.files import onnxfile, sparse
from deploykit.recipes.describing import Description

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (WIDTH, 3, 3, 3)
COUNT = 40
FLAT = np.random.default_rng(1).choice(int(np.prod(SHAPE)), COUNT, replace=False)


def weight(name: str, places: NDArray[np.int64]) -> onnx.SparseTensorProto:
    values = np.random.default_rng(0).standard_normal(len(places)).astype(np.float32)
    found: onnx.SparseTensorProto = helper.make_sparse_tensor(
        numpy_helper.from_array(values, name), numpy_helper.from_array(places, "places"), SHAPE
    )
    return found


def dense() -> NDArray[np.float32]:
    array = np.zeros(SHAPE, np.float32)
    array.reshape(-1)[FLAT] = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    return array


def saved(path: Path, *, node: bool, places: NDArray[np.int64] = FLAT) -> Path:
    """Write a model with a sparse weight: what a Constant makes, or an initializer."""
    net = Net()
    if node:
        net.nodes.append(helper.make_node("Constant", [], ["w"], sparse_value=weight("w", places)))
    net.save(path, net.op("Relu", net.conv("images", 3, WIDTH, "w")))
    if not node:
        model = onnx.load(path)
        model.graph.sparse_initializer.append(weight("w", places))
        onnx.save(model, path)
    return path


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("node", [True, False])
def test_a_sparse_weight_is_read_as_a_dense_one(node: bool, by_row: bool, tmp_path: Path) -> None:  # noqa: FBT001
    places = np.stack(np.unravel_index(FLAT, SHAPE), 1) if by_row else FLAT
    path = saved(tmp_path / "m.onnx", node=node, places=places)
    pipeline.fuse(path, tmp_path / "fused.onnx")
    (array,) = onnxfile.read_model(tmp_path / "fused.onnx").graph.initializers.values()
    assert array.const_value is not None
    np.testing.assert_array_equal(array.const_value.numpy(), dense())


def test_a_model_with_sparse_weights_becomes_int8(tmp_path: Path, photos: Path) -> None:
    path, out = saved(tmp_path / "m.onnx", node=True), tmp_path / "int8.onnx"
    options = pipeline.QuantizeOptions(
        source=f"folder:{photos}", about=Description(preprocess="unit")
    )
    made = pipeline.quantize(path, out, options)
    assert {layer.precision for layer in made.layers} == {"int8"}
    x = np.random.default_rng(2).random((1, 3, SIDE, SIDE), np.float32)
    expected: Any = ort.InferenceSession(path).run(None, {"images": x})[0]
    found: Any = ort.InferenceSession(out).run(None, {"images": x})[0]
    assert np.square(found - expected).mean() < 1e-3 * np.square(expected).mean()


def test_a_sparse_weight_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", node=False)
    model = onnx.load(path)
    model.graph.sparse_initializer[0].dims[0] = sparse.MOST
    onnx.save(model, path)
    with pytest.raises(ModelError, match="sparse weight 'w' of shape") as caught:
        onnxfile.read_model(path)
    assert caught.value.fix == "export the model with dense weights"


@pytest.mark.parametrize("beside", [1, -1])
def test_a_place_outside_a_sparse_weight_is_named(beside: int, tmp_path: Path) -> None:
    places = FLAT + beside * int(np.prod(SHAPE))
    path = saved(tmp_path / "m.onnx", node=True, places=places)
    with pytest.raises(ModelError, match=r"sparse weight 'w' cannot be read: .*out of bounds"):
        onnxfile.read_model(path)


def test_sparse_weights_inside_branches_are_dense_too(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], sparse_value=weight("w", FLAT), name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
    )
    node = helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, SHAPE)
    model = helper.make_model(
        helper.make_graph([node], "g", [flag], [out]),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "m.onnx")
    onnxfile.write_model(onnxfile.read_model(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    session = ort.InferenceSession(tmp_path / "o.onnx")
    found: Any = session.run(None, {"flag": np.array(True)})[0]
    np.testing.assert_array_equal(found, dense())


def test_a_sparse_weight_in_another_file_is_not_looked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", node=False)
    model = onnx.load(path)
    values = model.graph.sparse_initializer[0].values
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="/etc/hostname")
    onnx.save(model, path)
    with pytest.raises(ModelError, match="its numbers are in another file"):
        onnxfile.read_model(path)
