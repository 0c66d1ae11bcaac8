"""What a point of PointRend's masks is: the layers of the point head, alone and for many points.

As in checkpoints the layers are convolutions along the points; see `point_rend`.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

NAMES = ("fc1", "fc2", "fc3")
"""Of the layers before the predictor."""
SIDE = 28
"""Its square is how many points of an object go through them."""
BLOCK = 16
"""Channels that runtimes hold together: a map of whole blocks goes through a layer in half the time
of one with a part of a block."""


class Points(nn.Module):
    """What a point is, from its fine features and the coarse masks there, for each layer."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        """Make the layers. channels: of the features. classes: the background not among them."""
        super().__init__()
        for name in NAMES:
            inputs = channels if name == "fc1" else width
            setattr(self, name, nn.Conv1d(inputs + classes, width, 1))
        self.predictor = nn.Conv1d(width + classes, classes, 1)

    def forward(self, fine: Tensor, coarse: Tensor, label: Tensor) -> Tensor:
        """Return the logits of each object's class at its points, float32[n, P].

        fine, coarse: float32[n, C, P] and [n, classes, P]. label: int64[n, 1].
        """
        *layers, last = self.children()
        x = fine
        for layer in layers:
            x = layer(torch.cat([x, coarse], 1)).relu()
        found = last(torch.cat([x, coarse], 1))
        own = label.unsqueeze(2).expand(-1, -1, found.shape[2])
        return cast("Tensor", found.gather(1, own).squeeze(1))

    def folded(self) -> nn.Module:
        """Return the same, which computes the logits of no other class."""
        return FoldedPoints(self)


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
    """What `Points` becomes: of the predictor the row of the object's class alone.

    The points of an object are a map of `SIDE` by `SIDE`, for which runtimes have their fastest
    convolutions, and what a layer makes of the coarse masks is added to what it makes of the rest:
    to put both into one map would copy it.
    """

    def __init__(self, source: Points) -> None:
        """Take the weights of `source`."""
        super().__init__()
        *layers, last = cast("list[nn.Conv1d]", list(source.children()))
        classes = last.out_channels
        for name, layer in zip(NAMES, layers, strict=True):
            weight = layer.weight.unsqueeze(-1)  # of the classes last
            own = F.pad(weight[:, -classes:], (0, 0, 0, 0, 0, -classes % BLOCK))
            setattr(self, name, _convolution(weight[:, :-classes], None))
            setattr(self, f"{name}_own", _convolution(own, layer.bias))
        first = layers[0]
        assert first.bias is not None
        own = first.weight[:, -classes:].squeeze(-1)
        self.first = nn.Parameter(torch.cat([own, first.bias.unsqueeze(1)], 1))
        rows = last.weight.squeeze(-1).tensor_split([-classes], 1)
        (self.weight, self.own), self.bias = map(nn.Parameter, rows), last.bias

    def mapped(self, features: Tensor) -> Tensor:
        """Return what the first layer makes of a map float32[B, C, H, W] alone."""
        return cast("Tensor", self.get_submodule("fc1")(features))

    def forward(
        self, fine: Tensor, coarse: Tensor, label: Tensor, *, mapped: bool = False
    ) -> Tensor:
        """Return what `Points` does. mapped: fine is what points read from a map of `mapped`."""
        here = F.pad(coarse, (0, 0, 0, -int(coarse.shape[1]) % BLOCK))
        here = here.reshape(-1, here.shape[1], SIDE, SIDE)
        x = fine.reshape(-1, fine.shape[1], SIDE, SIDE)
        for name in NAMES:
            known = mapped and name == "fc1"
            x = (self._first(fine, coarse) if known else self._layer(name, x, here)).relu()
        assert self.bias is not None
        inner, own = (F.embedding(label, each) for each in (self.weight, self.own))  # [n, 1, C]
        found = inner @ x.flatten(2) + own @ coarse
        return (found + F.embedding(label, self.bias.unsqueeze(1))).squeeze(1)

    def _layer(self, name: str, x: Tensor, here: Tensor) -> Tensor:
        both = self.get_submodule(name)(x), self.get_submodule(f"{name}_own")(here)
        return cast("Tensor", both[0] + both[1])

    def _first(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return float32[n, C, SIDE, SIDE]: fine and what the first layer makes of the masks.

        In one product, with the bias for a class that is 1 everywhere: fine is in no blocks yet,
        and a convolution's sum would want it so. As it was read, object beside object.
        """
        line = [each.transpose(0, 1).flatten(1) for each in (fine, coarse)]
        ones = F.pad(line[1], (0, 0, 0, 1), value=1.0)
        found = torch.addmm(line[0], self.first, ones)
        return found.reshape(len(found), -1, SIDE, SIDE).transpose(0, 1)


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a layer of weights float32[out, in, 1, 1]."""
    made = nn.Conv2d(weight.shape[1], len(weight), 1, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made
