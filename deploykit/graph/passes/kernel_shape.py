"""Write `kernel_shape` on every convolution: TensorRT needs it where weights come from a DQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir import AttrInt64s

from deploykit.graph.editing import dims, is_op, per_node

if TYPE_CHECKING:
    import onnx_ir as ir


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` is a convolution that lacked the attribute."""
    if not is_op(node, "Conv", "ConvTranspose") or "kernel_shape" in node.attributes:
        return False
    shape = _weight_shape(node.inputs[1])
    if shape is None:
        return False
    node.attributes["kernel_shape"] = AttrInt64s("kernel_shape", shape[2:])
    return True


def _weight_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a weight, looking through Q/DQ and casts, which keep it."""
    shape, node = dims(value), None if value is None else value.producer()
    if shape is None and is_op(node, "DequantizeLinear", "QuantizeLinear", "Cast", "Identity"):
        assert node is not None  # `is_op` has said so
        return _weight_shape(node.inputs[0])
    return shape


PASS = per_node("kernel_shape", rewrite)
