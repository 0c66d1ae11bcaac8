"""What the names and shapes in an MPViT checkpoint say, and the names that share one weight."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from deploykit.errors import CheckpointError
from deploykit.networks.mpvit import VARIANTS
from deploykit.networks.states import children, outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from deploykit.recipes.recipe import StateDict


def variant(state: StateDict, prefix: str = "") -> str | None:
    """Return the size that weights behind `prefix` are of, None where they are of none."""
    stages = range(len(children(state, f"{prefix}mhca_stages")))
    blocks = [f"{prefix}mhca_stages.{i}.mhca_blks" for i in stages]
    first = [
        f"{prefix}patch_embed_stages.{i}.patch_embeds.0.patch_conv.pwconv.weight" for i in stages
    ]
    found = (
        tuple(outputs(state, key) for key in first),
        tuple(len(children(state, f"{block}.0.MHCA_layers")) for block in blocks),
        tuple(len(children(state, block)) for block in blocks),
        outputs(state, f"{prefix}mhca_stages.0.mhca_blks.0.MHCA_layers.0.mlp.fc1.weight"),
    )
    known = (
        (name, (a.widths, a.layers, a.paths, a.ratio * a.widths[0])) for name, a in VARIANTS.items()
    )
    return next((name for name, own in known if own == found), None)


_ENCODER = r"^(?P<encoder>(?:.*\.)?mhca_stages\.\d+\.mhca_blks\.\d+)\."
_LAYER = re.compile(_ENCODER + r"MHCA_layers\.(?P<layer>\d+)\.")
_SHARED = re.compile(
    _ENCODER + r"(?:MHCA_layers\.\d+\.(?:factoratt_crpe\.)?)?"
    r"(?P<part>cpe\.proj|crpe\.conv_list\.[0-2])\.(?P<kind>weight|bias)$"
)
"""A weight of the position encodings, which all layers of an encoder share."""


def shared(state: StateDict) -> StateDict:
    """Return `state` with the shared weights under each name that they have in a network.

    A file may hold all of the names, or any one. Raises: CheckpointError where two differ.
    """
    found: dict[tuple[str, str], tuple[str, Tensor]] = {}
    layers: dict[str, set[str]] = defaultdict(set)
    for key, value in state.items():
        if layer := _LAYER.match(key):
            layers[layer["encoder"]].add(layer["layer"])
        if match := _SHARED.match(key):
            place = match["encoder"], f"{match['part']}.{match['kind']}"
            first, own = found.setdefault(place, (key, value))
            if not _same(own, value):
                raise CheckpointError(
                    f"weights {first} and {key} differ",
                    expected="one value: the layers of an MPViT encoder share their encodings",
                    fix="export from the checkpoint that the training wrote",
                )
    whole = dict(state)
    for (encoder, part), (_, value) in found.items():
        whole |= dict.fromkeys(_names(encoder, part, layers[encoder]), value)
    return whole


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two weights are one in memory, or equal."""
    stored = one.shape == other.shape and one.data_ptr() == other.data_ptr()
    return stored or torch.equal(one, other)


def _names(encoder: str, part: str, layers: set[str]) -> Iterator[str]:
    """Yield the names of one shared weight of an encoder."""
    yield f"{encoder}.{part}"
    for layer in sorted(layers):
        yield f"{encoder}.MHCA_layers.{layer}.{part}"
        if part.startswith("crpe"):
            yield f"{encoder}.MHCA_layers.{layer}.factoratt_crpe.{part}"
