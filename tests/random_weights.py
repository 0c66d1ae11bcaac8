"""Random weights that tell mistakes apart, and the refusal of weights with something wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch

from deploykit.errors import CheckpointError
from deploykit.networks import loading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

Network = TypeVar("Network", bound="nn.Module")
TABLES = {"table": 1.5}
"""Biases of places in the windows of a Swin transformer, far from 0."""

HALVES: tuple[tuple[Callable[[Mapping[str, Any]], Any], str], ...] = (
    (lambda s: dict(list(s.items())[: len(s) // 2]), "is not a checkpoint of"),
    (lambda s: dict(list(s.items())[len(s) // 2 :]), "is not a checkpoint of"),
)
"""What is done to a checkpoint, and said of it: half of it is left."""


def skewed(
    network: Network,
    *,
    uneven: float = 0.5,
    biases: float = 0.3,
    spreads: Mapping[str, float] | None = None,
) -> Network:
    """Give a network random weights, uneven norms and biases far from 0, and return it.

    uneven: spread of the logarithm of what norms multiply with. spreads: part of a key -> the
    standard deviation of such weights.
    """
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        own = next((spread for part, spread in (spreads or {}).items() if part in key), None)
        if own is not None:
            value.normal_(0, own, generator=generator)
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            value.copy_(torch.exp(torch.randn(value.shape, generator=generator) * uneven))
        elif value.ndim == 1:
            value.normal_(0, biases, generator=generator)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    network.eval()
    return network


def check_refused(state: Mapping[str, Tensor], said: str, folder: Path) -> None:
    """Check that a checkpoint of these weights is refused with a message that says `said`."""
    torch.save(state, folder / "harmed.pth")
    with pytest.raises(CheckpointError, match=said):
        loading.load_network(folder / "harmed.pth", loading.NetworkOptions())
