"""Weights and images by a formula, so that what other code made of them can be written down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def filled(network: nn.Module) -> nn.Module:
    """Give a network waves for weights, uneven ones for its norms; by the order of its names."""
    for place, (key, value) in enumerate(sorted(network.state_dict().items())):
        if not value.is_floating_point():
            continue
        wave = _wave(value.numel(), place).reshape(value.shape)
        if key.endswith("running_var"):
            wave = 1 + 0.6 * wave
        elif value.ndim <= 1 and key.endswith("weight"):
            wave = 0.8 + 0.4 * wave
        elif value.ndim <= 1:
            wave = 0.3 * wave
        else:
            wave = wave * (1.5 / value[0].numel()) ** 0.5
        value.copy_(wave)
    return network.eval()


def images(batch: int, height: int, width: int) -> Tensor:
    """Return float32[batch, 3, height, width]."""
    return _wave(batch * 3 * height * width, 0.5).reshape(batch, 3, height, width).float()


def _wave(count: int, start: float) -> Tensor:
    steps = torch.arange(count, dtype=torch.float64)
    return torch.sin(steps * 0.7 + steps**2 * 1e-3 + start)
