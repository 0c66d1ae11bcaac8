"""Scales in checkpoints of other tools, in files written by hand as those tools write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from deploykit import pipeline
from deploykit.errors import StaleTableError
from deploykit.pipeline.exporting import ExportOptions, export
from deploykit.recipes.recipe import RECIPES
from deploykit.values import Precision

if TYPE_CHECKING:
    from pathlib import Path

AMAX = {"pq": "_input_quantizer._amax", "modelopt": "input_quantizer._amax"}
NEVER, ZERO = "neck.reduce_layer0.block.conv", "neck.reduce_layer1.block.conv"


def trained(kind: str) -> dict[str, Any]:
    """Return the weights of a pico of RepOptimizer with scales beside each convolution."""
    torch.manual_seed(0)
    state: dict[str, Any] = dict(RECIPES.load("yolov6").network("pico_repopt", 3).state_dict())
    convs = [k.removesuffix(".weight") for k, v in state.items() if v.ndim == 4 and "proj" not in k]
    weight = AMAX[kind].replace("input", "weight")
    for number, path in enumerate(convs):
        state[f"{path}.{AMAX[kind]}"] = torch.tensor(1 + number / 64)
        rows = state[f"{path}.weight"].abs().amax((1, 2, 3), keepdim=True)
        if "upsample" in path and kind == "pq":  # per output channel, along axis 1
            rows = state[f"{path}.weight"].abs().amax((0, 2, 3), keepdim=True)
        state[f"{path}.{weight}"] = rows
    state[f"{NEVER}.{AMAX[kind]}"] = torch.tensor(float("nan"))
    state[f"{ZERO}.{AMAX[kind]}"] = torch.tensor(1e-8).half()
    state[f"backbone.ERBlock_5.2.cspsppf.m.{AMAX[kind]}"] = torch.tensor(3.0)
    return state


@pytest.fixture(scope="module", params=AMAX)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """Return a checkpoint, the model exported from it, and who wrote the scales."""
    folder = tmp_path_factory.mktemp(request.param)
    state = trained(request.param)
    inside = {"model_state_dict": state} if request.param == "modelopt" else {"model": state}
    torch.save(inside, folder / "qat.pth")
    export(folder / "qat.pth", folder / "qat.onnx", ExportOptions(input_size=(64, 64)))
    return folder / "qat.pth", folder / "qat.onnx", request.param


def test_the_scales_of_a_checkpoint_are_those_of_the_int8_model(
    exported: tuple[Path, Path, str], tmp_path: Path
) -> None:
    checkpoint, model, kind = exported
    how = pipeline.QuantizeOptions(amax=checkpoint, float_type=Precision.FP32)
    made = pipeline.quantize(model, tmp_path / "int8.onnx", how)
    assert not [note for note in made.notes if "are few" in note]
    layers = {layer.name: layer.precision for layer in made.layers}
    assert layers[f"{NEVER}.Conv"] == layers[f"{ZERO}.Conv"] == "fp32"
    graph = onnx.load(tmp_path / "int8.onnx").graph
    held = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    makers = {n.output[0]: n for n in graph.node}
    state, checked = trained(kind), 0
    readers: dict[str, list[float]] = {}
    steps: dict[str, set[float]] = {}
    for node in graph.node:
        own = state.get(f"{node.name.removesuffix('.Conv')}.{AMAX[kind]}")
        if node.op_type == "Conv" and own is not None and layers[node.name] == "int8":
            step = makers[node.input[0]]
            readers.setdefault(step.input[0], []).append(float(own))
            steps.setdefault(step.input[0], set()).add(float(held[step.input[1]]) * 127)
    for tensor, amaxes in readers.items():
        (found,) = steps[tensor]
        assert found >= max(amaxes) - 1e-5  # what meets in a Concat shares the largest
        checked += found == pytest.approx(max(amaxes), rel=1e-5)
    assert checked > len(readers) / 2


@pytest.mark.parametrize("exported", ["pq"], indirect=True)
def test_scales_of_another_model_are_refused(
    exported: tuple[Path, Path, str], model: Path, checkpoint: Path, tmp_path: Path
) -> None:
    own, _, _ = exported
    with pytest.raises(StaleTableError, match="another checkpoint"):
        pipeline.quantize(model, tmp_path / "x.onnx", pipeline.QuantizeOptions(amax=own))
    with pytest.raises(StaleTableError, match="holds no scales"):
        pipeline.quantize(model, tmp_path / "x.onnx", pipeline.QuantizeOptions(amax=checkpoint))


@pytest.mark.parametrize("exported", ["pq"], indirect=True)
def test_names_that_do_not_fit_are_refused(
    exported: tuple[Path, Path, str], tmp_path: Path
) -> None:
    checkpoint, model, _ = exported
    bare = onnx.load(model)
    del bare.metadata_props[:]
    for node in bare.graph.node:
        node.name = node.name.replace("backbone.stem", "first")
    for weight in bare.graph.initializer:
        weight.name = weight.name.replace("backbone.stem", "first")
    for node in bare.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = name.replace("backbone.stem", "first")
        for k, name in enumerate(node.output):
            node.output[k] = name.replace("backbone.stem", "first")
    onnx.save(bare, tmp_path / "bare.onnx")
    how = pipeline.QuantizeOptions(amax=checkpoint)
    with pytest.raises(StaleTableError, match=r"1 of \d+ modules .* backbone\.stem\.conv"):
        pipeline.quantize(tmp_path / "bare.onnx", tmp_path / "x.onnx", how)
