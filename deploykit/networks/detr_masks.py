"""The masks of DETR: where each query looks in the image, grown by the maps of its body.

Source: arXiv 2005.12872, section 4.3; the names of parameters are those of
github.com/facebookresearch/detr (Apache-2.0). The code is written from the paper. Masks are made of
the surest queries alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from deploykit.networks import detr
from deploykit.networks.detectors import dense
from deploykit.networks.detr_places import Select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.networks.detr_bodies import AllStages

GROUPS = 8
"""Of channels, each normalised by itself."""
PARTS = (2, 4, 8, 16)
"""What the transformer's channels are divided by in the second layer and those after it."""


class Looks(nn.Module):
    """Where queries look, as shares of all places and heads together."""

    def __init__(self, sizes: detr.Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = sizes.heads
        self.q_linear, self.k_linear = (nn.Linear(sizes.width, sizes.width) for _ in range(2))

    def forward(self, queries: Tensor, image: Tensor, beside: Tensor | None) -> Tensor:
        """Return float32[batch, Q, heads, N] of float32[batch, Q, C] and [batch, N, C].

        beside: float32[batch, 1, 1, N], what is added to looks at cells beside the image.
        """
        width = int(queries.shape[2])
        q, k = (
            x.reshape(-1, x.shape[1], self.heads, width // self.heads).transpose(1, 2)
            for x in (self.q_linear(queries), self.k_linear(image))
        )
        looks = (q * (width // self.heads) ** -0.5) @ k.transpose(2, 3)
        looks = looks if beside is None else looks + beside
        shares = looks.transpose(1, 2).flatten(2).softmax(-1)
        shape = -1, int(queries.shape[1]), self.heads, int(image.shape[1])
        return cast("Tensor", shares.reshape(shape))


class Given(NamedTuple):
    """What masks are made of."""

    x: Tensor
    """float32[batch, C, h, w], what the transformer was given."""
    looks: Tensor
    """float32[batch, Q, heads, h * w]."""
    maps: Sequence[Tensor]
    """float32[batch, C, h, w] of the body, the coarsest first, each about twice as large."""


class MaskHead(nn.Module):
    """From an image and where a query looks in it to the query's mask."""

    def __init__(self, sizes: detr.Sizes, channels: Sequence[int]) -> None:
        """Make the layers; channels: of the maps, the coarsest first."""
        super().__init__()
        self.heads, first = sizes.heads, sizes.width + sizes.heads
        self.lay1 = nn.Conv2d(first, first, 3, padding=1)
        self.gn1 = nn.GroupNorm(GROUPS, first)
        before = first
        for place, part in enumerate(PARTS, start=2):
            inner = sizes.width // part
            setattr(self, f"lay{place}", nn.Conv2d(before, inner, 3, padding=1))
            setattr(self, f"gn{place}", nn.GroupNorm(GROUPS, inner))
            before = inner
        self.out_lay = nn.Conv2d(before, 1, 3, padding=1)
        for place, (given, part) in enumerate(zip(channels, PARTS, strict=False), start=1):
            setattr(self, f"adapter{place}", nn.Conv2d(given, sizes.width // part, 1))

    def forward(self, given: Given) -> Tensor:
        """Return logits float32[batch * Q, 1, H, W], as large as the finest map."""
        count, looks = int(given.looks.shape[1]), _maps(given)
        x = given.x.unsqueeze(1).expand(-1, count, -1, -1, -1)
        return _grown(self, self.lay1(torch.cat([x.flatten(0, 1), looks], 1)), given)

    def folded(self) -> nn.Module:
        """Return the same, the first layer once for the image and once for each query's looks."""
        return FoldedHead(self)


class FoldedHead(nn.Module):
    """What a `MaskHead` becomes: most of its first layer is alike for all queries."""

    def __init__(self, source: MaskHead) -> None:
        """Take the weights of `source`."""
        super().__init__()
        for name, layer in source.named_children():
            if name != "lay1":
                setattr(self, name, copy.deepcopy(layer))
        whole, heads = source.lay1, source.heads
        width = whole.in_channels - heads
        self.image = nn.Conv2d(width, whole.out_channels, 3, padding=1)
        self.looks = nn.Conv2d(heads, whole.out_channels, 3, padding=1, bias=False)
        parts = whole.weight.detach().tensor_split([width], 1)
        self.image.weight, self.looks.weight = (nn.Parameter(part.clone()) for part in parts)
        self.image.bias = whole.bias

    def forward(self, given: Given) -> Tensor:
        """Return what `MaskHead` does."""
        count = int(given.looks.shape[1])
        own, image = self.looks(_maps(given)), self.image(given.x)
        x = own.reshape(-1, count, *own.shape[1:]) + image.unsqueeze(1)
        return _grown(self, x.flatten(0, 1), given)


def _maps(given: Given) -> Tensor:
    """Return where queries look as maps, float32[batch * Q, heads, h, w]."""
    heads = int(given.looks.shape[2])
    return given.looks.reshape(-1, heads, int(given.x.shape[2]), int(given.x.shape[3]))


def _grown(head: nn.Module, x: Tensor, given: Given) -> Tensor:
    """Return the masks that the layers of `head` make of what the first gives, [batch * Q, ...]."""
    count, layer = int(given.looks.shape[1]), head.get_submodule
    x = layer("gn2")(layer("lay2")(layer("gn1")(x).relu())).relu()
    for place, each in enumerate(given.maps, start=1):
        more = layer(f"adapter{place}")(each)
        size = int(more.shape[2]), int(more.shape[3])
        x = nn.functional.interpolate(x, size=size, mode="nearest")
        x = x.reshape(-1, count, int(x.shape[1]), *size) + more.unsqueeze(1)
        x = layer(f"gn{place + 2}")(layer(f"lay{place + 2}")(x.flatten(0, 1))).relu()
    return cast("Tensor", layer("out_lay")(x))


class Network(nn.Module):
    """DETR and the masks of what it finds."""

    def __init__(
        self, body: AllStages, classes: int, sizes: detr.Sizes, *, detections: int
    ) -> None:
        """Make the network as it is trained; detections: objects that get a mask, at most."""
        super().__init__()
        self.detr = detr.Network(body, classes, sizes)
        self.detr.select = Select(detections)
        self.bbox_attention = Looks(sizes)
        self.mask_head = MaskHead(sizes, body.channels_of[-2::-1])

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes, count and masks of normalised images [B, 3, H, W].

        Masks are float32[B, K, H / 4, W / 4], 0 to 1, over the whole input. sizes: float32[B, 2],
        height and width of each image at the top left of its canvas; None: it fills it.
        """
        net, canvas = self.detr, tuple(images.shape[2:])
        maps = net.backbone[0](images)
        x = net.input_proj(maps[-1])
        places = net.padding(x, sizes, canvas)
        found, image = net.read(x, places)
        said = net.class_embed(found), net.bbox_embed(found)
        *objects, order = net.select(*said, canvas if sizes is None else sizes)
        looks = self.bbox_attention(dense.rows(found, order), image, places.beside)
        logits = self.mask_head(Given(x, looks, maps[-2::-1]))
        masks = logits.reshape(-1, int(order.shape[1]), *logits.shape[2:]).sigmoid()
        return (*objects, masks)
