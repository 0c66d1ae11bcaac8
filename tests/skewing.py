"""Weights skewed while the function stays: a channel behind a Relu times k, its readers by 1/k.

It knows Conv and Relu, and MaxPool and Concat on the way to Conv and ConvTranspose, on onnx's own
protobuf, and shares nothing with what undoes it in deploykit.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Reader = tuple[onnx.NodeProto, int]
    """A layer, and which of its input channels is the first that is read."""


class Skewer:
    """A model whose weights are changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._weights = {each.name: each for each in model.graph.initializer}
        self._uses: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._uses[name].append(node)
        shaped = onnx.shape_inference.infer_shapes(model).graph.value_info
        self._channels = {
            each.name: each.type.tensor_type.shape.dim[1].dim_value
            for each in shaped
            if len(each.type.tensor_type.shape.dim) == 4
        }

    def pairs(self) -> Iterator[tuple[onnx.NodeProto, list[Reader]]]:
        """Every Conv before a Relu that layers alone read, with those."""
        for node in self.model.graph.node:
            after = self._uses[node.output[0]]
            if node.op_type == "Conv" and [each.op_type for each in after] == ["Relu"]:
                readers = self._readers(after[0].output[0], 0)
                if readers is not None:
                    yield node, readers

    def scale(self, conv: onnx.NodeProto, readers: list[Reader], k: NDArray[Any]) -> None:
        """Multiply the output channels of `conv` by k, and divide by it in all readers."""
        for name in conv.input[1:]:
            array = self._array(name)
            self._store(name, array * k.reshape(-1, *[1] * (array.ndim - 1)))
        for reader, first in readers:
            weight = self._array(reader.input[1]).copy()
            axis = 0 if reader.op_type == "ConvTranspose" else 1
            part = [slice(None)] * weight.ndim
            part[axis] = slice(first, first + len(k))
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
            weight[tuple(part)] /= k.reshape(shape)
            self._store(reader.input[1], weight)

    def channels(self, conv: onnx.NodeProto) -> int:
        return int(self._weights[conv.input[1]].dims[0])

    def _readers(self, name: str, first: int) -> list[Reader] | None:
        found: list[Reader] = []
        if any(output.name == name for output in self.model.graph.output):
            return None
        for node in self._uses[name]:
            groups = [a.i for a in node.attribute if a.name == "group"]
            if node.op_type in ("Conv", "ConvTranspose") and groups in ([], [1]):
                found.append((node, first))
            elif node.op_type in ("MaxPool", "Concat"):
                shift = 0
                if node.op_type == "Concat":
                    before = list(node.input)[: list(node.input).index(name)]
                    shift = sum(self._channels[each] for each in before)
                further = self._readers(node.output[0], first + shift)
                if further is None:
                    return None
                found += further
            else:
                return None
        return found

    def _array(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self._weights[name])

    def _store(self, name: str, array: NDArray[Any]) -> None:
        self._weights[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


def skewed(
    model: onnx.ModelProto,
    factors: Callable[[np.random.Generator, int], NDArray[Any]],
    *,
    within: str = "",
) -> int:
    """Skew every pair whose Conv's name holds `within`; return how many there were."""
    skewer, random, count = Skewer(model), np.random.default_rng(0), 0
    for conv, readers in list(skewer.pairs()):
        if within in conv.name:
            skewer.scale(conv, readers, factors(random, skewer.channels(conv)))
            count += 1
    return count


def one(k: float) -> Callable[[np.random.Generator, int], NDArray[Any]]:
    """One channel of each layer times k."""

    def factors(random: np.random.Generator, channels: int) -> NDArray[Any]:
        found = np.ones(channels)
        found[random.integers(channels)] = k
        return found

    return factors


def log_normal(sigma: float) -> Callable[[np.random.Generator, int], NDArray[Any]]:
    """Every channel times a random number."""
    return lambda random, channels: np.exp(random.normal(0, sigma, channels))
