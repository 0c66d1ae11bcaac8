"""What is published of a network, as numbers that a test can pin."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def digest(state: Mapping[str, Tensor]) -> tuple[int, str]:
    """Return how many entries a state dict has, and the SHA-256 of their names and shapes."""
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()


def facts(network: nn.Module, images: Tensor) -> tuple[int, int, int, str]:
    """Return parameters, multiply-adds, entries and 16 digits of the digest of a meta network."""
    spent = multiply_adds(network, images)
    parameters = sum(p.numel() for p in network.parameters())
    entries, whole = digest(network.state_dict())
    return parameters, spent, entries, whole[:16]


def multiply_adds(network: nn.Module, *inputs: Tensor) -> int:
    """Return how many multiply-adds a network spends on its inputs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return int(counter.get_total_flops()) // 2
