"""Small whole detectors with random weights, built from what is published of three families.

Each has its family's stem, stages, pyramid and head, in the least width and depth, and returns what
its family's exporter writes. Sources: YOLOX (arXiv 2107.08430), PANet (arXiv 1803.01534), CSPNet
(arXiv 1911.11929), generalized focal loss (arXiv 2006.04388) for distances as distributions.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Family: TypeAlias = Literal["yolov8", "yolov5", "yolox", "yolox_decoded"]
STRIDES = (8, 16, 32)
_WIDTHS = (8, 12, 16, 24, 32)
"""Channels at strides 2, 4, 8, 16 and 32."""
_BINS = 16
"""Of the distribution of a distance."""
_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (40, 60, 50, 30, 60, 90))
"""Widths and heights in pixels of three anchors of each level."""
_SPREAD, _RARE = 2.0, -3.0
"""Of logits over the images, and the middle of the logits of classes."""
_SHORT = 0.6
"""By how much a distance's logit is less than that of the next shorter one."""


class Conv(nn.Sequential):
    """A convolution, batch normalisation and SiLU."""

    def __init__(self, before: int, behind: int, side: int = 1, step: int = 1) -> None:
        """Take channels, the side of the kernel and the step."""
        kernel = nn.Conv2d(before, behind, side, step, (side - 1) // 2, bias=False)
        super().__init__(kernel, nn.BatchNorm2d(behind, momentum=None), nn.SiLU())


class Bottleneck(nn.Module):
    """Two convolutions, and what went in added."""

    def __init__(self, width: int, first: int, *, adds: bool) -> None:
        """Take channels, the side of the first kernel, and whether the input is added."""
        super().__init__()
        self.body = nn.Sequential(Conv(width, width, first), Conv(width, width, 3))
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, width, h, w]."""
        found: Tensor = self.body(x)
        return x + found if self.adds else found


class Halves(nn.Module):
    """YOLOv8's stage: one half goes through, the other through bottlenecks; all are joined."""

    def __init__(self, before: int, behind: int, *, adds: bool) -> None:
        """Take channels, and whether the bottlenecks add."""
        super().__init__()
        half = behind // 2
        self.split = Conv(before, behind)
        self.inner = Bottleneck(half, 3, adds=adds)
        self.join = Conv(3 * half, behind)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, behind, h, w]."""
        first, second = self.split(x).chunk(2, 1)
        found: Tensor = self.join(torch.cat([first, second, self.inner(second)], 1))
        return found


class Partial(nn.Module):
    """The stage of YOLOv5 and YOLOX: bottlenecks on one of two projections."""

    def __init__(self, before: int, behind: int, *, adds: bool) -> None:
        """Take channels, and whether the bottlenecks add."""
        super().__init__()
        half = behind // 2
        self.main, self.side = Conv(before, half), Conv(before, half)
        self.inner = Bottleneck(half, 1, adds=adds)
        self.join = Conv(2 * half, behind)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, behind, h, w]."""
        found: Tensor = self.join(torch.cat([self.inner(self.main(x)), self.side(x)], 1))
        return found


class Pooled(nn.Module):
    """Spatial pyramid pooling: in a row with one window, or side by side with three."""

    def __init__(self, width: int, windows: Sequence[int], *, row: bool) -> None:
        """Take channels and the sides of the windows."""
        super().__init__()
        self.narrow, self.row = Conv(width, width // 2), row
        self.pools = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in windows)
        self.join = Conv(width // 2 * (1 + len(windows)), width)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, width, h, w]."""
        seen = [self.narrow(x)]
        for pool in self.pools:
            seen.append(pool(seen[-1 if self.row else 0]))
        found: Tensor = self.join(torch.cat(seen, 1))
        return found


class Focus(nn.Module):
    """YOLOX's stem: every second pixel into channels of their own, then a convolution."""

    def __init__(self, behind: int) -> None:
        """Take the channels of the result."""
        super().__init__()
        self.conv = Conv(12, behind, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, behind, H / 2, W / 2]."""
        corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        found: Tensor = self.conv(torch.cat(corners, 1))
        return found


_STEMS: dict[str, Callable[[], nn.Module]] = {
    "yolov8": lambda: Conv(3, _WIDTHS[0], 3, 2),
    "yolov5": lambda: Conv(3, _WIDTHS[0], 6, 2),  # 6x6 in the place of Focus and 3x3
    "yolox": lambda: Focus(_WIDTHS[0]),
}


class Pyramid(nn.Module):
    """Stages at strides 4 to 32, and paths down and up again between the last three."""

    def __init__(self, family: str) -> None:
        """Take the name of the family."""
        super().__init__()
        stage: Any = Halves if family == "yolov8" else Partial
        self.lateral = family != "yolov8"
        self.stem = _STEMS[family]()
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(a, b, 3, 2), stage(b, b, adds=True))
            for a, b in itertools.pairwise(_WIDTHS)
        )
        windows = (5, 9, 13) if family == "yolox" else (5, 5, 5)
        self.pool = Pooled(_WIDTHS[4], windows, row=family != "yolox")
        low, middle, high = _WIDTHS[2:]
        if self.lateral:
            self.narrow = nn.ModuleList([Conv(high, middle), Conv(middle, low)])
            first, second = middle, low
        else:
            first, second = high, middle
        self.down = nn.ModuleList(
            [stage(first + middle, middle, adds=False), stage(second + low, low, adds=False)]
        )
        self.steps = nn.ModuleList([Conv(low, low, 3, 2), Conv(middle, middle, 3, 2)])
        joined = (low + second, middle + first)
        self.up = nn.ModuleList(
            [stage(joined[0], middle, adds=False), stage(joined[1], high, adds=False)]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map for each of STRIDES."""
        x = self.stem(x)
        levels = []
        for each in self.stages:
            x = each(x)
            levels.append(x)
        _, low, middle, high = levels
        high = self.narrow[0](self.pool(high)) if self.lateral else self.pool(high)
        middle = self.down[0](torch.cat([_twice(high), middle], 1))
        middle = self.narrow[1](middle) if self.lateral else middle
        low = self.down[1](torch.cat([_twice(middle), low], 1))
        middle_up = self.up[0](torch.cat([self.steps[0](low), middle], 1))
        return [low, middle_up, self.up[1](torch.cat([self.steps[1](middle_up), high], 1))]


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _branch(before: int, width: int, behind: int, count: int = 2) -> nn.Sequential:
    """Return convolutions, and a last one that is read."""
    convs = [Conv(before if i == 0 else width, width, 3) for i in range(count)]
    return nn.Sequential(*convs, nn.Conv2d(width, behind, 1))


def _grid(level: Tensor) -> Tensor:
    """Return column and row of each cell: float32[h * w, 2]."""
    height, width = level.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(-1, 2).float()


class Distances(nn.Module):
    """YOLOv8's head: distances to four sides as distributions, and classes, without objectness."""

    def __init__(self, classes: int) -> None:
        """Take the number of classes."""
        super().__init__()
        self.boxes = nn.ModuleList(_branch(width, 16, 4 * _BINS) for width in _WIDTHS[2:])
        self.scores = nn.ModuleList(_branch(width, 16, classes) for width in _WIDTHS[2:])

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return [batch, 4 + classes, cells]: cx, cy, w, h in pixels, then class scores."""
        boxes = torch.cat([b(x).flatten(2) for b, x in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([s(x).flatten(2) for s, x in zip(self.scores, levels, strict=True)], 2)
        batch, _, count = boxes.shape
        bins = boxes.view(batch, 4, _BINS, count).softmax(2)
        sides = (bins * torch.arange(_BINS).float().view(1, 1, _BINS, 1)).sum(2)
        grids = [_grid(x) for x in levels]
        centres = torch.cat(grids).T + 0.5
        strides = torch.cat(
            [torch.full((1, len(g)), float(s)) for g, s in zip(grids, STRIDES, strict=True)], 1
        )
        first, last = centres - sides[:, :2], centres + sides[:, 2:]
        xywh = torch.cat([(first + last) / 2, last - first], 1) * strides
        return torch.cat([xywh, scores.sigmoid()], 1)


class Anchors(nn.Module):
    """YOLOv5's head: three anchors a cell, one convolution a level."""

    def __init__(self, classes: int) -> None:
        """Take the number of classes."""
        super().__init__()
        self.read = nn.ModuleList(nn.Conv2d(width, 3 * (5 + classes), 1) for width in _WIDTHS[2:])

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return [batch, 3 * cells, 5 + classes]: a level's anchors one after another."""
        found = []
        for read, x, stride, sides in zip(self.read, levels, STRIDES, _ANCHORS, strict=True):
            batch, _, height, width = x.shape
            rows = read(x).view(batch, 3, -1, height * width).transpose(2, 3).sigmoid()
            xy, wh, rest = rows.split((2, 2, rows.shape[-1] - 4), -1)
            anchors = torch.tensor(sides).float().view(3, 1, 2)
            xy = (xy * 2 - 0.5 + _grid(x)) * stride
            whole = torch.cat([xy, (wh * 2) ** 2 * anchors, rest], -1)
            found.append(whole.flatten(1, 2))
        return torch.cat(found, 1)


class Decoupled(nn.Module):
    """YOLOX's head: boxes and objectness in one branch, classes in another."""

    def __init__(self, classes: int, *, decoded: bool) -> None:
        """Take the number of classes, and whether boxes are brought to pixels."""
        super().__init__()
        self.decoded, width = decoded, 16
        self.stems = nn.ModuleList(Conv(before, width) for before in _WIDTHS[2:])
        self.scores = nn.ModuleList(_branch(width, width, classes) for _ in STRIDES)
        self.shared = nn.ModuleList(
            nn.Sequential(Conv(width, width, 3), Conv(width, width, 3)) for _ in STRIDES
        )
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        self.certain = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in STRIDES)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return [batch, cells, 5 + classes]: box, objectness, class scores."""
        found = []
        for i, level in enumerate(levels):
            x = self.stems[i](level)
            near = self.shared[i](x)
            parts = [self.boxes[i](near), self.certain[i](near).sigmoid()]
            rows = torch.cat([*parts, self.scores[i](x).sigmoid()], 1).flatten(2).transpose(1, 2)
            if self.decoded:
                xy, wh = (rows[..., :2] + _grid(x)) * STRIDES[i], rows[..., 2:4].exp() * STRIDES[i]
                rows = torch.cat([xy, wh, rows[..., 4:]], -1)
            found.append(rows)
        return torch.cat(found, 1)


class Detector(nn.Module):
    """A pyramid and a head."""

    def __init__(self, pyramid: nn.Module, head: nn.Module) -> None:
        """Take both."""
        super().__init__()
        self.pyramid, self.head = pyramid, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's rows."""
        found: Tensor = self.head(self.pyramid(images))
        return found


def detector(family: Family, classes: int, images: Tensor, seed: int = 0) -> nn.Module:
    """Return a detector in eval mode whose boxes and scores vary over `images` and their cells."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head: nn.Module
        if family == "yolov8":
            head = Distances(classes)
        elif family == "yolov5":
            head = Anchors(classes)
        else:
            head = Decoupled(classes, decoded=family == "yolox_decoded")
        net = Detector(Pyramid(family.partition("_")[0]), head)
        with torch.no_grad():
            net.train()(images)  # statistics of the batch normalisations
            net.eval()
            _spread(net, images)
    return net


def _spread(net: nn.Module, images: Tensor) -> None:
    """Scale the convolutions that are read, so that their results spread over the images."""
    named = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    read = [m for m in named.values() if m.bias is not None]
    seen: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, y: seen.update({m: y})) for m in read]
    net(images)
    for hook in hooks:
        hook.remove()
    for conv in read:
        assert conv.bias is not None
        deep = seen[conv].transpose(0, 1).flatten(1)
        factor = _SPREAD / deep.std(1)
        if conv.out_channels == 4:
            factor = factor / 4  # logarithms of sides
        conv.weight *= factor.view(-1, 1, 1, 1)
        conv.bias.copy_(-deep.mean(1) * factor + conv.bias * factor)
    for name, conv in named.items():
        if ".scores." in name and conv.bias is not None:
            conv.bias += _RARE
        if conv.out_channels == 4 * _BINS:
            assert conv.bias is not None
            conv.bias -= torch.arange(float(_BINS)).repeat(4) * _SHORT


def exported(net: nn.Module, path: Path, size: tuple[int, int]) -> Path:
    """Write a network as the families' exporters do, for one image; return the path."""
    images = torch.zeros(1, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes of maps become constants, as they shall
        torch.onnx.export(
            net,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["output0"],
            opset_version=17,
            dynamo=False,
        )
    return path
