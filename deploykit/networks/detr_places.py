"""Where things are in DETR's images: places of cells, what is beside an image, boxes in pixels.

Source: arXiv 2005.12872, section A.4. An image that fills its input has constants for places. One
that lies at the top left of a larger canvas has places by its own extent, and what is beside it is
not looked at.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.networks.detectors import dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Size = tuple[int, int]
    """Height and width."""

UNSEEN = -1e4
"""What is added to a look at what is beside the image; FP16 holds it, and its share is 0."""
EPSILON = 1e-6
TEMPERATURE = 10_000.0


@functools.cache
def positions(height: int, width: int, channels: int, *, at: float = 1.0) -> NDArray[np.float32]:
    """Return the embedding of each place of a map, float32[1, height * width, channels].

    Half the channels are for the row and half for the column: sine and cosine of 2 pi times its
    share of the map, divided by TEMPERATURE ** (2 * i / (channels / 2)) for the pair i. at: where
    in the first cell its place is, from 0 to 1.
    """
    half = channels // 2
    axes = []
    for count in (height, width):
        place = np.arange(count, dtype=np.float32) + np.float32(at)
        share = place / np.float32(count + 1e-6)
        angles = (share * np.float32(2 * math.pi))[:, None] / steps(half)
        axes.append(np.stack([np.sin(angles), np.cos(angles)], 2).reshape(count, half))
    rows = np.broadcast_to(axes[0][:, None], (height, width, half))
    columns = np.broadcast_to(axes[1][None], (height, width, half))
    return np.concatenate([rows, columns], 2).reshape(1, -1, channels).astype(np.float32)


def steps(channels: int) -> NDArray[np.float32]:
    """Return what the angles of each pair of channels are divided by, float32[channels / 2]."""
    found: NDArray[np.float32] = (TEMPERATURE ** (2 * np.arange(channels // 2) / channels)).astype(
        np.float32
    )
    return found


class Places(NamedTuple):
    """What attention is told of the cells of an image."""

    place: Tensor
    """float32[1 or batch, N, C]."""
    beside: Tensor | None = None
    """float32[batch, 1, 1, N], what is added to looks at each."""


class Padding(nn.Module):
    """Where cells are in their images, and which are beside them."""

    def forward(self, x: Tensor, sizes: Tensor | None, canvas: Size) -> Places:
        """Return the places of a map float32[batch, C, h, w] of canvases of `canvas` pixels.

        sizes: float32[batch, 2], height and width of the image in each; None: they are filled.
        """
        width, shape = int(x.shape[1]), (int(x.shape[2]), int(x.shape[3]))
        if sizes is None:
            return Places(torch.from_numpy(positions(*shape, width)).to(x.device))
        rows, columns = (
            (_first_pixels(side, cells, x.device) < size).to(x.dtype)
            for side, cells, size in zip(canvas, shape, (sizes[:, :1], sizes[:, 1:]), strict=True)
        )
        place = torch.cat(
            [
                _embedded(rows, width // 2).unsqueeze(2).expand(-1, -1, shape[1], -1),
                _embedded(columns, width // 2).unsqueeze(1).expand(-1, shape[0], -1, -1),
            ],
            3,
        )
        beside = (1 - rows.unsqueeze(2) * columns.unsqueeze(1)) * UNSEEN
        return Places(place.flatten(1, 2), beside.flatten(1).unsqueeze(1).unsqueeze(1))


def _first_pixels(side: int, cells: int, device: torch.device) -> Tensor:
    """Return the pixel of a canvas that says whether a cell is in the image, float32[1, cells].

    It is the one that resizing to the nearest pixel takes.
    """
    scale = np.float32(side) / np.float32(cells)
    first = np.floor(np.arange(cells, dtype=np.float32) * scale).clip(max=side - 1)
    return torch.from_numpy(first[None]).to(device)


def _embedded(there: Tensor, channels: int) -> Tensor:
    """Return the embedding of places along an axis, float32[batch, n, channels].

    there: float32[batch, n], 1 for cells in the image, which are the first ones.
    """
    count = int(there.shape[1])
    place = torch.arange(1, count + 1, dtype=there.dtype, device=there.device)
    share = place / (there.sum(1, keepdim=True) + EPSILON)
    step = torch.from_numpy(steps(channels)).to(there.device)
    angles = (share * (2 * math.pi)).unsqueeze(2) / step
    return torch.stack([angles.sin(), angles.cos()], 3).flatten(2)


class Select(nn.Module):
    """Each query as an object of its best class, the surest first."""

    def __init__(self, detections: int | None = None) -> None:
        """Take how many there are at most; None: as many as queries."""
        super().__init__()
        self.detections = detections

    def forward(self, logits: Tensor, boxes: Tensor, size: Size | Tensor) -> tuple[Tensor, ...]:
        """Return boxes in input pixels, scores, classes, count and the queries they are of.

        The last class is nothing.
        """
        found, classes = logits.softmax(-1)[..., :-1].max(-1)
        queries = int(found.shape[1])
        scores, order = found.topk(min(self.detections or queries, queries))
        count = (scores >= 0).sum(1)
        chosen = dense.rows(in_pixels(boxes, size), order)
        return chosen, scores, classes.gather(1, order), count, order


def in_pixels(boxes: Tensor, size: Size | Tensor) -> Tensor:
    """Return corners in pixels of boxes float32[B, N, 4], cx, cy, w, h as shares of the image.

    size: its height and width, or those of each image, float32[B, 2].
    """
    centres, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat([centres - half, centres + half], -1)
    if isinstance(size, Tensor):
        return corners * size[:, [1, 0, 1, 0]].unsqueeze(1)
    return corners * corners.new_tensor([size[1], size[0]] * 2)
