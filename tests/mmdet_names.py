"""Torchvision's and the official names beside mmdetection's, told anew for the tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

HEADS = (
    *((f"backbone.fpn.inner_blocks.{i}.0.", f"neck.lateral_convs.{i}.conv.") for i in range(4)),
    *((f"backbone.fpn.layer_blocks.{i}.0.", f"neck.fpn_convs.{i}.conv.") for i in range(4)),
    ("backbone.body.", "backbone."),
    ("rpn.head.conv.0.0.", "rpn_head.rpn_conv."),
    ("rpn.head.cls_logits.", "rpn_head.rpn_cls."),
    ("rpn.head.bbox_pred.", "rpn_head.rpn_reg."),
    ("roi_heads.", "roi_head."),
    ("box_head.fc6.", "bbox_head.shared_fcs.0."),
    ("box_head.fc7.", "bbox_head.shared_fcs.1."),
    ("box_predictor.cls_score.", "bbox_head.fc_cls."),
    ("box_predictor.bbox_pred.", "bbox_head.fc_reg."),
    *((f"mask_head.{i}.0.", f"mask_head.convs.{i}.conv.") for i in range(4)),
    ("mask_predictor.conv5_mask.", "mask_head.upsample."),
    ("mask_predictor.mask_fcn_logits.", "mask_head.conv_logits."),
)
"""(ours, theirs), to be replaced in this order."""
SWIN = (
    ("patch_embed.proj.", "patch_embed.projection."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)


def detector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a two-stage detector's weights as mmdetection keeps them: the background last."""
    found = {}
    for key, value in state.items():
        name = _replaced(key, HEADS)
        if key == "mmdet":
            continue
        if "fc_cls" in name:
            found[name] = torch.cat([value[1:], value[:1]])
        elif "fc_reg" in name:
            found[name] = value[4:]
        elif "conv_logits" in name:
            found[name] = value[1:]
        else:
            found[name] = value
    return found


def swin(state: Mapping[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    """Return a Swin's weights behind `prefix` as mmdetection and mmsegmentation keep them."""
    found = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            found[key] = value
            continue
        name = re.sub(r"\blayers\.(\d)\.(?=blocks|downsample)", r"stages.\1.", _replaced(key, SWIN))
        found[name] = _by_channel(value) if ".downsample." in key else value
        if key.endswith("_table"):
            count = int(value.shape[0] ** 0.5 + 1) // 2
            made = torch.zeros(count**2, count**2, dtype=torch.int64, device=value.device)
            found[name.replace("_table", "_index").replace("_bias", "")] = made
    return found


def _replaced(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in names:
        key = key.replace(ours, theirs)
    return key


def _by_channel(value: Tensor) -> Tensor:
    """Return [..., 4 * C] whose neighbours are the four patches of one channel, row by row."""
    width = value.shape[-1] // 4
    first = [0, 2, 1, 3]  # of the official quadrants: below, right
    parts = [value[..., q * width : (q + 1) * width] for q in first]
    return torch.stack(parts, -1).flatten(-2)
