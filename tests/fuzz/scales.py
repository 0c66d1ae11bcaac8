"""Hostile scales of fake quantisers, for a model whose names they fit: `quantize --amax`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LAYERS = ("stem", "body.0")
_CHANNELS = 8


def cases(_: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case; of the first seed every second one."""
    for name in list(_hostile())[:: 1 if seed else 2]:
        yield Case(f"scales: {name}", partial(_command, name=name))


def _command(folder: Path, _: Path, *, name: str) -> list[str]:
    import torch

    weights = {
        layer: np.full((_CHANNELS, _CHANNELS, 3, 3), 0.1 + i, np.float32)
        for i, layer in enumerate(_LAYERS)
    }
    _model(folder / "model.onnx", weights)
    state = {f"{layer}.weight": torch.from_numpy(weight) for layer, weight in weights.items()}
    scales = {f"{layer}._input_quantizer._amax": torch.tensor(1.0) for layer in _LAYERS}
    torch.save({"model": state | scales | _hostile()[name]}, folder / "qat.pth")
    return ["quantize", "model.onnx", "-o", "int8.onnx", "--amax", "qat.pth"]


def _model(path: Path, weights: dict[str, Any]) -> None:
    shape, nodes, read = [1, _CHANNELS, 16, 16], [], "images"
    for layer in _LAYERS:
        inputs = [read, f"{layer}.weight"]
        name = f"/{layer.replace('.', '/')}/Conv"
        nodes.append(helper.make_node("Conv", inputs, [f"{layer}.out"], name=name, pads=[1] * 4))
        read = f"{layer}.out"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(read, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, f"{layer}.weight") for layer, weight in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), path)


def _hostile() -> dict[str, dict[str, Any]]:
    """Return what is wrong -> the entries of the checkpoint that say so."""
    import torch

    of_input, of_weight = "stem._input_quantizer._amax", "stem._weight_quantizer._amax"
    wild = {
        **{f"of {value}": torch.tensor(value) for value in (float("nan"), float("inf"), -1.0, 0.0)},
        **{f"of {value}": torch.tensor(value) for value in (1e-45, 3e38)},
        "of 1e300": torch.tensor(1e300, dtype=torch.float64),
        "in half precision, too small": torch.tensor(1e-8).half(),
        "of nothing": torch.empty(0),
        "of channels": torch.rand(_CHANNELS + 1),
        "of a whole number": torch.tensor(3),
        "of a yes": torch.tensor(data=True),
        "of a complex number": torch.tensor(1 + 2j),
        "of a text": "1.0",
        "of a list": [1.0],
        "of a number of Python's": 1.0,
        "that are sparse": torch.eye(2).to_sparse(),
        "of the meta device": torch.empty(1, device="meta"),
        "in five dimensions": torch.ones(1, 1, 1, 1, 1),
    }
    found = {f"{name}, of an input": {of_input: value} for name, value in wild.items()}
    found |= {f"{name}, of weights": {of_weight: value} for name, value in wild.items()}
    found["of a layer that is not there"] = {"evil._input_quantizer._amax": torch.tensor(1.0)}
    found["of a layer of escapes"] = {"\x1b[31m\udcff._input_quantizer._amax": torch.tensor(1.0)}
    found["of weights of another shape"] = {"stem.weight": torch.ones(3, 3)}
    found["of no layer"] = {f"{layer}._input_quantizer._amax": None for layer in _LAYERS}
    return found
