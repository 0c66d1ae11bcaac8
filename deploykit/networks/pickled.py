"""A pickled module beside the one that was built: settings of layers are taken over or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.recipes.identity import Layer, Plain
    from deploykit.recipes.recipe import StateDict

_FIXED = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "num_groups")
"""What a layer with weights does with them; another value is another network."""
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def paths(stored: StateDict, adapted: StateDict) -> dict[str, str]:
    """Return path of a layer in the file -> path in the network, for weights that only moved."""
    places = {id(value): key for key, value in stored.items()}
    moved = ((places[id(v)], key) for key, v in adapted.items() if id(v) in places)
    return {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in moved}


def settle(network: nn.Module, layers: Mapping[str, Layer], moved: Mapping[str, str]) -> None:
    """Give the norms of `network` the epsilon of the pickled ones.

    Raises: CheckpointError where a convolution or another layer with weights was pickled with
    another stride, padding, dilation or groups than the network's.
    """
    modules = dict(network.named_modules())
    for old, layer in layers.items():
        module = modules.get(moved.get(old, ""))
        if module is None or old not in moved:
            continue
        eps = layer.values.get("eps")
        if isinstance(module, _NORMS) and isinstance(eps, float) and 0 <= eps < 1:
            module.eps = eps
        for name in _FIXED:
            if name in layer.values and hasattr(module, name):
                stored, built = layer.values[name], getattr(module, name)
                if _spread(stored) != _spread(built):
                    raise CheckpointError(
                        f"layer {old}, a {layer.kind}, was trained with {name} {stored}",
                        expected=f"{built}, as in the network that its names and shapes say",
                        fix="write a recipe for it (see exporters/README.md) and name it "
                        "with --recipe",
                    )


def _spread(value: Plain) -> Plain:
    """Return one number for two equal ones."""
    same = isinstance(value, (tuple, list)) and len(value) == 2 and value[0] == value[1]
    return value[0] if same else value  # type: ignore[index]  # a pair
