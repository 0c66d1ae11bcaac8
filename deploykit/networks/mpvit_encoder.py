"""MPViT's encoders: position encodings by convolutions, factorised attention, an MLP.

Source: CoaT (arXiv 2104.06399, section 3), as MPViT (arXiv 2112.11010) takes it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

HEADS = 8
"""Of every attention."""
WINDOWS = {3: 2, 5: 3, 7: 3}
"""Taps along the window in which a head sees relative places -> heads that have it."""
EPSILON = 1e-6
"""Of layer norms."""


def depthwise(channels: int, kernel: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution of each channel alone."""
    return nn.Conv2d(
        channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=bias
    )


class Pointwise(nn.Linear):
    """A linear layer of each place of a map: a convolution, which adds its bias itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, H, W] of float32[batch, in, H, W]."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class Norm(nn.LayerNorm):
    """A layer norm of each place of a map."""

    def __init__(self, width: int) -> None:
        """Make the layer."""
        super().__init__(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Places(nn.Module):
    """Adds to each place what a convolution sees around it: conditional position encoding."""

    def __init__(self, width: int) -> None:
        """Make the layer."""
        super().__init__()
        self.proj = depthwise(width, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        return cast("Tensor", x + self.proj(x))


class RelativePlaces(nn.Module):
    """What the heads see of the values around each place, in windows of several sizes."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.channels = [heads * (width // HEADS) for heads in WINDOWS.values()]
        self.conv_list = nn.ModuleList(
            depthwise(count, window, bias=True)
            for window, count in zip(WINDOWS, self.channels, strict=True)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        parts = torch.split(values, self.channels, 1)
        seen = [conv(part) for conv, part in zip(self.conv_list, parts, strict=True)]
        return torch.cat(seen, 1)


class Attention(nn.Module):
    """Factorised attention: q (softmax(k)^T v) / sqrt(d) + q * places(v), linear in N.

    Channels come first all the way, so that nothing is turned.
    """

    def __init__(self, width: int, crpe: RelativePlaces) -> None:
        """Make the layers; crpe: what all layers of the encoder share."""
        super().__init__()
        self.size = width // HEADS
        self.qkv, self.proj = Pointwise(width, 3 * width), Pointwise(width, width)
        self.crpe = crpe

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        q, k, v = self.qkv(x).chunk(3, 1)
        asked, keys, values = (
            part.unflatten(1, (HEADS, self.size)).flatten(3) for part in (q, k, v)
        )
        # [batch, HEADS, size, size] is the small one of the products: scaled is that
        kept = keys.softmax(3) @ values.transpose(2, 3) * self.size**-0.5
        mixed = (kept.transpose(2, 3) @ asked).reshape(q.shape)
        return cast("Tensor", self.proj(mixed + q * self.crpe(v)))


class Layer(nn.Module):
    """The places, then attention and an MLP, each behind a norm and beside its input."""

    def __init__(self, width: int, ratio: int, cpe: Places, crpe: RelativePlaces) -> None:
        """Make the layers; cpe, crpe: what all layers of the encoder share."""
        super().__init__()
        self.cpe, self.crpe = cpe, crpe
        self.factoratt_crpe = Attention(width, crpe)
        inner = ratio * width
        parts = [
            ("fc1", Pointwise(width, inner)),
            ("act", nn.GELU()),
            ("fc2", Pointwise(inner, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.norm1, self.norm2 = Norm(width), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        x = self.cpe(x)
        x = x + self.factoratt_crpe(self.norm1(x))
        return cast("Tensor", x + self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """The transformer of one path."""

    def __init__(self, width: int, ratio: int, layers: int) -> None:
        """Make the layers."""
        super().__init__()
        self.cpe, self.crpe = Places(width), RelativePlaces(width)
        self.MHCA_layers = nn.ModuleList(
            Layer(width, ratio, self.cpe, self.crpe) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        for layer in self.MHCA_layers:
            x = layer(x)
        return x
