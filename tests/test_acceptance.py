"""What a proof of a graph needs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploykit
from deploykit.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_without_inputs_is_refused_with_one_message(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["y"])],
        "nothing",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no input"):
        deploykit.cast(tmp_path / "m.onnx", tmp_path / "half.onnx")
