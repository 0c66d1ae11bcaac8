"""What a recipe of one's own may be: what its network returns, and how its mistakes are told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit import KeepFloat, ModelError, OptionError, Output, Preprocess, Recipe, Variant
from deploykit.backends import onnxruntime
from deploykit.networks import outputs, reparam
from deploykit.recipes import opened

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
from torch import nn
from deploykit import KeepFloat, Output, Preprocess, Recipe, Variant

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images):
        features = self.body(images)
        {returns}

recipe = Recipe(
    name="own",
    task="detection",
    variants={{"small": Variant(Preprocess((32, 64)), (KeepFloat("^head", "scores"),))}},
    build=lambda variant, classes, size: Net(classes),
    identify=lambda state, facts: {identify},
    outputs=(Output("out", "label_map"), Output("features", "values")),
)
"""
CLASSES = '("small", state["head.weight"].shape[0])'


def written(folder: Path, returns: str, identify: str = CLASSES) -> Path:
    path = folder / "own.py"
    path.write_text(SOURCE.format(returns=returns, identify=identify))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    network = nn.ModuleDict({"body": body, "head": nn.Conv2d(8, 4, 1)})
    torch.save(network.state_dict(), tmp_path / "own.pth")
    return tmp_path / "own.pth"


@pytest.mark.parametrize(
    "returns",
    [
        'return {"aux": features, "features": features, "out": self.head(features)}',
        "return [self.head(features), features]",
        "return self.head(features), features",
    ],
)
def test_a_network_may_return_a_dict_a_list_or_a_tuple(
    returns: str, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = str(written(tmp_path, returns))
    options = deploykit.ExportOptions(recipe=recipe)
    made = deploykit.export(str(checkpoint), str(tmp_path / "own.onnx"), options)
    subject = opened.read(made.artifact.path)
    assert [value.name for value in subject.graph.graph.outputs] == ["out", "features"]
    convolutions = [node.name for node in subject.graph.graph if node.op_type == "Conv"]
    assert convolutions == ["body.0.Conv", "head.Conv"], "layers are named by their modules"
    found = onnxruntime.open_model(subject).run({"images": np.zeros((1, 3, 32, 64), np.float32)})
    assert {name: value.shape for name, value in found.items()} == {
        "out": (1, 4, 16, 32),
        "features": (1, 8, 16, 32),
    }


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ('return {"logits": features}', "returned a dict of logits"),
        ("return features", r"returned 1 values \(Tensor\)"),
        ("return features, None", r"returned 2 values \(Tensor, NoneType\)"),
    ],
)
def test_outputs_that_the_recipe_does_not_name_are_one_error(
    returns: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    options = deploykit.ExportOptions(recipe=str(written(tmp_path, returns)))
    with pytest.raises(OptionError, match=message) as caught:
        deploykit.export(checkpoint, tmp_path / "own.onnx", options)
    assert caught.value.expected == "tensors for its outputs: out, features"


def test_a_mistake_in_a_recipe_is_told_with_its_file_and_line(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, "return features", identify='state["absent"]')
    line = (
        path.read_text().splitlines().index('    identify=lambda state, facts: state["absent"],')
        + 1
    )
    with pytest.raises(OptionError, match=rf"own\.py, line {line}, in <lambda>: KeyError"):
        deploykit.export(
            checkpoint, tmp_path / "own.onnx", deploykit.ExportOptions(recipe=str(path))
        )


def test_a_network_that_cannot_be_traced_is_one_error(checkpoint: Path, tmp_path: Path) -> None:
    returns = "return (self.head(features), features) if features.sum() > 0 else features"
    options = deploykit.ExportOptions(recipe=str(written(tmp_path, returns)))
    with pytest.raises(ModelError, match="cannot trace the network of recipe own") as caught:
        deploykit.export(checkpoint, tmp_path / "own.onnx", options)
    assert "content" in caught.value.expected


def test_an_interrupt_that_the_exporter_swallows_is_still_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nested(*_: object, **__: object) -> None:
        failure = RuntimeError("export failed")
        failure.__context__ = AttributeError("half imported")
        failure.__context__.__context__ = KeyboardInterrupt()
        raise failure

    monkeypatch.setattr(torch.onnx, "export", nested)
    options = deploykit.ExportOptions(
        recipe=str(written(tmp_path, "return self.head(features), features"))
    )
    with pytest.raises(KeyboardInterrupt):
        deploykit.export(checkpoint, tmp_path / "own.onnx", options)


class Doubled(nn.Module):
    """Returns what its recipe wants in another form."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"b": images * 2, "a": images}


RECIPE = Recipe(
    name="doubled",
    task="detection",
    variants={
        "any": Variant(Preprocess((64, 64)), (KeepFloat("x", "y"),)),
        "fixed": Variant(Preprocess((64, 64)), size_multiple=None),
    },
    build=lambda *_: Doubled(),
    identify=lambda *_: None,
    outputs=(Output("a", "values"), Output("b", "values")),
)


def test_a_network_is_exported_with_its_outputs_in_the_recipes_order() -> None:
    images = torch.ones(1, 3, 2, 2)
    network = outputs.in_order(RECIPE.network("any", 1), RECIPE)
    a, b = network(images)
    assert (float(a.max()), float(b.max())) == (1, 2)
    assert [name for name, _ in outputs.named(RECIPE, network(images))] == ["a", "b"]


def test_folding_is_what_a_recipe_does_by_default() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    assert [type(m) for m in reparam.deployed(RECIPE, network).children()] == [
        nn.Conv2d,
        nn.Identity,
    ]
    own = replace(RECIPE, deploy=lambda network: network)
    assert reparam.deployed(own, network) is network


@pytest.mark.parametrize(
    ("variant", "size", "message"),
    [
        ("any", (40, 64), "two positive multiples of 32, such as 640x640"),
        ("any", (0, 64), "two positive multiples of 32"),
        ("fixed", (96, 96), "64x64: the network is made for that alone"),
    ],
)
def test_a_size_that_a_variant_cannot_take_is_refused(
    variant: str, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        RECIPE.network(variant, 1, size)
    assert message in str(caught.value.expected)


def test_sizes_keep_the_limits_that_they_can_hold() -> None:
    made = Variant(Preprocess((64, 96)).at_scale(64, 96))
    assert made.sized(None).limits == (64, 96)
    assert made.sized((96, 96)).limits == (64, 96)
    assert made.sized((32, 96)).limits is None, "as large as the user's canvas holds"


def test_an_unknown_variant_lists_the_nearest() -> None:
    with pytest.raises(OptionError, match="unknown variant of doubled 'fixd'"):
        RECIPE.variant("fixd")


def test_every_shipped_variant_names_features_that_its_network_has() -> None:
    from deploykit.recipes.recipe import RECIPES

    for name in RECIPES.shipped():
        recipe: Any = RECIPES.load(name)
        variant = next(iter(recipe.variants))
        with torch.device("meta"):
            modules = dict(recipe.network(variant, 3).named_modules())
        assert set(recipe.variant(variant).features) <= set(modules), name
        assert recipe.variant(variant).features, name
