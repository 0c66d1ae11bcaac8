"""DETR: a ResNet, a transformer, and a fixed number of queries that each become an object.

Source: End-to-End Object Detection with Transformers (arXiv 2005.12872, sections 3.2 and A.3); the
names of parameters are those of github.com/facebookresearch/detr (Apache-2.0). The code is written
from the paper. The input has one size, so that the embedding of positions is a constant. `LIGHT` is
this project's own: the same network on the first stages of a narrow ResNet-18.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from deploykit.networks.detr_places import Padding, Select

if TYPE_CHECKING:
    from deploykit.networks.detr_bodies import Body, LightBody
    from deploykit.networks.detr_places import Places

WIDTH, HEADS, INNER, LAYERS, QUERIES = 256, 8, 2048, 6, 100
"""Channels of the transformer, its heads, channels inside its two-layer blocks, layers of encoder
and decoder, and objects at most; all published networks have these."""


@dataclass(frozen=True)
class Sizes:
    """Those five of a network."""

    width: int = WIDTH
    heads: int = HEADS
    inner: int = INNER
    layers: int = LAYERS
    queries: int = QUERIES


LIGHT = Sizes(width=128, heads=4, inner=512, layers=3, queries=25)


class Attention(nn.Module):
    """Queries look at keys and take from values, in several heads."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers; the first three are one weight, as in checkpoints."""
        super().__init__()
        width, self.heads = sizes.width, sizes.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).normal_(0, width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, beside: Tensor | None = None
    ) -> Tensor:
        """Return float32[batch, Q, C] of [batch, Q, C] and two of [batch, N, C].

        beside: float32[batch, 1, 1, N], what is added where keys are not to be looked at.
        """
        parts = zip(
            (queries, keys, values),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        q, k, v = (nn.functional.linear(*part) for part in parts)
        scale = (self.out_proj.in_features // self.heads) ** -0.5
        return cast("Tensor", self.out_proj(attended(q * scale, (k, v), self.heads, beside)))

    def folded(self) -> nn.Module:
        """Return the same with a layer for each of the three, the scale inside the first."""
        return FoldedAttention(self)


class FoldedAttention(nn.Module):
    """What an `Attention` becomes, with biases for the queries alone.

    A bias of the keys adds as much to all that a query looks at, which the softmax takes off. One
    of the values goes through as it is, since the shares of what is looked at sum up to 1.
    """

    def __init__(self, source: Attention) -> None:
        """Take the weights of `source`."""
        super().__init__()
        self.out_proj, self.heads = copy.deepcopy(source.out_proj), source.heads
        kind, width = source.in_proj_weight.dtype, source.out_proj.in_features
        q, k, v = (weight.detach().double() for weight in source.in_proj_weight.chunk(3))
        asked, _, taken = (bias.detach().double() for bias in source.in_proj_bias.chunk(3))
        scale = (width // source.heads) ** -0.5
        self.q_proj = nn.Linear(width, width, dtype=kind)
        self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False, dtype=kind) for _ in "kv")
        self.q_proj.bias.data = (asked * scale).to(kind)
        for layer, weight in ((self.q_proj, q * scale), (self.k_proj, k), (self.v_proj, v)):
            layer.weight.data = weight.to(kind)
        after = source.out_proj.weight.double() @ taken + source.out_proj.bias.double()
        self.out_proj.bias.data = after.detach().to(kind)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, beside: Tensor | None = None
    ) -> Tensor:
        """Return what `Attention` does."""
        pair = self.k_proj(keys), self.v_proj(values)
        mixed = attended(self.q_proj(queries), pair, self.heads, beside)
        return cast("Tensor", self.out_proj(mixed))


def attended(
    q: Tensor, pair: tuple[Tensor, Tensor], heads: int, beside: Tensor | None = None
) -> Tensor:
    """Return softmax(q k^T) v of each head, side by side: float32[batch, Q, C]; pair: k and v.

    q: float32[1 or batch, Q, C]; k, v: float32[batch, N, C].
    """
    each = int(q.shape[2]) // heads
    q, k, v = (x.reshape(-1, x.shape[1], heads, each).transpose(1, 2) for x in (q, *pair))
    looks = q @ k.transpose(2, 3)
    looks = looks if beside is None else looks + beside
    return (looks.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Image(NamedTuple):
    """What queries look at."""

    keys: Tensor
    """float32[batch, N, C]."""
    values: Tensor
    """float32[batch, N, C]."""
    beside: Tensor | None = None
    """float32[batch, 1, 1, N], what is added where keys are not to be looked at."""


class EncoderLayer(nn.Module):
    """Attention and two layers, each beside its input and before a norm."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        width, inner = sizes.width, sizes.inner
        self.self_attn = Attention(sizes)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, place: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return float32[batch, N, C] of the same; place: float32[1 or batch, N, C]."""
        there = x + place
        x = self.norm1(x + self.self_attn(there, there, x, beside))
        return cast("Tensor", self.norm2(x + self.linear2(self.linear1(x).relu())))


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the image, and two layers."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        width, inner = sizes.width, sizes.inner
        self.self_attn, self.multihead_attn = Attention(sizes), Attention(sizes)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, image: Image) -> Tensor:
        """Return float32[batch, Q, C] of float32[1 or batch, Q, C]; query: float32[1, Q, C]."""
        asked = x + query
        x = self.norm1(x + self.self_attn(asked, asked, x))
        x = self.norm2(x + self.multihead_attn(x + query, *image))
        return cast("Tensor", self.norm3(x + self.linear2(self.linear1(x).relu())))


class Encoder(nn.Module):
    """All layers of the encoder."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, place: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return float32[batch, N, C] of the same; place: float32[1 or batch, N, C]."""
        for layer in self.layers:
            x = layer(x, place, beside)
        return x


class Decoder(nn.Module):
    """All layers of the decoder, and a norm."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, query: Tensor, image: Image) -> Tensor:
        """Return float32[batch, Q, C] of the queries' places, float32[1, Q, C].

        What the first layer makes of them before it looks at the image is the same for all images.
        """
        x = torch.zeros_like(query)
        for layer in self.layers:
            x = layer(x, query, image)
        return cast("Tensor", self.norm(x))


class Transformer(nn.Module):
    """The encoder and the decoder."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)

    def forward(self, x: Tensor, places: Places, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32[batch, Q, C] of float32[batch, N, C], and what the encoder makes of it."""
        image = self.encoder(x, *places)
        return self.decoder(query, Image(image + places.place, image, places.beside)), image


class Boxes(nn.Module):
    """Three layers, with a ReLU after the first two."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, out) for out in (width, width, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, Q, 4]: cx, cy, w, h as shares of the input."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return cast("Tensor", self.layers[-1](x).sigmoid())


class Network(nn.Module):
    """The whole detector."""

    def __init__(self, body: Body | LightBody, classes: int, sizes: Sizes) -> None:
        """Make the network as it is trained."""
        super().__init__()
        self.backbone = nn.ModuleList([body])
        self.input_proj = nn.Conv2d(body.channels, sizes.width, 1)
        self.transformer = Transformer(sizes)
        self.query_embed = nn.Embedding(sizes.queries, sizes.width)
        self.class_embed, self.bbox_embed = (
            nn.Linear(sizes.width, classes + 1),
            Boxes(sizes.width),
        )
        self.padding, self.select = Padding(), Select()

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of normalised images float32[B, 3, H, W].

        sizes: float32[B, 2], height and width of each image at the top left of its canvas; None:
        it fills it.
        """
        logits, boxes = self.raw(images, sizes)
        shown = tuple(images.shape[2:]) if sizes is None else sizes
        found: tuple[Tensor, ...] = self.select(logits, boxes, shown)
        return found[:-1]

    def raw(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits float32[batch, Q, classes + 1], boxes as shares of the image [..., 4]."""
        x = self.input_proj(self.backbone[0](images))
        places = self.padding(x, sizes, tuple(images.shape[2:]))
        found, _ = self.read(x, places)
        return self.class_embed(found), self.bbox_embed(found)

    def read(self, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return what queries find, float32[batch, Q, C], in a map [batch, C, h, w], and its cells.

        Those are what the encoder makes of them, float32[batch, N, C].
        """
        query = self.query_embed.weight.unsqueeze(0)
        found: tuple[Tensor, Tensor] = self.transformer(x.flatten(2).transpose(1, 2), places, query)
        return found

    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the transformer is given: float32[batch, N, C], places float32[1, N, C]."""
        x = self.input_proj(self.backbone[0](images))
        place = self.padding(x, None, tuple(images.shape[2:])).place
        return x.flatten(2).transpose(1, 2), place
