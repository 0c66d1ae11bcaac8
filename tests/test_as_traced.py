"""An exported graph beside its network, both in float64: a fault of any size shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from deploykit.data.preprocess import Preprocess
from deploykit.errors import ProofError
from deploykit.graph import fusion
from deploykit.graph.editing import exact
from deploykit.networks import reparam, tracing
from deploykit.networks.loading import Network
from deploykit.proof import acceptance, exports, hidden, proving, rewrites, rule
from deploykit.proof.as_traced import AsTraced
from deploykit.recipes import opened
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES, SIDE = 4, 16


class Run:
    """A torch module in float64 as a session."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module.double()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            return {"y": self._module(torch.from_numpy(feeds["x"]).double()).numpy()}


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.1 + torch.full((1,), 0.7, dtype=x.dtype)


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().double() * 0.5


FEED = {"x": np.random.default_rng(0).random((2, 3), np.float32)}


def test_numbers_that_an_op_takes_by_default_are_those_of_float32() -> None:
    """torch hands an op no argument that equals its default, as LayerNorm's epsilon does."""
    session = AsTraced(Run(nn.LayerNorm(3)))
    x = 0.01 * FEED["x"]
    away = x.astype(np.float64) - x.astype(np.float64).mean(1, keepdims=True)
    epsilon = float(np.float32(1e-5))
    expected = away / np.sqrt((away**2).mean(1, keepdims=True) + epsilon)
    found: Any = session.run({"x": x})["y"]
    assert np.abs(found - expected).max() < 1e-14
    assert session.scalars == frozenset({epsilon})


def test_scalars_of_the_code_are_those_of_float32() -> None:
    session = AsTraced(Run(Scaled()))
    tenth, part = float(np.float32(0.1)), float(np.float32(0.7))
    np.testing.assert_array_equal(
        session.run(FEED)["y"], FEED["x"].astype(np.float64) * tenth + part
    )
    assert session.scalars is not None
    assert {tenth, part} <= session.scalars


def test_what_is_computed_in_float32_has_no_last_digits_to_compare() -> None:
    session = AsTraced(Run(Narrow()))
    session.run(FEED)
    assert session.scalars is None


def graph_of(number: float, **attributes: float) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", const_value=ir.tensor(np.float32(number), name="w"))
    node = ir.node("Mul", [x, weight])
    last = ir.node("LeakyRelu", [node.outputs[0]], attributes=attributes)
    graph = ir.Graph([x], [last.outputs[0]], nodes=[node, last], opset_imports={"": 19})
    graph.register_initializer(weight)
    return ir.Model(graph, ir_version=10)


def test_numbers_that_the_code_does_not_name_are_found() -> None:
    root = float(np.float32(2**0.5))
    assert hidden.numbers(graph_of(root, alpha=0.1), frozenset()).tolist() == [root]
    assert hidden.numbers(graph_of(root), frozenset({root})).tolist() == []
    assert hidden.numbers(graph_of(0.375), frozenset()).tolist() == []


def test_they_are_moved_by_what_rounding_moves_them() -> None:
    watch = hidden.nudging(np.array([1.4142135381698608]), 0)
    moved = watch("w", np.array([1.4142135381698608, 2.0]))
    assert 0 < abs(moved[0] / 1.4142135381698608 - 1) < 6e-8
    assert moved[1] == 2


class Net(nn.Module):
    """A batch norm that the exporter folds, numbers in the code, a narrow output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.norm(self.conv(x)), 0.1)
        return 4000 + 0.3 * torch.tanh(self.head(nn.functional.hardswish(x).mean((2, 3))))


@pytest.fixture(scope="module")
def trained() -> Network:
    torch.manual_seed(0)
    module = Net().eval()
    assert module.norm.running_var is not None
    module.norm.running_var.uniform_(0.01, 4)
    names = tuple("abcd"[:CLASSES])
    card = ModelCard("repvgg", "a0", "classification", Preprocess((SIDE, SIDE)), names, "0" * 64)
    return Network(module, RECIPES.load("repvgg"), card)


@pytest.fixture(scope="module")
def reference(trained: Network) -> proving.Reference:
    return exports.prove_fold(trained, trained)


@pytest.fixture(scope="module")
def traced(trained: Network) -> ir.Model:
    model = tracing.to_onnx(trained, 19)
    fusion.fuse(model)
    return model


def test_network_and_graph_are_one_in_float64(
    traced: ir.Model, reference: proving.Reference, tmp_path: Path
) -> None:
    exports.prove_export(opened.made(traced, tmp_path / "m.onnx"), reference)
    double = rewrites.in_double(traced, traced)
    assert double is not None
    assert reference.traced is not None
    found = double.run(reference.feeds[-1])["logits"]
    assert np.allclose(found, reference.traced["logits"], rtol=1e-15, atol=0)


def test_the_batch_norm_is_rounded_once(traced: ir.Model, trained: Network) -> None:
    module = trained.module
    assert isinstance(module, Net)
    folded = reparam.fuse(module.conv.double(), module.norm)
    module.conv.float()
    weight = traced.graph.initializers["conv.weight"]
    kept = exact(weight)
    assert kept is not None
    assert weight.const_value is not None
    np.testing.assert_allclose(kept, folded.weight.detach().numpy(), rtol=1e-7)
    assert not np.array_equal(kept, weight.const_value.numpy())
    np.testing.assert_array_equal(kept.astype(np.float32), weight.const_value.numpy())


def _slope(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "LeakyRelu")
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.1001)


def _bias(model: ir.Model) -> None:
    value = model.graph.initializers["head.bias"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0] *= 1 + 1e-5
    value.const_value = ir.tensor(array, name="head.bias")


@pytest.mark.parametrize("damage", [_slope, _bias])
def test_a_fault_far_below_the_rounding_of_float32_is_refused(
    damage: Callable[[ir.Model], None],
    traced: ir.Model,
    reference: proving.Reference,
    tmp_path: Path,
) -> None:
    model = traced.clone()
    damage(model)
    for name, value in traced.graph.initializers.items():
        model.graph.initializers[name].meta.update(value.meta)
    candidate = opened.made(model, tmp_path / "m.onnx")
    with pytest.raises(ProofError, match="the export changed output 'logits'"):
        exports.prove_export(candidate, reference)
    session, _ = acceptance.open_filled(candidate)
    (agreement,) = proving.compare(session, reference, rule.SINGLE)
    assert agreement.passed, "float32 does not see it"


def test_what_a_recipe_folds_is_known(trained: Network) -> None:
    assert not reparam.changes(trained.recipe, trained.module)
    chain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert reparam.changes(trained.recipe, chain)
    own = replace(trained.recipe, deploy=lambda module: module)
    assert reparam.changes(own, trained.module)
