"""Detectron2's R-CNN checkpoints under torchvision's names.

Source: the names in detectron2's model zoo (R50-FPN and R101-FPN). What differs beside names: the
background is the last class there and the first here, and boxes and masks have none for it.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deploykit.networks import mpvit_names
from deploykit.networks.detectors import adapted, two_stage
from deploykit.networks.states import outputs
from deploykit.recipes.identity import Choice, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.networks.detectors.grids import Array
    from deploykit.networks.detectors.two_stage_models import Sizes
    from deploykit.recipes.identity import Facts, Plain, Settings
    from deploykit.recipes.recipe import StateDict
    from deploykit.tasks.masks import Pasting

MARK = "detectron2"
"""An empty entry of the state dict: the weights themselves do not say how RoIs are sampled."""
SAMPLING = two_stage.Sampling(aligned=1, sampling_ratio=0, level_epsilon=1e-8, epsilon_inside=1)
MEAN_BGR = (103.53, 116.28, 123.675)
"""0 to 255; the deviation is 1."""
IMAGES: Mapping[str, Any] = MappingProxyType({"rounding": "half-up"})
PASTING: Pasting = "exact"

_NORM = r"(weight|bias|running_mean|running_var)$"
_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(rf"^backbone\.bottom_up\.stem\.conv1\.norm\.{_NORM}"), r"backbone.body.bn1.\1"),
    (re.compile(r"^backbone\.bottom_up\.stem\.conv1\."), "backbone.body.conv1."),
    (
        re.compile(r"^backbone\.bottom_up\.res(\d)\."),
        lambda m: f"backbone.body.layer{int(m[1]) - 1}.",
    ),
    (re.compile(r"^backbone\.bottom_up\.backbone\."), "backbone.body."),  # of MPViT
    (re.compile(rf"\.conv(\d)\.norm\.{_NORM}"), r".bn\1.\2"),
    (re.compile(r"\.shortcut\.norm\."), ".downsample.1."),
    (re.compile(r"\.shortcut\."), ".downsample.0."),
    (
        re.compile(r"^backbone\.fpn_(lateral|output)(\d)\."),
        lambda m: (
            f"backbone.fpn.{'inner' if m[1] == 'lateral' else 'layer'}_blocks.{int(m[2]) - 2}.0."
        ),
    ),
    (re.compile(r"^proposal_generator\.rpn_head\.conv\."), "rpn.head.conv.0.0."),
    (re.compile(r"^proposal_generator\.rpn_head\.objectness_logits\."), "rpn.head.cls_logits."),
    (re.compile(r"^proposal_generator\.rpn_head\.anchor_deltas\."), "rpn.head.bbox_pred."),
    (re.compile(r"\.box_head\.fc([12])\."), lambda m: f".box_head.fc{int(m[1]) + 5}."),
    (re.compile(r"\.mask_head\.mask_fcn(\d)\."), lambda m: f".mask_head.{int(m[1]) - 1}.0."),
    (re.compile(r"\.mask_head\.deconv\."), ".mask_predictor.conv5_mask."),
    (re.compile(r"\.mask_head\.predictor\."), ".mask_predictor.mask_fcn_logits."),
    (re.compile(r"\.mask_(coarse|point)_head\."), r".mask_head.\1_head."),
    (re.compile(r"\.coarse_head\.coarse_mask_fc(\d)\."), r".coarse_head.fc\1."),
    (
        re.compile(r"\.keypoint_head\.conv_fcn(\d)\."),
        lambda m: f".keypoint_head.{2 * int(m[1]) - 2}.",
    ),
    (re.compile(r"\.keypoint_head\.score_lowres\."), ".keypoint_predictor.kps_score_lowres."),
)
_CELLS = re.compile(r"^proposal_generator\.anchor_generator\.cell_anchors\.(\d+)$")
STORED = re.compile(r"^(pixel_mean|pixel_std|cell_anchors_\d+)$")
"""What files until 2021 hold beside the weights, as `adapt` names it."""


def is_own(state: StateDict) -> bool:
    """Return whether a state dict has detectron2's names."""
    return "proposal_generator.rpn_head.conv.weight" in state


def adapt(state: StateDict) -> dict[str, Tensor]:
    """Return a state dict of detectron2 under torchvision's names, with `MARK`."""
    renamed = mpvit_names.shared({_renamed(key): value for key, value in state.items()})
    classes = (outputs(state, "roi_heads.box_predictor.cls_score.weight") or 1) - 1
    found = {key: adapted.with_background(key, v, classes) for key, v in renamed.items()}
    return found | {MARK: torch.empty(0)}


def _renamed(key: str) -> str:
    key = _CELLS.sub(r"cell_anchors_\1", key)
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return key


def stored(state: StateDict, wanted: Sizes, _: Facts) -> dict[str, Plain]:
    """Return the settings among the entries of a state dict.

    Raises: CheckpointError where the anchors are not those of the weights.
    """
    found: dict[str, Plain] = {}
    for name, key in (("mean", "pixel_mean"), ("std", "pixel_std")):
        if key in state:
            found[name] = frozen(state[key].flatten().tolist())
    if "pixel_mean" in state and state["pixel_mean"].numel():
        mean = np.array(state["pixel_mean"].flatten().tolist())
        away = [np.abs(mean - np.resize(known, mean.shape)).max() for known in _MEANS.values()]
        if min(away) < max(away):
            found["channels"] = list(_MEANS)[int(np.argmin(away))]
    return found | adapted.stored_anchors(state, wanted)


_MEANS = {"BGR": MEAN_BGR, "RGB": MEAN_BGR[::-1]}
_IMAGENET = (MEAN_BGR[::-1], (58.395, 57.12, 57.375))
"""Mean and deviation where images are RGB."""
_X101_STD = (57.375, 57.12, 58.395)


def choices(variant: str, stored: Mapping[str, Plain]) -> dict[str, Choice]:
    """Return the settings that its own names do not share with torchvision's."""
    if "mpvit" in variant:
        return adapted.choices(_IMAGENET[0], _IMAGENET[1], stored, in_1x1=None, channels="RGB")
    grouped = "resnext" in variant
    std = _X101_STD if grouped else (1.0, 1.0, 1.0)
    return adapted.choices(MEAN_BGR, std, stored, in_1x1=not grouped)


def network(model: Any, settings: Settings, state: StateDict) -> two_stage.TwoStage:  # noqa: ANN401 - torchvision ships no types
    """Return the network of torchvision's model, with detectron2's conventions.

    Strides are in the first convolution of a block, as in the ResNets that it starts from; anchors
    are not rounded, and those of a level are as far apart as its stride says.
    """
    adapted.set_strides(model, settings)
    model.rpn.min_size = two_stage.LEAST
    made = two_stage.TwoStage(model, SAMPLING)
    generator = model.rpn.anchor_generator
    rows = zip(generator.sizes, generator.aspect_ratios, strict=True)
    adapted.set_anchors(made, adapted.cells(settings) or [cell(*row) for row in rows])
    adapted.keep(made, (MARK, *(key for key in state if STORED.match(key))), state)
    return made


def cell(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Array:
    """Return the anchors around the origin, float32[A, 4]: areas size², ratios height / width."""
    area = np.array(sizes, np.float64)[:, None] ** 2
    width = np.sqrt(area / np.array(ratios, np.float64)).ravel()
    height = np.broadcast_to(area, (len(sizes), len(ratios))).ravel() / width
    half = np.stack([width, height], 1) / 2
    found: Array = np.concatenate([-half, half], 1).astype(np.float32)
    return found
