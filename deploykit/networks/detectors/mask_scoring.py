"""The head of Mask Scoring R-CNN: how well a mask covers its object.

Source: Huang et al., Mask Scoring R-CNN (arXiv 1903.00241, section 3.2); four convolutions, the
last of them to half the size, and three linear layers as in its published code, whose key names
these are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

WIDTH, HIDDEN, SIDE = 256, 1024, 14
"""Channels of the convolutions, outputs of the linear layers, height and width of the features."""


class MaskIou(nn.Module):
    """From the features of an object and its mask to the IoU that is expected of the mask."""

    def __init__(self, channels: int, labels: int) -> None:
        """Make the layers. channels: of the features. labels: the background among them."""
        super().__init__()
        widths = (channels + 1, WIDTH, WIDTH, WIDTH)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(widths, start=1):
            stride = 2 if number == len(widths) else 1
            layers[f"maskiou_fcn{number}"] = nn.Conv2d(width, WIDTH, 3, stride, 1)
            layers[f"relu{number}"] = nn.ReLU()
        layers["flatten"] = nn.Flatten()
        inputs = WIDTH * (SIDE // 2) ** 2
        for number, size in enumerate((inputs, HIDDEN), start=1):
            layers[f"maskiou_fc{number}"] = nn.Linear(size, HIDDEN)
            layers[f"relu_fc{number}"] = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.feature_extractor = nn.Sequential(layers)
        self.predictor = nn.ModuleDict({"maskiou": nn.Linear(HIDDEN, labels)})

    def forward(self, features: Tensor, masks: Tensor, classes: Tensor) -> Tensor:
        """Return float32[n, 1]: what each mask of its class is worth.

        features: [n, C, 14, 14], those that the mask head reads. masks: [n, 28, 28], 0 to 1.
        classes: int32[n], the background not among them, -1 in the padding.
        """
        x = torch.cat([features, self.pool(masks.unsqueeze(1))], 1)
        found = self.predictor["maskiou"](self.feature_extractor(x))
        label = (classes.clamp(min=0) + 1).to(torch.int64).reshape(-1, 1)
        return cast("Tensor", found.gather(1, label))
