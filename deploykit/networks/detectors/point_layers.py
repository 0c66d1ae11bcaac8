"""What a point of PointRend's masks is: the layers of the point head, alone and for many points.

As in checkpoints the layers are convolutions along the points; see `point_rend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

LAYERS = 3
"""Before the predictor."""


class Points(nn.Module):
    """What a point is, from its fine features and the coarse masks there, for each layer."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        """Make the layers. channels: of the features. classes: the background not among them."""
        super().__init__()
        for number in range(1, LAYERS + 1):
            inputs = channels if number == 1 else width
            setattr(self, f"fc{number}", nn.Conv1d(inputs + classes, width, 1))
        self.predictor = nn.Conv1d(width + classes, classes, 1)

    def forward(self, fine: Tensor, coarse: Tensor, label: Tensor) -> Tensor:
        """Return the logits of each object's class at its points, float32[n, P].

        fine, coarse: float32[n, P, C] and [n, P, classes]. label: int64[n, 1].
        """
        *layers, last = self.children()
        found = _inner(layers, fine.flatten(0, 1), coarse.flatten(0, 1))
        found = row(last, found.reshape(-1, fine.shape[1], found.shape[1]))
        own = label.unsqueeze(2).expand(-1, found.shape[1], -1)
        return found.gather(2, own).squeeze(2)

    def folded(self) -> nn.Module:
        """Return the same, which computes the logits of no other class."""
        return FoldedPoints(self)


def _inner(layers: Iterable[nn.Module], x: Tensor, here: Tensor) -> Tensor:
    """Return what the predictor reads, float32[n * P, C + classes].

    The layers get all points as the rows of one matrix: with it, runtimes multiply, add the bias
    and take the ReLU in one step.
    """
    for layer in layers:
        x = row(layer, torch.cat([x, here], 1)).relu()
    return torch.cat([x, here], 1)


def row(layer: nn.Module, rows: Tensor) -> Tensor:
    """Return float32[..., out] of rows float32[..., in]."""
    if isinstance(layer, nn.Conv1d):
        return F.linear(rows, layer.weight.squeeze(-1), layer.bias)
    return cast("Tensor", layer(rows))


def linear(layer: nn.Conv1d) -> nn.Linear:
    """Return a convolution along the points as a layer of their rows."""
    made = nn.Linear(layer.in_channels, layer.out_channels, device="meta")
    assert layer.bias is not None
    made.weight, made.bias = nn.Parameter(layer.weight.squeeze(-1)), nn.Parameter(layer.bias)
    return made


def before(layer: nn.Linear, features: Tensor) -> Tensor:
    """Return a map, float32[B, out, H, W], of one, of the first C inputs and without the bias.

    A weighted mean of what a layer makes of cells is what it makes of the mean: where points are
    many, the first layer may see each cell once, and not each point.
    """
    weight = layer.weight[:, : features.shape[1]]
    return F.conv2d(features, weight.unsqueeze(-1).unsqueeze(-1))


class FoldedPoints(nn.Module):
    """What `Points` becomes: linear layers, and of the predictor the row of the object's class."""

    def __init__(self, source: Points) -> None:
        """Take the weights of `source`."""
        super().__init__()
        *layers, last = cast("list[nn.Conv1d]", list(source.children()))
        for number, layer in enumerate(layers, start=1):
            setattr(self, f"fc{number}", linear(layer))
        self.weight, self.bias = nn.Parameter(last.weight.squeeze(-1)), last.bias

    def mapped(self, features: Tensor) -> Tensor:
        """Return what the first layer makes of a map float32[B, C, H, W] alone."""
        return before(cast("nn.Linear", next(self.children())), features)

    def forward(
        self, fine: Tensor, coarse: Tensor, label: Tensor, *, mapped: bool = False
    ) -> Tensor:
        """Return what `Points` does. mapped: fine is what points read from a map of `mapped`."""
        assert self.bias is not None
        layers = cast("list[nn.Linear]", list(self.children()))
        x, here = fine.flatten(0, 1), coarse.flatten(0, 1)
        if mapped:
            first, *layers = layers
            own = F.linear(here, first.weight[:, -here.shape[1] :], first.bias)
            x = (x + own).relu()
        weight = F.embedding(label, self.weight).transpose(1, 2)  # [n, C, 1]
        x = _inner(layers, x, here)
        found = x.reshape(-1, fine.shape[1], x.shape[1]) @ weight
        return found.squeeze(2) + F.embedding(label, self.bias.unsqueeze(1)).squeeze(2)
