"""Small ONNX files as other people's exporters write them: no card, odd inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SIDE, WIDTH = 32, 16
"""Pixels of the input, channels of the convolutions."""


class Net:
    """Writes a graph node by node; weights are random but the same in every run."""

    def __init__(self) -> None:
        """Begin an empty graph."""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, array: NDArray[Any] | np.generic) -> str:
        """Add an initializer and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def kernel(self, *shape: int) -> NDArray[np.float32]:
        """Return random weights that keep the size of what they multiply."""
        scale = np.sqrt(2 / np.prod(shape[1:]))
        made: NDArray[np.float32] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return made

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return its output."""
        output = f"{kind}_{len(self.nodes)}_0"
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv(self, x: str, before: int, behind: int, weights: str | None = None) -> str:
        """Append a convolution of 3x3 pixels that keeps the size."""
        weights = weights or self.weight(self.kernel(behind, before, 3, 3))
        return self.op("Conv", x, weights, kernel_shape=[3, 3], pads=[1] * 4)

    def save(  # noqa: PLR0913 - what exporters write otherwise
        self,
        path: Path,
        output: str,
        shape: Sequence[int | str] = (1, 3, SIDE, SIDE),
        *,
        dtype: int = TensorProto.FLOAT,
        opset: int = 19,
        ir_version: int = 9,
        inputs: Sequence[onnx.ValueInfoProto] = (),
        metadata: dict[str, str] | None = None,
    ) -> Path:
        """Write the model with its input `images`, and return its path."""
        images = helper.make_tensor_value_info("images", dtype, list(shape))
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [images, *inputs], [result], self.weights)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        helper.set_model_props(model, metadata or {})
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


def two_layers(planes: int = 3) -> tuple[Net, str]:
    """Return a net of two convolutions, and the name of its output."""
    net = Net()
    first = net.op("Relu", net.conv("images", planes, WIDTH))
    return net, net.conv(first, WIDTH, WIDTH)
