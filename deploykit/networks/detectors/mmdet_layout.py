"""MMDetection's R-CNN checkpoints under torchvision's names, and its conventions.

Source: the names and numbers in mmdetection 2 and 3. What differs beside names: the background is
the last class, boxes and masks have none for it; sides shrink no more than they grow; nothing is
too small to be found. What the weights do not say is read from the configuration in the file.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deploykit.networks import mm_config, swin_names
from deploykit.networks.detectors import adapted, two_stage
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.networks.detectors.grids import Array
    from deploykit.networks.detectors.two_stage_models import Sizes
    from deploykit.recipes.identity import Choice, Facts, Plain, Settings
    from deploykit.recipes.recipe import StateDict
    from deploykit.tasks.masks import Pasting

MARK = "mmdet"
"""An empty entry of the state dict: the weights themselves do not say how RoIs are sampled."""
SAMPLING = two_stage.Sampling(aligned=1, sampling_ratio=0, level_epsilon=2.5e-7, epsilon_inside=1)
"""It adds 1e-6 to the side over 56, not over 224, before the logarithm."""
IMAGES: Mapping[str, Any] = MappingProxyType({"rounding": "half-up", "resampler": "cv2-linear"})
PASTING: Pasting = "exact"
BASE = 8
"""Side of an anchor in cells of its level."""
_ROI = r"^roi_head\."
_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^backbone\."), "backbone.body."),
    (re.compile(r"^neck\.lateral_convs\.(\d)\.conv\."), r"backbone.fpn.inner_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.(\d)\.conv\."), r"backbone.fpn.layer_blocks.\1.0."),
    (re.compile(r"^rpn_head\.rpn_conv\."), "rpn.head.conv.0.0."),
    (re.compile(r"^rpn_head\.rpn_cls\."), "rpn.head.cls_logits."),
    (re.compile(r"^rpn_head\.rpn_reg\."), "rpn.head.bbox_pred."),
    (
        re.compile(rf"{_ROI}bbox_head\.shared_fcs\.([01])\."),
        lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}.",
    ),
    (re.compile(rf"{_ROI}bbox_head\.fc_cls\."), "roi_heads.box_predictor.cls_score."),
    (re.compile(rf"{_ROI}bbox_head\.fc_reg\."), "roi_heads.box_predictor.bbox_pred."),
    (re.compile(rf"{_ROI}mask_head\.convs\.(\d)\.conv\."), r"roi_heads.mask_head.\1.0."),
    (re.compile(rf"{_ROI}mask_head\.upsample\."), "roi_heads.mask_predictor.conv5_mask."),
    (re.compile(rf"{_ROI}mask_head\.conv_logits\."), "roi_heads.mask_predictor.mask_fcn_logits."),
)


def is_own(state: StateDict) -> bool:
    """Return whether a state dict has mmdetection's names."""
    return "roi_head.bbox_head.fc_cls.weight" in state


def adapt(state: StateDict) -> dict[str, Tensor]:
    """Return a state dict of mmdetection under torchvision's names, with `MARK`."""
    classes = (outputs(state, "roi_head.bbox_head.fc_cls.weight") or 1) - 1
    found = {_renamed(key): value for key, value in swin_names.official(state, "backbone.").items()}
    return {key: adapted.with_background(key, value, classes) for key, value in found.items()} | {
        MARK: torch.empty(0)
    }


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return key


_HEAD, _RPN = ("model", "roi_head"), ("model", "rpn_head")
_ALIGN = ("type", ("RoIAlign",)), ("sampling_ratio", (0,)), ("aligned", (True,))
_CODERS = ((*_HEAD, "bbox_head", "bbox_coder"), (*_RPN, "bbox_coder"))
_TESTED = ("model", "test_cfg")
_CARRIED: tuple[tuple[tuple[str, ...], tuple[Plain, ...]], ...] = (
    *(
        ((*_HEAD, f"{kind}_roi_extractor", "roi_layer", name), values)
        for kind in ("bbox", "mask")
        for name, values in _ALIGN
    ),
    *(((*_HEAD, f"{kind}_roi_extractor", "finest_scale"), (56,)) for kind in ("bbox", "mask")),
    *(((*path, "type"), ("DeltaXYWHBBoxCoder",)) for path in _CODERS),
    *(((*path, "target_means"), ((0, 0, 0, 0),)) for path in _CODERS),
    *(((*path, "clip_border"), (True,)) for path in _CODERS),
    *(((*path, "add_ctr_clamp"), (False,)) for path in _CODERS),
    ((*_RPN, "bbox_coder", "target_stds"), ((1, 1, 1, 1),)),
    ((*_RPN, "anchor_generator", "type"), ("AnchorGenerator",)),
    ((*_RPN, "anchor_generator", "strides"), ((4, 8, 16, 32, 64),)),
    ((*_RPN, "anchor_generator", "center_offset"), (0,)),
    ((*_HEAD, "bbox_head", "loss_cls", "use_sigmoid"), (False,)),
    (("model", "neck", "type"), ("FPN",)),
    *(((*_TESTED, stage, "nms", "type"), ("nms",)) for stage in ("rpn", "rcnn")),
    *(((*_TESTED, stage, "nms", "class_agnostic"), (False,)) for stage in ("rpn", "rcnn")),
    ((*_TESTED, "rpn", "min_bbox_size"), (0,)),
    ((*_TESTED, "rcnn", "mask_thr_binary"), (0.5,)),
)
"""Paths in a configuration, and the values there that the network has."""
_LIMITS = {
    "score_threshold": (*_TESTED, "rcnn", "score_thr"),
    "nms_threshold": (*_TESTED, "rcnn", "nms", "iou_threshold"),
    "detections": (*_TESTED, "rcnn", "max_per_img"),
    "candidates": (*_TESTED, "rpn", "nms_pre"),
    "proposals": (*_TESTED, "rpn", "max_per_img"),
    "proposal_nms_threshold": (*_TESTED, "rpn", "nms", "iou_threshold"),
    "anchor_ratios": (*_RPN, "anchor_generator", "ratios"),
}


def stored(_: StateDict, __: Sizes, facts: Facts) -> dict[str, Plain]:
    """Return the settings in the configuration of a file.

    Raises: CheckpointError where it says something that is not carried.
    """
    config = mm_config.read(facts.beside)
    mm_config.check(config, _CARRIED)
    found = mm_config.images(config) | mm_config.taken(config, _LIMITS)
    if "anchor_ratios" in found:
        found["anchor_ratios"] = (found["anchor_ratios"],)
    scales = mm_config.positive(config, *_RPN, "anchor_generator", "scales")
    strides = [adapted.FIRST_STRIDE * 2**level for level in range(5)]
    if scales is not None:
        found["anchor_sizes"] = tuple(tuple(s * step for s in scales) for step in strides)
    spread = mm_config.positive(config, *_HEAD, "bbox_head", "bbox_coder", "target_stds")
    if spread is not None:
        found["box_weights"] = tuple(1 / std for std in spread)
    style = mm_config.at(config, "model", "backbone", "style")
    return found if style is None else found | {"stride_in_1x1": style == "caffe"}


def choices(variant: str, stored: Mapping[str, Plain]) -> dict[str, Choice]:
    """Return the settings that its own names do not share with torchvision's.

    ResNets are torchvision's where the file does not say that they are Caffe's; the weights of
    ResNeXt-101 32x8d come from Caffe2.
    """
    if "resnext101_32x8d" in variant:
        return adapted.choices(mm_config.MEAN[::-1], mm_config.STD[::-1], stored, in_1x1=False)
    in_1x1 = None if "swin" in variant else False
    return adapted.choices(mm_config.MEAN, mm_config.STD, stored, in_1x1=in_1x1, channels="RGB")


def network(model: Any, settings: Settings, state: StateDict) -> two_stage.TwoStage:  # noqa: ANN401 - torchvision ships no types
    """Return the network of torchvision's model, with mmdetection's conventions."""
    adapted.set_strides(model, settings)
    model.rpn.min_size = two_stage.LEAST
    made = two_stage.TwoStage(model, SAMPLING)
    made.select.least = 0.0
    made.select.bounded = made.propose.bounded = True
    generator = model.rpn.anchor_generator
    rows = zip(generator.sizes, generator.aspect_ratios, strict=True)
    adapted.set_anchors(made, [cell(*row) for row in rows])
    adapted.keep(made, (MARK,), state)
    return made


def cell(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Array:
    """Return the anchors around the origin, float32[A, 4]: ratio by ratio, height / width."""
    shapes = np.sqrt(np.array(ratios, np.float64))[:, None]
    sides = np.array(sizes, np.float64)
    half = np.stack([(sides / shapes).ravel(), (sides * shapes).ravel()], 1) / 2
    found: Array = np.concatenate([-half, half], 1).astype(np.float32)
    return found
