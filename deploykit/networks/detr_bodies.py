"""What DETR sees images with: a ResNet, or the first stages of a narrow one."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops.misc import FrozenBatchNorm2d

from deploykit.networks.detectors.light import narrow_resnet18

LIGHT_WIDTHS = (32, 64, 128)
"""Channels of the stages that the light one has."""


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
        self.body, self.channels = made, 2048

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, 2048, h, w] of images float32[batch, 3, H, W]."""
        net = self.body
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return cast("Tensor", net.layer4(net.layer3(net.layer2(net.layer1(x)))))


class Stages(Body):
    """The same up to each of its last three maps."""

    channels_of: tuple[int, ...] = (512, 1024, 2048)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # several maps
        """Return float32[batch, C, h, w] of the second, third and fourth stage."""
        net = self.body
        x = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images))))))
        deeper = net.layer3(x)
        return x, deeper, net.layer4(deeper)


class AllStages(Body):
    """The same up to each of its four maps."""

    channels_of: tuple[int, ...] = (256, 512, 1024, 2048)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # several maps
        """Return float32[batch, C, h, w] of each stage."""
        net = self.body
        maps = [net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))]
        for stage in (net.layer2, net.layer3, net.layer4):
            maps.append(stage(maps[-1]))
        return tuple(maps)


class LightBody(nn.Module):
    """The stages of a narrow ResNet-18 up to a sixteenth of the size, norms trained."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        made: Any = narrow_resnet18((*LIGHT_WIDTHS, 8))
        del made.fc, made.avgpool, made.layer4
        self.body, self.channels = made, LIGHT_WIDTHS[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, 128, H / 16, W / 16] of images float32[batch, 3, H, W]."""
        net = self.body
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return cast("Tensor", net.layer3(net.layer2(net.layer1(x))))
