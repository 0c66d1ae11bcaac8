"""The head of Mask Scoring R-CNN: how well a mask covers its object.

Source: Huang et al., Mask Scoring R-CNN (arXiv 1903.00241, section 3.2); four convolutions, the
last of them to half the size, and three linear layers as in its published code, whose key names
these are.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

SIDE = 14
"""Height and width of the features."""


@dataclass(frozen=True)
class Widths:
    """How wide the layers are; the paper's unless said otherwise."""

    convolutions: int = 256
    """Channels."""
    hidden: int = 1024
    """Outputs of the linear layers."""


def widths(state: StateDict) -> Widths | None:
    """Return how wide the head in a state dict is, None where there is none."""
    layers = "roi_heads.maskiou.feature_extractor.maskiou_"
    convolutions, hidden = (outputs(state, f"{layers}{name}.weight") for name in ("fcn1", "fc1"))
    return None if convolutions is None or hidden is None else Widths(convolutions, hidden)


class MaskIou(nn.Module):
    """From the features of an object and its mask to the IoU that is expected of the mask."""

    def __init__(self, channels: int, labels: int, widths: Widths = Widths()) -> None:
        """Make the layers. channels: of the features. labels: the background among them."""
        super().__init__()
        width, hidden = widths.convolutions, widths.hidden
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, inputs in enumerate((channels + 1, width, width, width), start=1):
            stride = 2 if number == 4 else 1
            layers[f"maskiou_fcn{number}"] = nn.Conv2d(inputs, width, 3, stride, 1)
            layers[f"relu{number}"] = nn.ReLU()
        layers["flatten"] = nn.Flatten()
        for number, inputs in enumerate((width * (SIDE // 2) ** 2, hidden), start=1):
            layers[f"maskiou_fc{number}"] = nn.Linear(inputs, hidden)
            layers[f"relu_fc{number}"] = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.feature_extractor = nn.Sequential(layers)
        self.predictor = nn.ModuleDict({"maskiou": nn.Linear(hidden, labels)})

    def forward(self, features: Tensor, masks: Tensor, classes: Tensor) -> Tensor:
        """Return float32[n, 1]: what each mask of its class is worth.

        features: [n, C, 14, 14], those that the mask head reads. masks: [n, 28, 28], 0 to 1.
        classes: int32[n], the background not among them, -1 in the padding.
        """
        x = torch.cat([features, self.pool(masks.unsqueeze(1))], 1)
        found = self.predictor["maskiou"](self.feature_extractor(x))
        label = (classes.clamp(min=0) + 1).to(torch.int64).reshape(-1, 1)
        return cast("Tensor", found.gather(1, label))
