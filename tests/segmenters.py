"""A small segmenter as an ONNX file, and images that it reads without a mistake."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploykit import Dataset, Preprocess, Sample
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAMES = ("background", "cat", "dog")
SIDE = 8
CARD = ModelCard(
    *("", "", "semantic_segmentation", Preprocess((SIDE, SIDE), "stretch"), NAMES, ""),
    outputs=(Output("out", "logits"),),
)


def segmenter(path: Path, *, bias: float = 0.0, indices: bool = False) -> Path:
    """Background where the image is dark, cat where it is red, dog where it is green."""
    value = helper.make_tensor_value_info
    weights = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32).reshape(3, 3, 1, 1)
    offset = np.array([0.4 + bias, 0, 0], np.float32)
    nodes = [helper.make_node("Conv", ["images", "w", "b"], ["out"], "head")]
    outputs = [value("out", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])]
    if indices:
        nodes.append(helper.make_node("ArgMax", ["out"], ["map"], axis=1, keepdims=0))
        outputs = [value("map", TensorProto.INT64, ["batch", SIDE, SIDE])]
    inputs = [value("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])]
    given = [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(offset, "b")]
    graph = helper.make_graph(nodes, "own", inputs, outputs, given)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    properties: dict[str, str] = {}
    metadata.write(properties, CARD)
    helper.set_model_props(proto, properties)
    onnx.save(proto, path)
    return path


def picture(kind: int) -> NDArray[np.uint8]:
    pixels = np.zeros((SIDE * 2, SIDE * 2, 3), np.uint8)
    if kind:
        pixels[:, :SIDE, kind - 1] = 255
    return pixels


def truth(kind: int) -> NDArray[np.uint8]:
    found = np.zeros((SIDE * 2, SIDE * 2), np.uint8)
    found[:, :SIDE] = kind
    return found


DATA = Dataset(
    "halves",
    [Sample(f"{k}", partial(picture, k), partial(truth, k)) for k in (0, 1, 2)],
    dict(enumerate(NAMES)),
)
