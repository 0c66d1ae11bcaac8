"""Swin transformers: attention inside windows, which every second block shifts by half of one.

Source: Swin Transformer (arXiv 2103.14030, section 3); the names of parameters are those of
github.com/microsoft/Swin-Transformer (MIT). The code is written from the paper. Everything that
depends on the size of the input, the masks of shifted windows among it, is made once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deploykit.networks.states import children, outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.recipe import StateDict

PATCH, HEAD, RATIO = 4, 32, 4
"""Pixels along a patch, channels of an attention head, and how much wider an MLP is inside."""
APART = -100.0
"""Added to the likeness of two patches that only the shift brought into one window."""
FARTHER = 1.5
"""By which a folded network multiplies that: exp(-100) is one of float32's smallest numbers, those
with fewer digits, which processors multiply at a fraction of their speed; exp(-150) is 0 there."""


@dataclass(frozen=True)
class Architecture:
    """All that tells one network from another."""

    width: int
    """Channels of the first stage; each further one has twice as many."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    window: int = 7
    """Patches along a window."""


SIZES = {
    "tiny": Architecture(96, (2, 2, 6, 2)),
    "small": Architecture(96, (2, 2, 18, 2)),
    "base": Architecture(128, (2, 2, 18, 2)),
    "large": Architecture(192, (2, 2, 18, 2)),
}
VARIANTS = {
    **SIZES,
    **{f"{name}_384": Architecture(a.width, a.depths, 12) for name, a in SIZES.items()},
    "light": Architecture(64, (2, 2, 2), 4),
}
"""`light` is this project's own, for images of 64x64."""


def variant(state: StateDict) -> str | None:
    """Return the size that weights are of, None where they are of none."""
    attention = "layers.0.blocks.0.attn"
    table, folded = (outputs(state, f"{attention}.{n}") for n in (_TABLE, "bias"))
    bias = state.get(f"{attention}.bias")
    if table is not None:
        window = (round(table**0.5) + 1) // 2
    elif folded is not None and bias is not None:
        window = round(bias.shape[-1] ** 0.5)
    else:
        return None
    stages = range(len(children(state, "layers")))
    depths = tuple(len(children(state, f"layers.{stage}.blocks")) for stage in stages)
    found = (outputs(state, "patch_embed.proj.weight"), depths, window)
    known = ((name, (a.width, a.depths, a.window)) for name, a in VARIANTS.items())
    return next((name for name, own in known if own == found), None)


_TABLE = "relative_position_bias_table"


class Attention(nn.Module):
    """Each patch of a window looks at all others, with a bias for where they lie to each other."""

    def __init__(self, width: int, window: int) -> None:
        """Make the layers for windows of `window` by `window` patches."""
        super().__init__()
        self.heads, self.window = width // HEAD, window
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, self.heads)
        )
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def biases(self) -> Tensor:
        """Return what is added to the likeness of two patches, float32[heads, N, N]."""
        lines = torch.arange(self.window)
        apart = lines[:, None] - lines[None] + self.window - 1  # along one axis
        rows = apart[:, None, :, None] * (2 * self.window - 1) + apart[None, :, None, :]
        count = self.window**2
        chosen = self.relative_position_bias_table[rows.reshape(-1)]
        return chosen.reshape(count, count, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return float32[batch * windows, N, C] of the same; mask: float32[windows, 1, N, N]."""
        q, k, v = _split(self.qkv(x), self.heads)
        mixed = attended(q * HEAD**-0.5, k, v, self.biases(), mask)
        return cast("Tensor", self.proj(mixed))

    def folded(self) -> nn.Module:
        """Return the same with the biases at their places, and the scale inside the queries."""
        return FoldedAttention(self)


class FoldedAttention(nn.Module):
    """What an `Attention` becomes."""

    def __init__(self, source: Attention) -> None:
        """Take the layers of `source` under their names."""
        super().__init__()
        self.heads = source.heads
        self.proj, self.qkv = source.proj, copy.deepcopy(source.qkv)
        self.bias = nn.Parameter(source.biases().detach().contiguous())
        queries = self.qkv.in_features
        for values in (self.qkv.weight, self.qkv.bias):
            values.data[:queries] = (values.data[:queries].double() * HEAD**-0.5).to(values.dtype)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return float32[batch * windows, N, C] of the same; mask: float32[windows, 1, N, N]."""
        mask = None if mask is None else mask * FARTHER
        mixed = attended(*_split(self.qkv(x), self.heads), self.bias, mask)
        return cast("Tensor", self.proj(mixed))


def _split(packed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, float32[B, heads, N, HEAD], of float32[B, N, 3 * C]."""
    parts = packed.reshape(-1, packed.shape[1], 3, heads, HEAD).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T + bias + mask) v as float32[B, N, heads * HEAD]."""
    alike = q @ k.transpose(-2, -1) + bias
    if mask is not None:
        windows, heads, count = len(mask), q.shape[1], q.shape[2]
        split = alike.reshape(-1, windows, heads, count, count) + mask
        alike = split.reshape(-1, heads, count, count)
    mixed = alike.softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two layers, and a GELU between them."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1, self.act = nn.Linear(width, RATIO * width), nn.GELU()
        self.fc2 = nn.Linear(RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[..., C] of the same."""
        return cast("Tensor", self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside the input."""

    mask: Tensor | None

    def __init__(self, width: int, window: int, sides: tuple[int, int], *, shifted: bool) -> None:
        """Make the layers for maps of `sides` patches; an axis of one window is never shifted."""
        super().__init__()
        self.window = window
        self.shifts = tuple(window // 2 if shifted and side > window else 0 for side in sides)
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, window)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        mask = shift_mask(sides, window, self.shifts) if any(self.shifts) else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, h, w, C] of the same."""
        return self._through(x + self._attended(x))

    def _through(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor) -> Tensor:
        back = rolled(self.norm1(x), [-shift for shift in self.shifts])
        inside = self.attn(in_windows(back, self.window), self.mask)
        return rolled(of_windows(inside, self.window, x.shape[1:3]), self.shifts)


def rolled(x: Tensor, shifts: Sequence[int]) -> Tensor:
    """Return float32[batch, h, w, C], moved down and right around the edges."""
    axes = [axis for axis, shift in enumerate(shifts, start=1) if shift]
    return torch.roll(x, [shift for shift in shifts if shift], axes) if axes else x


def in_windows(x: Tensor, window: int) -> Tensor:
    """Return float32[batch * windows, window * window, C] of float32[batch, h, w, C]."""
    _, high, wide, channels = x.shape
    split = x.reshape(-1, high // window, window, wide // window, window, channels)
    return split.transpose(2, 3).reshape(-1, window * window, channels)


def of_windows(x: Tensor, window: int, sides: Sequence[int]) -> Tensor:
    """Return float32[batch, *sides, C] of what `in_windows` returns."""
    high, wide = sides
    split = x.reshape(-1, high // window, wide // window, window, window, x.shape[-1])
    return split.transpose(2, 3).reshape(-1, high, wide, x.shape[-1])


def shift_mask(sides: Sequence[int], window: int, shifts: Sequence[int]) -> Tensor:
    """Return float32[windows, 1, N, N]: 0 where two patches were neighbours before the shift."""
    # What came around an edge has another number; only the last window of an axis holds both.
    rows, columns = (
        (torch.arange(side) >= side - shift).float()
        for side, shift in zip(sides, shifts, strict=True)
    )
    regions = (2 * rows[:, None] + columns)[None, :, :, None]
    numbers = in_windows(regions, window)[..., 0]
    return (numbers[:, None, :, None] != numbers[:, None, None, :]).float() * APART


class Merge(nn.Module):
    """Four neighbouring patches become one, of twice the channels."""

    def __init__(self, width: int) -> None:
        """Make the layers for patches of `width` channels."""
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, h / 2, w / 2, 2 * C] of float32[batch, h, w, C]."""
        _, high, wide, channels = x.shape
        split = x.reshape(-1, high // 2, 2, wide // 2, 2, channels)
        joined = split.permute(0, 1, 3, 4, 2, 5).flatten(3)  # by columns, then by rows
        return cast("Tensor", self.reduction(self.norm(joined)))


class Stage(nn.Module):
    """Blocks of one width, then a `Merge` where another stage follows."""

    def __init__(self, width: int, depth: int, window: int, sides: tuple[int, int]) -> None:
        """Make the blocks for maps of `sides` patches; `downsample` is set by the network."""
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(width, window, sides, shifted=i % 2 == 1) for i in range(depth))
        )
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, h, w, C], or half the sides and twice the channels."""
        found = self.blocks(x)
        return cast("Tensor", found if self.downsample is None else self.downsample(found))


class Embed(nn.Module):
    """Patches of an image as vectors."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, H / 4, W / 4, C] of images float32[batch, 3, H, W]."""
        return cast("Tensor", self.norm(self.proj(images).permute(0, 2, 3, 1)))


class Classifier(nn.Module):
    """The stages, the mean over the image, one linear layer."""

    def __init__(self, architecture: Architecture, classes: int, size: tuple[int, int]) -> None:
        """Make the network for images of `size`, as it is trained."""
        super().__init__()
        self.patch_embed = Embed(architecture.width)
        stages = []
        for i, depth in enumerate(architecture.depths):
            width, stride = architecture.width << i, PATCH << i
            sides = size[0] // stride, size[1] // stride
            stage = Stage(width, depth, architecture.window, sides)
            if i < len(architecture.depths) - 1:
                stage.downsample = Merge(width)
            stages.append(stage)
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes] of images float32[batch, 3, H, W]."""
        found = self.norm(self.layers(self.patch_embed(images)))
        return cast("Tensor", self.head(found.mean((1, 2))))
