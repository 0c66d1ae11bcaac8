"""maskrcnn-benchmark's R-CNN checkpoints under torchvision's names, and its conventions.

Source: the names and numbers in maskrcnn-benchmark, and in Mask Scoring R-CNN, which is made from
it. What differs beside names: boxes name pixels, both ends inside; anchors are rounded as those of
the first Faster R-CNN; the frozen norms have an epsilon of 0.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.networks.detectors import adapted, inclusive, two_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.networks.detectors.two_stage_models import Sizes
    from deploykit.recipes.identity import Choice, Facts, Plain, Settings
    from deploykit.recipes.recipe import StateDict
    from deploykit.tasks.masks import Pasting

MARK = "maskrcnn_benchmark"
"""An empty entry of the state dict: the weights themselves do not say how boxes end."""
SAMPLING = two_stage.Sampling(epsilon_inside=1, inclusive=1)
MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""0 to 255; the deviation is 1."""
IMAGES: Mapping[str, Any] = MappingProxyType({"rounding": "short"})
PASTING: Pasting = "rounded"
_FEATURES, _PREDICTOR = r"\.feature_extractor\.", r"\.predictor\."
_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^backbone\.body\.stem\."), "backbone.body."),
    (
        re.compile(r"^backbone\.fpn\.fpn_(inner|layer)(\d)\."),
        lambda m: f"backbone.fpn.{m[1]}_blocks.{int(m[2]) - 1}.0.",
    ),
    (re.compile(r"^rpn\.head\.conv\.(?=weight|bias)"), "rpn.head.conv.0.0."),
    (re.compile(rf"^roi_heads\.(box|mask){_PREDICTOR}"), r"roi_heads.\1_predictor."),
    (re.compile(rf"^roi_heads\.box{_FEATURES}"), "roi_heads.box_head."),
    (
        re.compile(rf"^roi_heads\.mask{_FEATURES}mask_fcn(\d)\."),
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.",
    ),
    (re.compile(r"^rpn\.anchor_generator\.cell_anchors\.(\d+)$"), r"cell_anchors_\1"),
)
_STORED = re.compile(r"^cell_anchors_\d+$")


def is_own(state: StateDict) -> bool:
    """Return whether a state dict has maskrcnn-benchmark's names."""
    return "roi_heads.box.predictor.cls_score.weight" in state


def adapt(state: StateDict) -> dict[str, Tensor]:
    """Return a state dict of maskrcnn-benchmark under torchvision's names, with `MARK`.

    The background is the first class in both. The names of the head for masks' scores stay.
    """
    return {_renamed(key): value for key, value in state.items()} | {MARK: torch.empty(0)}


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return key


def stored(state: StateDict, wanted: Sizes, _: Facts) -> dict[str, Plain]:
    """Return the settings among the entries of a state dict.

    Raises: CheckpointError where the anchors are not those of the weights.
    """
    return adapted.stored_anchors(state, wanted)


def choices(variant: str, stored: Mapping[str, Plain]) -> dict[str, Choice]:
    """Return the settings that its own names do not share with torchvision's."""
    return adapted.choices(MEAN_BGR, (1.0, 1.0, 1.0), stored, in_1x1="resnext" not in variant)


def network(model: Any, settings: Settings, state: StateDict) -> two_stage.TwoStage:  # noqa: ANN401 - torchvision ships no types
    """Return the network of torchvision's model, with maskrcnn-benchmark's conventions."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    adapted.set_strides(model, settings)
    model.rpn.min_size = 0.0
    made = two_stage.TwoStage(model, SAMPLING)
    made.select.least = 0.0
    generator, edge = model.rpn.anchor_generator, np.array([0, 0, 1, 1], np.float32)
    rows = enumerate(zip(generator.sizes, generator.aspect_ratios, strict=True))
    cells = adapted.cells(settings) or [
        _cell(adapted.FIRST_STRIDE * 2**level, *row) for level, row in rows
    ]
    adapted.set_anchors(made, [cell + edge for cell in cells])
    adapted.keep(made, (MARK, *(key for key in state if _STORED.match(key))), state)
    return made


def _cell(stride: int, sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Any:  # noqa: ANN401 - an array
    return inclusive.cell_anchors(stride, [size / stride for size in sizes], ratios)
