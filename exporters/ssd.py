"""SSD300 on VGG-16 and SSDlite320 on MobileNetV3, as torchvision defines them.

Source: torchvision.models.detection.ssd and ssdlite; SSD (arXiv 1512.02325), MobileNetV3 (arXiv
1905.02244).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

from deploykit.data.preprocess import Preprocess
from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.networks.states import outputs
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

    Array = NDArray[np.float32]

MODELS: dict[str, Any] = {
    "ssd300_vgg16": ssd300_vgg16,
    "ssdlite320_mobilenet_v3_large": ssdlite320_mobilenet_v3_large,
}
"""Variant -> torchvision's constructor."""
INPUTS = {
    "ssd300_vgg16": Preprocess(
        (300, 300),
        resize="stretch",
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        resampler="torch",
    ),
    "ssdlite320_mobilenet_v3_large": Preprocess(
        (320, 320), resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resampler="torch"
    ),
}
SCORES = {
    "ssd300_vgg16": ("head.classification_head.module_list.0.weight", 4),
    "ssdlite320_mobilenet_v3_large": ("head.classification_head.module_list.0.1.weight", 6),
}
"""Variant -> the weight that gives the scores on the first level, and the boxes per cell there."""


class Select(nn.Module):
    """The best candidates of every class, then one NMS."""

    def __init__(self, limits: dense.Limits, weights: Sequence[float]) -> None:
        """Keep what becomes a detection, and the weights of the box coding."""
        super().__init__()
        self.limits, self.weights = limits, tuple(weights)

    def forward(
        self, level: dense.Level, size: tuple[int, int], score: float
    ) -> tuple[Tensor, ...]:
        """Return what `dense.suppressed` does; the logits' first class is the background."""
        scores = level.logits.softmax(-1)[..., 1:].transpose(1, 2)
        scores, places = scores.topk(min(self.limits.candidates, scores.shape[2]))
        boxes = grids.clipped(grids.moved(level.deltas, level.anchors, self.weights), size)
        classes = torch.arange(scores.shape[1]).unsqueeze(-1).expand_as(scores)
        found = dense.Candidates(
            dense.rows(boxes, places.flatten(1)), scores.flatten(1), classes.flatten(1)
        )
        return dense.suppressed(found, self.limits, score)


class Network(nn.Module):
    """An SSD with a fixed number of detections."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take the trained parts of torchvision's model, under their names.

        `score_threshold` may be changed until the network is traced.
        """
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        generator, limits = model.anchor_generator, dense.Limits.of(model)
        self.sides = [pairs.clamp(0, 1).numpy() for pairs in generator._wh_pairs]  # noqa: SLF001 - not kept under another name
        self.steps = generator.steps
        self.score_threshold = limits.score
        self.select = Select(limits, model.box_coder.weights)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of normalised images float32[B, 3, H, W]."""
        size = (int(images.shape[2]), int(images.shape[3]))
        maps = list(self.backbone(images).values())
        answers = self.head(maps)
        boxes = torch.from_numpy(
            self._boxes(size, [(int(m.shape[2]), int(m.shape[3])) for m in maps])
        )
        level = dense.Level(answers["cls_logits"], answers["bbox_regression"], boxes)
        found: tuple[Tensor, ...] = self.select(level, size, self.score_threshold)
        return found

    def _boxes(self, size: tuple[int, int], maps: Sequence[tuple[int, int]]) -> Array:
        """Return the default boxes of all levels, float32[n, 4]."""
        steps = maps if self.steps is None else [(size[0] / s, size[1] / s) for s in self.steps]
        levels = zip(self.sides, maps, steps, strict=True)
        return np.concatenate([grids.default_boxes(s, size, *rest) for s, *rest in levels])


def build(variant: str, classes: int, _: tuple[int, int]) -> Network:
    """Return the network of a variant as it was trained, in eval mode."""
    model = MODELS[variant](weights=None, weights_backbone=None, num_classes=classes + 1)
    return Network(model).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not an SSD."""
    for variant, (key, boxes) in SCORES.items():
        scores = outputs(state, key)
        if scores is not None and state[key].ndim == 4:
            return variant, scores // boxes - 1
    return None


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of COCO's 90 labels; numbers for other counts."""
    names = dense_family.coco_names(1)
    return names if count == len(names) else dense_family.numbered(count)


KEEP_FLOAT = (
    KeepFloat(
        r"^head\.\w+_head\.module_list\.\d+(\.1)?\.",
        "the last convolutions give the scores and box sides themselves: 255 levels over all "
        "classes or sides merge scores and move boxes",
    ),
    *dense_family.SELECT,
)
MARKS = ("head.classification_head.",)
recipe = Recipe(
    name="ssd",
    task="detection",
    variants={
        name: Variant(made, KEEP_FLOAT, size_multiple=None, features=("backbone",))
        for name, made in INPUTS.items()
    },
    build=build,
    identify=identify,
    outputs=dense_family.OUTPUTS,
    class_names=class_names,
)
