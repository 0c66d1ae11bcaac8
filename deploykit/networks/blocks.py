"""Blocks of networks that keep their accuracy in INT8: QARepVGG, and the two of RepOptimizer.

Source: QARepVGG (arXiv 2212.01593, section 4) and RepOptimizers (arXiv 2205.15242, section 3); the
names of parameters are those in the checkpoints of github.com/meituan/YOLOv6,
github.com/cxxgtxy/QARepVGG (MIT) and github.com/DingXiaoH/RepOptimizers (MIT). The code is written
from the formulas.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.networks.reparam import (
    ConvNorm,
    FoldedBlock,
    FoldedNorm,
    RepVGGBlock,
    fuse,
    identity_kernel,
    with_weights,
)

TAPS = 9
"""Of a 3x3 kernel."""


class QARepVGGBlock(nn.Module):
    """ReLU(norm(norm(conv3x3(x)) + conv1x1(x) + x)): a RepVGG block that survives INT8.

    Only the 3x3 branch has a norm of its own, and one norm follows the sum; where shapes allow,
    the input itself is added, and its mean over 3x3 with `average`. YOLOv6 calls the form without
    average QARepVGGBlock (QARepVGGBlockV2 where its authors train classifiers) and the one with it
    QARepVGGBlockV2.
    """

    def __init__(
        self, channels: tuple[int, int], *, stride: int = 1, groups: int = 1, average: bool = False
    ) -> None:
        """Make the branches for `channels` (in, out)."""
        super().__init__()
        same = channels[0] == channels[1] and stride == 1
        self.rbr_dense = ConvNorm(channels, 3, stride=stride, groups=groups)
        self.rbr_1x1 = nn.Conv2d(*channels, 1, stride, groups=groups, bias=False)
        self.rbr_identity = nn.Identity() if same else None
        # zeros around the image count, so that it is a convolution with nine equal weights
        self.rbr_avg = nn.AvgPool2d(3, 1, 1, count_include_pad=True) if same and average else None
        self.bn = nn.BatchNorm2d(channels[1])
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        for branch in (self.rbr_identity, self.rbr_avg):
            if branch is not None:
                total = total + branch(x)
        return cast("Tensor", self.nonlinearity(self.bn(total)))

    def folded(self) -> nn.Module:
        """Return one 3x3 convolution before the last norm, which folds further."""
        weight, bias = self.rbr_dense.equivalent()
        weight = weight + F.pad(self.rbr_1x1.weight.double(), [1, 1, 1, 1])
        through = identity_kernel(self.rbr_dense.conv)
        if self.rbr_identity is not None:
            weight = weight + through
        if self.rbr_avg is not None:
            weight = weight + through.sum((2, 3), keepdim=True) / TAPS
        return NormedBlock(with_weights(self.rbr_dense.conv, weight, bias), self.bn)


class QARepVGGBlockV1(RepVGGBlock):
    """ReLU(norm(norm(conv3x3(x)) + norm(conv1x1(x)) + norm(x))): the first of the authors' forms.

    A RepVGG block with one more norm behind the sum, which alone does not make it survive INT8.
    """

    def __init__(self, channels: tuple[int, int], *, stride: int = 1, groups: int = 1) -> None:
        """Make the branches for `channels` (in, out)."""
        super().__init__(channels, stride=stride, groups=groups)
        self.bn = nn.BatchNorm2d(channels[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.nonlinearity(self.bn(self.summed(x))))

    def folded(self) -> nn.Module:
        """Return one 3x3 convolution before the last norm, which folds further."""
        return NormedBlock(self.kernel(), self.bn)


class NormedBlock(nn.Module):
    """What a `QARepVGGBlock` becomes: a 3x3 convolution with a bias, a norm and a ReLU.

    YOLOv6 stores networks in this form for training with quantisation.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Keep the layers under the names that such checkpoints use."""
        super().__init__()
        self.rbr_reparam, self.bn = conv, norm
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.nonlinearity(self.bn(self.rbr_reparam(x))))

    def folded(self) -> nn.Module:
        """Return one 3x3 convolution and the ReLU."""
        return FoldedBlock(fuse(self.rbr_reparam, self.bn))


class VGGBlock(ConvNorm):
    """ReLU(norm(conv3x3(x))): what RepOptimizer trains, by the names of YOLOv6's RealVGGBlock."""

    def __init__(self, channels: tuple[int, int], *, stride: int = 1, groups: int = 1) -> None:
        """Make the layers for `channels` (in, out)."""
        super().__init__(channels, 3, stride=stride, groups=groups, activation=nn.ReLU())


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int, start: float = 1.0) -> None:
        """Start every factor at `start`."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, channels, H, W]."""
        return x * self.weight.reshape(1, -1, 1, 1)


class SearchBlock(nn.Module):
    """ReLU(norm(s3 * conv3x3(x) + s1 * conv1x1(x) + sid * x)), by the names of LinearAddBlock.

    Trained, its scales s say how RepOptimizer shall change the gradients of a `VGGBlock`. With
    constant s3 and s1 it is what that training is equal to.
    """

    def __init__(
        self, channels: tuple[int, int], *, stride: int = 1, groups: int = 1, scale: float = 1.0
    ) -> None:
        """Make the branches for `channels` (in, out); scale: where s3 and s1 start."""
        super().__init__()
        self.conv = nn.Conv2d(*channels, 3, stride, padding=1, groups=groups, bias=False)
        self.scale_conv = Scale(channels[1], scale)
        self.conv_1x1 = nn.Conv2d(*channels, 1, stride, groups=groups, bias=False)
        self.scale_1x1 = Scale(channels[1], scale)
        same = channels[0] == channels[1] and stride == 1
        self.scale_identity = Scale(channels[1]) if same else None
        self.bn = nn.BatchNorm2d(channels[1])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        total = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.scale_identity is not None:
            total = total + self.scale_identity(x)
        return cast("Tensor", self.relu(self.bn(total)))

    def kernel(self) -> Tensor:
        """Return float64[out, in / groups, 3, 3], the three branches before the norm as one."""
        dense, point = (
            conv.weight.double() * scale.weight.double().reshape(-1, 1, 1, 1)
            for conv, scale in ((self.conv, self.scale_conv), (self.conv_1x1, self.scale_1x1))
        )
        total = dense + F.pad(point, [1, 1, 1, 1])
        if self.scale_identity is not None:
            own = self.scale_identity.weight.double().reshape(-1, 1, 1, 1)
            total = total + identity_kernel(self.conv) * own
        return total

    def folded(self) -> nn.Module:
        """Return one 3x3 convolution and the ReLU, by the names of a `VGGBlock`."""
        kernel = self.kernel()
        conv = with_weights(self.conv, kernel, kernel.new_zeros(len(kernel)))
        return FoldedNorm(fuse(conv, self.bn), self.relu)
