"""Fully convolutional networks for semantic segmentation: torchvision's, and a light one.

Source: torchvision.models.segmentation.fcn; Fully Convolutional Networks (arXiv 1411.4038). The
light one reads the finest level of a feature pyramid (arXiv 1612.03144).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.detection import backbone_utils

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks.class_names import numbered
from deploykit.networks.detectors.light import narrow_resnet18
from deploykit.networks.states import children, outputs
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

WIDTHS, PYRAMID = (24, 40, 64, 112), 48
"""Channels of the light network's stages, and of its pyramid."""
BLOCKS = {"resnet50": 6, "resnet101": 23}
"""torchvision's variant -> blocks in its third stage."""
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of torchvision's published weights."""


class Light(nn.Module):
    """A narrow ResNet-18 with a feature pyramid; class scores at a quarter of the size."""

    def __init__(self, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__()
        levels = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
        self.backbone = backbone_utils.BackboneWithFPN(
            narrow_resnet18(WIDTHS), levels, list(WIDTHS), PYRAMID, norm_layer=nn.BatchNorm2d
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1, bias=False),
            nn.BatchNorm2d(PYRAMID),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(PYRAMID, classes, 1),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `out`: logits float32[batch, classes, H / 4, W / 4]."""
        return {"out": self.classifier(self.backbone(images)["0"])}


def build(variant: str, classes: int, _: tuple[int, int]) -> nn.Module:
    """Return the network of a variant as it was trained, in eval mode."""
    if variant == "light":
        return Light(classes).eval()
    made: Any = getattr(segmentation, f"fcn_{variant}")
    return cast("nn.Module", made(num_classes=classes, weights_backbone=None, aux_loss=False))


def adapt(state: StateDict) -> StateDict:
    """Return `state` without the classifier that only training reads."""
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is no such network."""
    classes = outputs(state, "classifier.4.weight")
    if classes is None or state["classifier.4.weight"].ndim != 4:
        return None
    if "backbone.fpn.inner_blocks.0.0.weight" in state:
        fits = outputs(state, "backbone.body.conv1.weight") == WIDTHS[0]
        return ("light", classes) if fits else None
    blocks = len(children(state, "backbone.layer3"))
    wide = outputs(state, "classifier.0.weight") == 512
    name = next((name for name, count in BLOCKS.items() if count == blocks and wide), None)
    return None if name is None else (name, classes)


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of VOC's classes where there are as many, else numbers."""
    return VOC if count == len(VOC) else numbered(count)


KEEP_FLOAT = (
    KeepFloat(
        r"^classifier\.4\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is a "
        "small part of the work",
    ),
)
PREPROCESS = (
    Preprocess((520, 696), "corner", mean=MEAN, std=STD, pad_value=None, rounding="down")
    .at_scale(520, 696)
    .turned()
)
"""torchvision's: the short side 520 pixels, the long one up to 4 : 3."""
LIGHT = Preprocess((128, 128), "stretch", mean=MEAN, std=STD)
MARKS = ("classifier.4.",)
recipe = Recipe(
    name="fcn",
    task="semantic_segmentation",
    variants={
        **dict.fromkeys(BLOCKS, Variant(PREPROCESS, KEEP_FLOAT, 8, ("backbone.layer4",))),
        "light": Variant(LIGHT, KEEP_FLOAT, 32, ("backbone",)),
    },
    build=build,
    identify=identify,
    outputs=(Output("out", "logits"),),
    adapt=adapt,
    class_names=class_names,
)
