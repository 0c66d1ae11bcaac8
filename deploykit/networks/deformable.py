"""Deformable DETR: a pyramid, and queries that each read it at a few places of their own choice.

Source: Deformable DETR (arXiv 2010.04159, sections 4 and A.4); the names of parameters are those of
github.com/fundamentalvision/Deformable-DETR (Apache-2.0). The code is written from the paper. The
input has one size and is filled by the image, so that the embedding of places, the references of
the encoder and the proposals of the two-stage form are constants.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deploykit.networks import detr, detr_places
from deploykit.networks.deformable_attention import Attention, Pyramid, Sizes
from deploykit.networks.deformable_boxes import Choose, Refine, Select, centres, proposals

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.networks.deformable_attention import Shapes
    from deploykit.networks.detr_bodies import Stages

GROUPS = 32
"""Of channels, each normalised by itself."""


class EncoderLayer(nn.Module):
    """Attention of each cell to the pyramid, and two layers, each beside its input."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        width, inner = sizes.width, sizes.inner
        self.self_attn = Attention(sizes)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, place: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Return float32[batch, N, C] of the same; place: [1, N, C], reference: [1, N, 2]."""
        x = self.norm1(x + self.self_attn(x + place, reference, Pyramid(x, shapes)))
        return cast("Tensor", self.norm2(x + self.linear2(self.linear1(x).relu())))


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the pyramid, and two layers."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        width, inner = sizes.width, sizes.inner
        self.self_attn, self.cross_attn = detr.Attention(sizes), Attention(sizes)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, reference: Tensor, image: Pyramid) -> Tensor:
        """Return float32[batch, Q, C] of the same and where they look from."""
        asked = x + query
        x = self.norm2(x + self.self_attn(asked, asked, x))
        x = self.norm1(x + self.cross_attn(x + query, reference, image))
        return cast("Tensor", self.norm3(x + self.linear2(self.linear1(x).relu())))


class Shift(detr.Boxes):
    """Three layers, with a ReLU after the first two."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, Q, 4]: what is added to the logits of a reference."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return cast("Tensor", self.layers[-1](x))


class Encoder(nn.Module):
    """All layers of the encoder."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, place: Tensor, shapes: Shapes) -> Tensor:
        """Return float32[batch, N, C] of the same; place: float32[1, N, C]."""
        reference = torch.from_numpy(centres(shapes)).to(x.device)
        for layer in self.layers:
            x = layer(x, place, reference, shapes)
        return x


class Decoder(nn.Module):
    """All layers of the decoder; with heads of boxes, each looks from where the last one found."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.layers))
        self.refine = Refine()
        self.bbox_embed: nn.ModuleList | None = None

    def forward(
        self, x: Tensor, query: Tensor, reference: Tensor, image: Pyramid
    ) -> tuple[Tensor, Tensor]:
        """Return float32[batch, Q, C] and references [..., 2 or 4] of the same."""
        for place, layer in enumerate(self.layers):
            x = layer(x, query, reference, image)
            if self.bbox_embed is not None:
                reference = self.refine(self.bbox_embed[place](x), reference)
        return x, reference


class Reference(nn.Linear):
    """Where queries that are weights look from: a layer of two outputs."""

    def folded(self) -> nn.Module:
        """Return the same without a matrix product, which not every engine has in FP32."""
        return FoldedReference(self)


class FoldedReference(nn.Module):
    """What a `Reference` becomes."""

    def __init__(self, source: Reference) -> None:
        """Take the weights of `source`."""
        super().__init__()
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[1, Q, 2] of float32[1, Q, C]."""
        return (x.unsqueeze(2) * self.weight).sum(3) + self.bias


class Transformer(nn.Module):
    """The encoder, the decoder and what queries begin with."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        width = sizes.width
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.level_embed = nn.Parameter(torch.empty(sizes.levels, width).normal_())
        if sizes.two_stage:
            self.enc_output, self.enc_output_norm = nn.Linear(width, width), nn.LayerNorm(width)
            self.pos_trans = nn.Linear(2 * width, 2 * width)
            self.pos_trans_norm = nn.LayerNorm(2 * width)
            self.choose = Choose(sizes.queries, sizes.width // 2)
        else:
            self.reference_points = Reference(width, 2)

    def seen(self, maps: list[Tensor]) -> Pyramid:
        """Return what the encoder makes of maps float32[batch, C, h, w]."""
        shapes = tuple((int(x.shape[2]), int(x.shape[3])) for x in maps)
        width = int(maps[0].shape[1])
        places = [
            torch.from_numpy(detr_places.positions(*shape, width, at=0.5)).to(maps[0].device)
            + level
            for shape, level in zip(shapes, self.level_embed, strict=True)
        ]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        return Pyramid(self.encoder(cells, torch.cat(places, 1), shapes), shapes)

    def proposed(
        self, image: Pyramid, scored: nn.Module, shift: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and their places, float32[batch, Q, C], and their boxes [..., 4].

        scored: from cells to scores of classes, of which the first says whether it is an object.
        """
        boxes, inside = (
            torch.from_numpy(x).to(image.cells.device) for x in proposals(image.shapes)
        )
        cells = self.enc_output_norm(self.enc_output(image.cells * inside))
        reference, embedded = self.choose(scored(cells)[..., 0], shift(cells) + boxes)
        query, x = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, -1)
        return x, query, reference


class Network(nn.Module):
    """The whole detector."""

    def __init__(self, body: Stages, classes: int, sizes: Sizes) -> None:
        """Make the network as it is trained."""
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.transformer = Transformer(sizes)
        self.class_embed = _heads(lambda: nn.Linear(width, classes), sizes)
        self.bbox_embed = _heads(lambda: Shift(width), sizes)
        if not sizes.two_stage:
            self.query_embed = nn.Embedding(sizes.queries, 2 * width)
        self.input_proj = _projections(body.channels_of, sizes)
        self.backbone = nn.ModuleList([body])
        if sizes.refined:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if sizes.two_stage:
            self.transformer.decoder.class_embed = self.class_embed
        self.select = Select(sizes.detections)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of normalised images float32[B, 3, H, W]."""
        found: tuple[Tensor, ...] = self.select(*self.raw(images), tuple(images.shape[2:]))
        return found

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits float32[batch, Q, classes], boxes as shares of the image [..., 4]."""
        image = self.transformer.seen(self.maps(images))
        x, query, reference = self.asked(image)
        x, reference = self.transformer.decoder(x, query, reference, image)
        last = self.sizes.layers - 1
        if not self.sizes.refined:
            reference = self.transformer.decoder.refine(self.bbox_embed[last](x), reference)
        return self.class_embed[last](x), reference

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return each map of the pyramid, float32[batch, C, h, w]."""
        stages = list(self.backbone[0](images))[-len(self.input_proj) :]
        made = [layer(x) for layer, x in zip(self.input_proj, stages, strict=False)]
        below = stages[-1]
        for layer in self.input_proj[len(stages) :]:
            below = layer(below)
            made.append(below)
        return made

    def asked(self, image: Pyramid) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and their places, float32[1 or batch, Q, C], and their references."""
        if self.sizes.two_stage:
            return self.transformer.proposed(image, self.class_embed[-1], self.bbox_embed[-1])
        both, width = self.query_embed.weight.unsqueeze(0), self.sizes.width
        query, x = both[..., :width], both[..., width:]
        reference = self.transformer.reference_points(query).sigmoid()
        return x.expand(image.cells.shape[0], -1, -1), query, reference


def _heads(make: Callable[[], nn.Module], sizes: Sizes) -> nn.ModuleList:
    """Return a head for each layer, and the encoder: one of its own, or the same."""
    count = sizes.layers + sizes.two_stage
    return nn.ModuleList([make() for _ in range(count)] if sizes.refined else [make()] * count)


def _projections(channels: tuple[int, ...], sizes: Sizes) -> nn.ModuleList:
    """Return what makes each map: of the body's last ones, and further ones of half the size."""
    given = channels[-sizes.levels :] if sizes.levels < len(channels) else channels
    convs = [nn.Conv2d(each, sizes.width, 1) for each in given]
    before = itertools.chain([channels[-1]], itertools.repeat(sizes.width))
    for _, each in zip(range(sizes.levels - len(given)), before, strict=False):
        convs.append(nn.Conv2d(each, sizes.width, 3, 2, 1))
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(GROUPS, sizes.width)) for conv in convs)
