"""A generated set of images with their objects, held and varied on the device that learns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deploykit.training import augmenting, gathering, loops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess
    from deploykit.data.sources import Dataset

LEAST_LEFT = 0.3
"""Share of a box inside a varied image below which its object is left out."""


@dataclass(frozen=True)
class Scenes:
    """Square images and their objects, as many rows each as the fullest image has."""

    images: Tensor
    """[N, 3, S, S]: uint8 as they were made, float32 from 0 to 1 where they are varied."""
    boxes: Tensor
    """float32[N, M, 4], xyxy in pixels."""
    classes: Tensor
    """int64[N, M]; -1: no object."""
    owners: Tensor
    """uint8[N, S, S]: 1 + the row of the object that a pixel shows, 0 for none; all 0 where masks
    were not asked for."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def to(self, device: torch.device) -> Scenes:
        """Return the same on a device."""
        return Scenes(*(part.to(device) for part in self._parts()))

    def chosen(self, index: Tensor) -> Scenes:
        """Return those images."""
        return Scenes(*(part[index] for part in self._parts()))

    def normalised(self, preprocess: Preprocess) -> Tensor:
        """Return varied images as the network takes them, in the last layout in memory."""
        images = self.images[:, [2, 1, 0]] if preprocess.channels == "BGR" else self.images
        mean, std = (
            torch.tensor(values, device=images.device).reshape(3, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )
        made = (images * (255 * preprocess.scale) - mean) / std
        return made.contiguous(memory_format=torch.channels_last)

    def _parts(self) -> tuple[Tensor, ...]:
        return (self.images, self.boxes, self.classes, self.owners)


def generated(
    spec: str, preprocess: Preprocess, *, masks: bool = False, processes: int = 1
) -> Scenes:
    """Return every image of a set of square inputs, made by several processes.

    Raises: DataError, as `sources.dataset` and `loops.load`.
    """
    make = partial(_part, preprocess=preprocess, masks=masks)
    return _joined(gathering.gathered(make, spec, processes))


_Part: TypeAlias = "tuple[NDArray[np.uint8], list[loops.Objects], NDArray[np.uint8]]"


def _part(data: Dataset, preprocess: Preprocess, *, masks: bool) -> _Part:
    """Return the images, their objects, and whose each pixel is."""
    images, objects = loops.load(data, preprocess, masks=masks)
    owners = np.zeros((len(images), *images.shape[2:]), np.uint8)
    for k, found in enumerate(objects):
        for row, mask in enumerate(found.masks() if masks else ()):
            owners[k][mask == 1] = row + 1
    bare = [loops.Objects(found.classes, found.boxes) for found in objects]
    return images.numpy(), bare, owners


def _joined(parts: list[_Part]) -> Scenes:
    objects = [found for _, some, _ in parts for found in some]
    most = max(1, *(len(found.boxes) for found in objects))
    boxes = torch.zeros(len(objects), most, 4)
    classes = torch.full((len(objects), most), -1)
    for k, found in enumerate(objects):
        boxes[k, : len(found.boxes)] = torch.from_numpy(found.boxes)
        classes[k, : len(found.boxes)] = torch.from_numpy(found.classes)
    images, owners = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in (0, 2))
    return Scenes(images, boxes, classes, owners)


def varied(scenes: Scenes, zoom: tuple[float, float], generator: torch.Generator) -> Scenes:
    """Return the images flipped, turned, scaled, moved and relit at random, as shares of white.

    zoom: Least and greatest factor of the objects' sizes. What an image does not fill is black.
    """
    count, place = len(scenes), scenes.images.device
    low, high = zoom
    size, *shift = torch.rand((3, count), generator=generator, device=place)
    reach = (low * (high / low) ** size).reciprocal()
    moves = _turns(count, generator) * reach[:, None, None]
    moved = (2 * torch.stack(shift, 1) - 1) * (1 - reach).abs()[:, None]
    theta = torch.cat([moves, moved[:, :, None]], 2)
    side = int(scenes.images.shape[-1])
    grid = functional.affine_grid(theta, [count, 1, side, side], align_corners=False)
    lit = augmenting.relit(scenes.images, generator)
    images = functional.grid_sample(lit, grid, align_corners=False)
    owners = functional.grid_sample(
        scenes.owners[:, None].float(), grid, mode="nearest", align_corners=False
    )
    boxes, left = _moved(scenes.boxes, moves, moved, side)
    classes = torch.where(left >= LEAST_LEFT, scenes.classes, -1)
    return Scenes(images, boxes, classes, owners[:, 0].to(torch.uint8))


def _turns(count: int, generator: torch.Generator) -> Tensor:
    """Return float32[count, 2, 2], each one of the eight flips and quarter turns."""
    chosen = torch.rand((3, count), generator=generator, device=generator.device) < 0.5
    straight = torch.diag_embed(torch.where(chosen[:2].T, -1.0, 1.0))
    return torch.where(chosen[2, :, None, None], straight.flip(2), straight)


def _moved(boxes: Tensor, moves: Tensor, shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the boxes where their objects are, clipped, and the share of each that is left.

    A pixel at p of the result shows the one at moves p + shift, both from -1 to 1. The moves are
    multiples of rotations and reflections, whose inverses are their transposes.
    """
    corners = boxes.reshape(len(boxes), -1, 2) * (2 / side) - 1 - shift[:, None]
    back = 2 * moves / moves.square().sum((1, 2), keepdim=True)
    there = (corners @ back + 1) * (side / 2)
    first, second = there.reshape(*boxes.shape[:2], 2, 2).unbind(2)
    whole = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)
    clipped = whole.clamp(0, side)
    area = (clipped[..., 2:] - clipped[..., :2]).prod(-1)
    return clipped, area / (whole[..., 2:] - whole[..., :2]).prod(-1).clamp(min=1e-6)
