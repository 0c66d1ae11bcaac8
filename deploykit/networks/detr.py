"""DETR: a ResNet, a transformer, and a fixed number of queries that each become an object.

Source: End-to-End Object Detection with Transformers (arXiv 2005.12872, sections 3.2 and A.3); the
names of parameters are those of github.com/facebookresearch/detr (Apache-2.0). The code is written
from the paper. The input has one size, so that the embedding of positions is a constant.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops.misc import FrozenBatchNorm2d

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEADS, INNER, LAYERS, QUERIES = 256, 8, 2048, 6, 100
"""Channels of the transformer, its heads, channels inside its two-layer blocks, layers of encoder
and decoder, and objects at most; all published networks have these."""
TEMPERATURE = 10_000.0


@functools.cache
def positions(height: int, width: int) -> NDArray[np.float32]:
    """Return the embedding of each place of a map, float32[1, height * width, WIDTH].

    Half the channels are for the row and half for the column: sine and cosine of 2 pi times its
    share of the map, divided by TEMPERATURE ** (2 * i / (WIDTH / 2)) for the pair i.
    """
    half = WIDTH // 2
    steps = (TEMPERATURE ** (2 * np.arange(half // 2) / half)).astype(np.float32)
    axes = []
    for count in (height, width):
        share = np.arange(1, count + 1, dtype=np.float32) / np.float32(count + 1e-6)
        angles = (share * np.float32(2 * math.pi))[:, None] / steps
        axes.append(np.stack([np.sin(angles), np.cos(angles)], 2).reshape(count, half))
    rows = np.broadcast_to(axes[0][:, None], (height, width, half))
    columns = np.broadcast_to(axes[1][None], (height, width, half))
    return np.concatenate([rows, columns], 2).reshape(1, -1, WIDTH).astype(np.float32)


class Attention(nn.Module):
    """Queries look at keys and take from values, in several heads."""

    def __init__(self) -> None:
        """Make the layers; the first three are one weight, as in checkpoints."""
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH).normal_(0, WIDTH**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return float32[batch, Q, C] of [batch, Q, C] and two of [batch, N, C]."""
        parts = zip(
            (queries, keys, values),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        q, k, v = (nn.functional.linear(*part) for part in parts)
        return cast("Tensor", self.out_proj(attended(q * (WIDTH // HEADS) ** -0.5, k, v)))

    def folded(self) -> nn.Module:
        """Return the same with a layer for each of the three, the scale inside the first."""
        return FoldedAttention(self)


class FoldedAttention(nn.Module):
    """What an `Attention` becomes."""

    def __init__(self, source: Attention) -> None:
        """Take the weights of `source`."""
        super().__init__()
        self.out_proj = source.out_proj
        scale = (WIDTH // HEADS) ** -0.5
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        made = []
        for weight, bias, factor in zip(weights, biases, (scale, 1.0, 1.0), strict=True):
            layer = copy.deepcopy(source.out_proj)
            for own, given in ((layer.weight, weight), (layer.bias, bias)):
                own.data = (given.detach().double() * factor).to(given.dtype)
            made.append(layer)
        self.q_proj, self.k_proj, self.v_proj = made

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return float32[batch, Q, C] of [batch, Q, C] and two of [batch, N, C]."""
        mixed = attended(self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        return cast("Tensor", self.out_proj(mixed))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T) v of each head, side by side: float32[batch, Q, C]."""
    q, k, v = (x.reshape(-1, x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)


class EncoderLayer(nn.Module):
    """Attention and two layers, each beside its input and before a norm."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.self_attn = Attention()
        self.linear1, self.linear2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """Return float32[batch, N, C] of the same; place: float32[1, N, C]."""
        there = x + place
        x = self.norm1(x + self.self_attn(there, there, x))
        return cast("Tensor", self.norm2(x + self.linear2(self.linear1(x).relu())))


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the image, and two layers."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.self_attn, self.multihead_attn = Attention(), Attention()
        self.linear1, self.linear2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, image: Tensor, placed: Tensor) -> Tensor:
        """Return float32[batch, QUERIES, C] of the same.

        query: float32[1, QUERIES, C]. image, placed: float32[batch, N, C], without and with the
        places.
        """
        asked = x + query
        x = self.norm1(x + self.self_attn(asked, asked, x))
        x = self.norm2(x + self.multihead_attn(x + query, placed, image))
        return cast("Tensor", self.norm3(x + self.linear2(self.linear1(x).relu())))


class Encoder(nn.Module):
    """All layers of the encoder."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """Return float32[batch, N, C] of the same; place: float32[1, N, C]."""
        for layer in self.layers:
            x = layer(x, place)
        return x


class Decoder(nn.Module):
    """All layers of the decoder, and a norm."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, query: Tensor, image: Tensor, place: Tensor) -> Tensor:
        """Return float32[batch, QUERIES, C] of the image, float32[batch, N, C], and its places."""
        placed, x = image + place, torch.zeros_like(query).expand(image.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, query, image, placed)
        return cast("Tensor", self.norm(x))


class Transformer(nn.Module):
    """The encoder and the decoder."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, x: Tensor, place: Tensor, query: Tensor) -> Tensor:
        """Return float32[batch, QUERIES, C] of float32[batch, N, C]."""
        return cast("Tensor", self.decoder(query, self.encoder(x, place), place))


class Boxes(nn.Module):
    """Three layers, with a ReLU after the first two."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, out) for out in (WIDTH, WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, QUERIES, 4]: cx, cy, w, h as shares of the input."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return cast("Tensor", self.layers[-1](x).sigmoid())


class Norm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision ships no types
    """A batch norm that is fixed; as a usual one where it is folded into its convolution."""

    def folded(self) -> nn.Module:
        """Return the same as a norm that the export folds, each weight rounded once."""
        own: Any = self
        made = nn.BatchNorm2d(len(own.weight), eps=own.eps).to(own.weight.dtype).eval()
        made.load_state_dict(own.state_dict(), strict=False)  # without a counter
        return made


class Body(nn.Module):
    """A ResNet up to its last map, norms fixed."""

    def __init__(self, depth: int, *, dilated: bool) -> None:
        """Make the layers; dilated: the last stage keeps the size, its taps lie further apart."""
        super().__init__()
        made: Any = getattr(resnet, f"resnet{depth}")(
            norm_layer=Norm, replace_stride_with_dilation=[False, False, dilated]
        )
        del made.fc, made.avgpool
        self.body = made

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, 2048, h, w] of images float32[batch, 3, H, W]."""
        net = self.body
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return cast("Tensor", net.layer4(net.layer3(net.layer2(net.layer1(x)))))


class Select(nn.Module):
    """Each query as an object of its best class, the surest first."""

    def forward(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return boxes in input pixels, scores, classes and count; the last class is nothing."""
        found, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, order = found.topk(found.shape[1])
        centres, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([centres - half, centres + half], -1)
        corners = corners * corners.new_tensor([size[1], size[0]] * 2)
        chosen = corners.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        count = (scores >= 0).sum(1)
        return chosen, scores, classes.gather(1, order), count


class Network(nn.Module):
    """The whole detector."""

    def __init__(self, depth: int, classes: int, *, dilated: bool) -> None:
        """Make the network as it is trained."""
        super().__init__()
        self.backbone = nn.ModuleList([Body(depth, dilated=dilated)])
        self.input_proj = nn.Conv2d(2048, WIDTH, 1)
        self.transformer = Transformer()
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, classes + 1), Boxes()
        self.select = Select()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of normalised images float32[B, 3, H, W]."""
        logits, boxes = self.raw(images)
        found: tuple[Tensor, ...] = self.select(logits, boxes, tuple(images.shape[2:]))
        return found

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits float32[batch, QUERIES, classes + 1], boxes as shares [..., 4]."""
        x = self.input_proj(self.backbone[0](images))
        place = torch.from_numpy(positions(int(x.shape[2]), int(x.shape[3]))).to(x.device)
        query = self.query_embed.weight.unsqueeze(0)
        found = self.transformer(x.flatten(2).transpose(1, 2), place, query)
        return self.class_embed(found), self.bbox_embed(found)
