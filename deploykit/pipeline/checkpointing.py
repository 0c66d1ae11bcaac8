"""The weights of an ONNX file as a PyTorch checkpoint, by the names of their recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from deploykit.files import artifacts
from deploykit.networks import reparam
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.recipes.metadata import ModelCard
    from deploykit.recipes.opened import Opened


def write(path: Path, made: Opened) -> None:
    """Write the weights of a model as a checkpoint that `export` reads."""
    assert made.card is not None  # checked before
    state = _state(made.graph.graph, made.card)
    with artifacts.replacing(path) as temporary:
        torch.save({"state_dict": state, "names": list(made.card.class_names)}, temporary)


def _state(graph: ir.Graph, card: ModelCard) -> dict[str, torch.Tensor]:
    """Return constants by name, those of a shipped recipe's folded network by its names."""
    held = {}
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.numpy().kind == "f":
            held[str(value.name)] = _tensor(value)
    network = _network(card)
    if network is None:
        return held
    for node in graph:  # weights that are equal are one in the graph, by one of their names
        path = str(node.name).rpartition(".")[0]
        for name, given in zip(("weight", "bias"), node.inputs[1:3], strict=False):
            if given is not None and given.const_value is not None:
                held.setdefault(f"{path}.{name}", _tensor(given))
    learns = {name for name, weight in network.named_parameters() if weight.requires_grad}
    own = network.state_dict()
    fixed = {name: value for name, value in own.items() if name not in learns}
    return {**fixed, **{name: value for name, value in held.items() if name in own}}


def _tensor(value: ir.Value) -> torch.Tensor:
    assert value.const_value is not None  # callers looked
    return torch.from_numpy(value.const_value.numpy().copy())


def _network(card: ModelCard) -> torch.nn.Module | None:
    """Return the network of a shipped recipe as it is exported, its weights random."""
    if card.recipe not in RECIPES.shipped():
        return None
    recipe = RECIPES.load(card.recipe)
    if card.variant not in recipe.variants:
        return None
    network = recipe.network(card.variant, len(card.class_names), card.preprocess.size)
    return reparam.deployed(recipe, network)
