"""SSD300 on VGG-16 and SSDlite320 on MobileNetV3, as torchvision defines them.

Source: torchvision.models.detection.ssd and ssdlite; SSD (arXiv 1512.02325), MobileNetV3 (arXiv
1905.02244).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import _utils as det_utils
from torchvision.models.detection import ssd, ssd300_vgg16, ssdlite, ssdlite320_mobilenet_v3_large

from deploykit.data.preprocess import Preprocess
from deploykit.networks.class_names import numbered
from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.networks.detectors.settings import agree, apply, choices
from deploykit.networks.states import outputs
from deploykit.recipes.identity import Found, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.networks.detectors.settings import Model
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

    Array = NDArray[np.float32]

LITE = "ssdlite320_mobilenet_v3_large"
FULL = f"{LITE}_full"
"""With all channels in the body's last blocks, as it is where training began with a published body;
torchvision's published SSDlite has half of them."""


def full(**options: Any) -> ssd.SSD:  # noqa: ANN401 - torchvision's own
    """Return torchvision's SSDlite with all channels in the last blocks, weights random."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    body = mobilenet_v3_large(weights=None, norm_layer=norm)
    backbone = ssdlite._mobilenet_extractor(body, 6, norm)  # noqa: SLF001 - part of no public function
    made = ssdlite320_mobilenet_v3_large(**options)
    channels = det_utils.retrieve_out_channels(backbone, INPUTS[FULL].size)
    per_cell = made.anchor_generator.num_anchors_per_location()
    made.head = ssdlite.SSDLiteHead(channels, per_cell, options["num_classes"], norm)
    made.backbone = backbone
    return made


MODELS: dict[str, Any] = {
    "ssd300_vgg16": ssd300_vgg16,
    LITE: ssdlite320_mobilenet_v3_large,
    FULL: full,
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
    **dict.fromkeys(
        (LITE, FULL),
        Preprocess(
            (320, 320),
            resize="stretch",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resampler="torch",
        ),
    ),
}
SCORES = {
    "ssd300_vgg16": ("head.classification_head.module_list.0.weight", 4),
    LITE: ("head.classification_head.module_list.0.1.weight", 6),
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
        boxes = grids.moved(level.deltas, level.anchors, self.weights)
        boxes = grids.clipped(boxes, grids.limits(size, None))
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


KNOBS = dense_family.DENSE | {name: dense_family.IMAGE[name] for name in ("mean", "std")}
_TAIL, _HALF = "backbone.features.1.0.3.0.weight", 80
"""The first weight of the last blocks, and its outputs where they have half the channels."""


def build(variant: str, classes: int, _: tuple[int, int]) -> Network:
    """Return the network of a variant as it was trained, in eval mode."""
    return Network(_model(variant, classes)).eval()


def _model(variant: str, classes: int) -> Model:
    return MODELS[variant](weights=None, weights_backbone=None, num_classes=classes + 1)


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is not an SSD."""
    for name, (key, boxes) in SCORES.items():
        scores = outputs(state, key)
        if scores is None or state[key].ndim != 4:
            continue
        tail = outputs(state, _TAIL)
        own = FULL if name == LITE and tail is not None and tail > _HALF else name
        return _found(stated(facts, own, MODELS), scores // boxes - 1, facts)
    return None


def _found(variant: str, classes: int, facts: Facts) -> Found:
    model = _model(variant, classes)
    base = choices(model, KNOBS)
    settings = resolve(base, facts)
    apply(model, dense_family.DENSE, settings)
    agree(model, facts, KNOBS)
    return Found(
        variant,
        classes,
        settings,
        build=lambda: Network(model).eval(),
        preprocess=partial(dense_family.set_up, INPUTS[variant], settings),
        class_names=class_names(classes) if dense_family.published(facts.sha256) else None,
        assumed=assumptions(base, settings),
    )


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of COCO's 90 labels; numbers for other counts."""
    names = dense_family.coco_names(1)
    return names if count == len(names) else numbered(count)


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
