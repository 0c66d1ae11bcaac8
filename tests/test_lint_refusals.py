"""What the lint finds that TensorRT's parser refuses or runs badly, in models with two stages."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from deploykit.precision import lint
from deploykit.precision.lint.rules import RULES

F32, BOOL = TensorProto.FLOAT, TensorProto.BOOL
tensor = helper.make_tensor_value_info


def found(nodes: list[Any], inputs: list[Any], output: str = "y") -> set[str]:
    """Return the ids of the rules that a graph breaks."""
    graph = helper.make_graph(nodes, "g", inputs, [tensor(output, F32, None)])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("deploykit", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets))
    return {finding.rule for finding in lint.lint(model)}


@pytest.mark.parametrize("namespace", [None, "", "other", "deploykit"])
def test_an_op_of_ours_needs_the_plugins_namespace(namespace: str | None) -> None:
    tags = {} if namespace is None else {"plugin_namespace": namespace}
    node: Any = helper.make_node(
        "DKRoiPool", ["boxes", "count", "x"], ["y"], domain="deploykit", **tags
    )
    shapes = (
        ("boxes", F32, [1, 2, 4]),
        ("count", TensorProto.INT32, [1]),
        ("x", F32, [1, 3, 8, 8]),
    )
    rules = found([node], [tensor(*shape) for shape in shapes])
    assert ("plugin-namespace" in rules) == (namespace != "deploykit")


@pytest.mark.parametrize(("size", "refused"), [(2, False), (3, True)])
def test_branches_of_different_shapes_are_refused(size: int, *, refused: bool) -> None:
    def branch(name: str, sizes: list[int]) -> Any:
        value = helper.make_tensor(f"{name}_v", F32, sizes, [0.0] * sizes[0])
        node = helper.make_node("Constant", [], [name], value=value)
        return helper.make_graph([node], name, [], [tensor(name, F32, sizes)])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", [2]), else_branch=branch("b", [size])
    )
    assert ("branches" in found([node], [tensor("c", BOOL, [])])) == refused


@pytest.mark.parametrize("op", ["NonZero", "Unique", "Compress", "NonMaxSuppression"])
def test_a_result_of_unknown_size_is_named(op: str) -> None:
    given = {"Compress": ["x", "c"], "NonMaxSuppression": ["x", "x"]}.get(op, ["x"])
    inputs = [tensor("x", F32, [1, 4, 4]), tensor("c", BOOL, [4])]
    assert "dynamic-result" in found([helper.make_node(op, given, ["y"])], inputs)


@pytest.mark.parametrize(
    ("op", "rule", "ours"),
    [
        ("RoiAlign", "roi-align", "DKMultiscaleRoiAlign"),
        ("MaxRoiPool", "roi-pool", "DKRoiPool"),
    ],
)
def test_the_standard_ops_on_regions_are_named_with_the_one_of_ours(
    op: str, rule: str, ours: str
) -> None:
    shape: Any = {"pooled_shape": [2, 2]} if op == "MaxRoiPool" else {}
    node: Any = helper.make_node(op, ["x", "r"], ["y"], **shape)
    inputs = [tensor("x", F32, [1, 3, 8, 8]), tensor("r", F32, [2, 5])]
    assert rule in found([node], inputs)
    fixes = {known.fix for known in RULES if known.id == rule}
    assert fixes == {f"use {ours}: `deploykit export` writes it"}
