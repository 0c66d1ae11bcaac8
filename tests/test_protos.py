"""What is added to a file is what protobuf itself would add."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.files import protos

ENDS = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
WHOLE = helper.make_model(
    helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", ENDS[:1], ENDS[1:])
)


@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 121, 300, 16_370, 16_384, 3_000_000])
def test_a_message_of_any_size_is_joined_as_protobuf_joins_it(size: int) -> None:
    more = onnx.GraphProto(node=[helper.make_node("Relu", ["y"], ["z" * size])])
    data = WHOLE.SerializeToString()
    assert protos.joined(data, more) == data + onnx.ModelProto(graph=more).SerializeToString()
    found = onnx.ModelProto.FromString(protos.joined(data, more))
    assert [*found.graph.node] == [*WHOLE.graph.node, *more.node]
    assert found.graph.output == WHOLE.graph.output


def test_outputs_are_added_behind_those_there_are() -> None:
    data = WHOLE.SerializeToString()
    found = onnx.ModelProto.FromString(protos.with_outputs(data, ["x", "w"]))
    assert [each.name for each in found.graph.output] == ["y", "x", "w"]
    assert protos.with_outputs(data, []) is data
