"""DETR by the names of transformers, of its versions 4 and 5."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

_HF = "model.query_position_embeddings.weight"
"""A weight by the name that transformers gives it."""
_BACK = r"^model\.backbone\.(conv_encoder\.)?model\."
_RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (_BACK, "backbone.0.body."),
        (r"^model\.input_projection\.", "input_proj."),
        (r"^model\.query_position_embeddings\.", "query_embed."),
        (r"^class_labels_classifier\.", "class_embed."),
        (r"^bbox_predictor\.", "bbox_embed."),
        (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
        (r"\.encoder_attn\.", ".multihead_attn."),
        (r"\.self_attn_layer_norm\.", ".norm1."),
        (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
        (r"\.encoder_attn_layer_norm\.", ".norm2."),
        (r"\.final_layer_norm\.", ".norm3."),
        (r"\.decoder\.layernorm\.", ".decoder.norm."),
    )
)
_SPLIT = re.compile(r"(.*_attn)\.q_proj\.(weight|bias)")


def official(state: StateDict) -> StateDict:
    """Return `state` with the official keys, where they are those of transformers.

    Queries, keys and values are one weight there, in this order.
    """
    if _HF not in state:
        return state
    kept = dict(state)
    for pattern, new in _RULES:
        kept = {pattern.sub(new, key): value for key, value in kept.items()}
    for key in [key for key in kept if _SPLIT.fullmatch(key)]:
        names = [key.replace(".q_proj.", f".{each}_proj.") for each in "qkv"]
        if all(name in kept for name in names):
            joined = torch.cat([kept.pop(name) for name in names])
            kept[_SPLIT.sub(r"\1.in_proj_\2", key)] = joined
    return kept
