"""A map as a table, of which points read rows: what each of four cells holds, and its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Table:
    """A map as a table, of which points read rows."""

    def __init__(self, features: Tensor) -> None:
        """Keep the map, float32[B, C, H, W]."""
        self.sides = int(features.shape[2]), int(features.shape[3])
        self.rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])

    def read(self, taps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return float32[n, P, C]: the sum of the rows int64[n, P], each times its [n, P, 1]."""
        parts = [F.embedding(place, self.rows) * weight for place, weight in taps]
        return sum(parts[1:], parts[0])


class Places(nn.Module):
    """From points to the rows of a table, and the weights with which they are read."""

    def forward(
        self,
        points: Tensor,
        image: Tensor,
        sides: tuple[int, int],
        within: tuple[Tensor, float] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Return rows int64[n, P] and weights float32[n, P, 1], four times, see `Table`.

        points: float32[n or 1, P, 2], x before y, 0 to 1 over the map or a box. image: int32[n],
        which of the batch. sides: of the map, H and W. within: boxes float32[n, 4] in input pixels,
        and how many of these there are to a cell.
        """
        height, width = sides
        if within is None:
            place = points * points.new_tensor([width, height]) - 0.5
        else:
            (low, high), stride = within[0].unsqueeze(1).chunk(2, 2), within[1]
            place = (low + points * (high - low)) / stride - 0.5
        x, y = place.unbind(-1)
        first = image.to(torch.int64).unsqueeze(1) * (height * width)
        return [
            (first + line * width + column, (down * across).unsqueeze(-1))
            for line, down in _cells(y, height)
            for column, across in _cells(x, width)
        ]


def _cells(place: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells in a row of `count` that a place is between, and their weights."""
    low = place.floor()
    found = []
    for cell in (low, low + 1):
        inside = cell.clamp(0, count - 1)
        weight = torch.where(cell == inside, 1 - (place - cell).abs(), 0.0)
        found.append((inside.to(torch.int64), weight))
    return found
