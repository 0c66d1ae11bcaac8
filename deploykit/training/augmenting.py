"""Batches of images changed at random, each in its own way, where they are: on a CPU or a GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from deploykit.training.loops import GAIN, LIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor


def flipped(images: Tensor, generator: Generator) -> Tensor:
    """Return square images [B, ..., S, S], each after a random flip or quarter turn of eight."""
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
        lambda x: x.transpose(-1, -2),
    )
    for change in changes:
        chosen = _random((len(images),), generator) < 0.5
        images = torch.where(chosen.reshape(-1, *(1,) * (images.ndim - 1)), change(images), images)
    return images


def warped(images: Tensor, generator: Generator, *, zoom: float, shift: float) -> Tensor:
    """Return float32[B, C, H, W], each turned by any angle, zoomed and moved; the rest mirrored.

    zoom: Up to this factor, and down to its inverse. shift: Up to this share of the sides.
    """
    count = len(images)
    angle = _random((count,), generator) * math.tau
    scale = torch.exp((2 * _random((count,), generator) - 1) * math.log(zoom))
    move = (2 * _random((count, 2), generator) - 1) * 2 * shift
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack(row, 1) for row in ((cos, -sin, move[:, 0]), (sin, cos, move[:, 1]))]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def relit(images: Tensor, generator: Generator) -> Tensor:
    """Return float32[B, 3, H, W], 0 to 1, of levels after random contrast and brightness."""
    count = len(images)
    gain = 1 + GAIN * (2 * _random((count, 3, 1, 1), generator) - 1)
    lift = LIFT * (2 * _random((count, 1, 1, 1), generator) - 1)
    return (images.float() * gain + lift).clamp(0, 255) / 255


def _random(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return float32 of equal chances, 0 to 1, where the generator is."""
    return torch.rand(shape, generator=generator, device=generator.device)
