"""What is known of the networks that are not carried, so that a refusal calls them by name.

Source: names of parameters in detectron2, mmdetection, maskrcnn-benchmark, torchvision and timm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PARTS: tuple[tuple[str, str], ...] = (
    (r"^roi_heads\.box_predictor\.\d\.|^roi_head\.bbox_head\.\d\.", "several box heads (Cascade)"),
    (r"^roi_heads\.res5\.|^roi_head\.shared_head\.", "heads on the body's fourth stage (C4)"),
    (r"^roi_heads\.box\.feature_extractor\.head\.layer4\.", "heads on the fourth stage (C4)"),
    (r"\.conv\d_offset\.|\.conv_offset\.|\.offset\.weight$", "deformable convolutions"),
    (r"^sem_seg_head\.|^semantic_head\.|^panoptic_", "a head for stuff (panoptic)"),
    (r"^roi_heads\.mask_iou_head\.|^roi_head\.mask_iou_head\.", "scores of masks"),
    (r"^roi_heads\.box_head\.conv\d\.|\.bbox_head\.shared_convs\.", "convolutions in the box head"),
    (r"^backbone\.fpn_\w+\d\.norm\.|^neck\.\w+_convs\.\d\.(bn|gn)\.", "norms in the pyramid"),
    (r"^backbone\.fpn\.(inner|layer)_blocks\.\d\.\d\.norm\.", "norms in the pyramid"),
    (r"\.(box|mask)_head\.\S*(norm|gn|bn)\d?\.weight$", "norms in the heads"),
    (r"\.cpb_mlp\.", "the attention of Swin V2"),
    (r"^classifier\.0\.convs\.", "the head of DeepLabV3"),
    (r"\.(attn|se)\.fc1\.(weight|bias)$|\.se_module\.", "squeeze and excitation"),
    (r"^proposal_generator\.anchor_generator\..*angles", "rotated boxes"),
)
"""Pattern of a key, what a network with it has."""
_KEYPOINTS, _MASKS = "roi_heads.keypoint_head.", "roi_heads.mask_head."
_PYRAMID = re.compile(r"\.fpn_?|^neck\.")
_HEADS = re.compile(r"^roi_heads?\.")
_RPN = re.compile(r"^proposal_generator\.|^rpn_head\.|^rpn\.")
_MEAN = ".running_mean"
_BODY_NORM = re.compile(
    r"^(backbone\.(?:bottom_up\.)?(?:res|layer)\d\.\S*(?:norm|bn\d|gn\d))\.weight$"
)


def parts(names: Iterable[str]) -> tuple[str, ...]:
    """Return what a network whose weights have these names has that ours have not."""
    known = list(names)
    found = [what for pattern, what in _PARTS if any(map(re.compile(pattern).search, known))]
    has_rpn = any(map(_RPN.search, known))
    if has_rpn and not any(map(_HEADS.search, known)):
        found.append("proposals alone, without heads (RPN)")
    elif has_rpn and not any(map(_PYRAMID.search, known)):
        found.append("no pyramid (C4 or DC5)")
    if all(any(key.startswith(head) for key in known) for head in (_KEYPOINTS, _MASKS)):
        found.append("both keypoints and masks")
    norms = [match[1] for match in map(_BODY_NORM.match, known) if match]
    if norms and norms[0] + _MEAN not in known:
        found.append("group norms in the body")
    return tuple(dict.fromkeys(found))
