"""Tensors leave the runtime in blocks of channels, and are the tensors that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from foreign_nets import Net
from onnx import TensorProto, helper

from deploykit.files import protos
from deploykit.precision import blocks, tapping
from deploykit.recipes import opened

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = ("n", 3, 20, 24)


def network(path: Path) -> tuple[Path, list[str]]:
    """Write a net with wide and narrow layers, a residual and a transposed tensor."""
    net = Net()
    wide = net.op("Relu", net.conv("images", 3, 64))
    narrow = net.conv(wide, 64, 20)
    back = net.op("Sigmoid", net.conv(narrow, 20, 64))
    total = net.op("Relu", net.op("Add", wide, back))
    pooled = net.op("MaxPool", total, kernel_shape=[2, 2], strides=[2, 2])
    turned = net.op("Transpose", net.conv(pooled, 64, 64), perm=[0, 2, 3, 1])
    return net.save(path, turned, SHAPE), [wide, narrow, back, total, pooled, turned]


def options() -> ort.SessionOptions:
    found = ort.SessionOptions()
    found.intra_op_num_threads = 1
    return found


def values(session: ort.InferenceSession, names: list[str], images: Any) -> list[Any]:
    return list(session.run(names, {"images": images}))


def test_what_leaves_in_blocks_is_the_tensor_in_another_order(tmp_path: Path) -> None:
    path, names = network(tmp_path / "net.onnx")
    model = opened.read(path)
    tapped = tapping.open_session(model, names)
    inner = [name for name in names if name != names[-1]]
    usual = ort.InferenceSession(
        protos.with_outputs(model.data, inner), options(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).normal(size=(2, 3, 20, 24)).astype(np.float32)
    expected = values(usual, names, images)
    found = values(tapped.session, [tapped.blocked.get(name, name) for name in names], images)
    for name, one, other in zip(names, found, expected, strict=True):
        plain = blocks.plain(one) if name in tapped.blocked else one
        np.testing.assert_allclose(plain, other, atol=1e-5, rtol=1e-5)
    if blocks.block() is not None:
        assert names[0] in tapped.blocked, "64 channels fill blocks of 8 and of 16"
        assert names[1] not in tapped.blocked, "20 channels do not"
        assert names[-1] not in tapped.blocked, "an output of the model keeps its order"


def test_shapes_are_declared_as_without_blocks(tmp_path: Path) -> None:
    path, names = network(tmp_path / "net.onnx")
    tapped = tapping.open_session(opened.read(path), names)
    shapes = {output.name: output.shape for output in tapped.session.get_outputs()}
    assert shapes[tapped.blocked.get(names[0], names[0])] == ["n", 64, 20, 24]


def test_nothing_is_left_of_the_runtimes_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path, names = network(tmp_path / "net.onnx")
    tapping.open_session(opened.read(path), names)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("harm", ["no blocks", "another graph", "no room"])
def test_where_a_runtime_does_otherwise_tensors_leave_as_usual(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, names = network(tmp_path / "net.onnx")
    if harm == "no blocks":
        monkeypatch.setattr(blocks, "block", lambda: None)
    elif harm == "another graph":
        monkeypatch.setattr(blocks, "_in_blocks", lambda *_: {"made": "up"}["kept"])
    else:
        monkeypatch.setattr(blocks, "_WEIGHTS", "no/such/folder")
    tapped = tapping.open_session(opened.read(path), names)
    assert not tapped.blocked
    images = np.zeros((1, 3, 20, 24), np.float32)
    assert values(tapped.session, names[:1], images)[0].shape == (1, 64, 20, 24)


def test_a_net_without_convolutions_leaves_as_usual() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = helper.make_opsetid("", 19)
    data = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    assert not blocks.tapped(data, ["y"], options).blocked
