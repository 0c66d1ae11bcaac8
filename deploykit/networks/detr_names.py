"""DETR by the names of transformers, of its versions 4 and 5."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploykit.recipes.recipe import StateDict

_HF = "model.query_position_embeddings.weight"
"""A weight by the name that transformers gives it."""
BACK = r"^model\.backbone\.(conv_encoder\.)?model\."
_RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (BACK, "backbone.0.body."),
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
    """Return `state` with the official keys, where they are those of transformers."""
    return joined(renamed(state, _RULES)) if _HF in state else state


def renamed(state: StateDict, rules: Iterable[tuple[re.Pattern[str], str]]) -> StateDict:
    """Return `state` with every rule, a pattern and what stands for it, on every key in turn."""
    kept = dict(state)
    for pattern, new in rules:
        kept = {pattern.sub(new, key): value for key, value in kept.items()}
    return kept


def joined(state: StateDict) -> StateDict:
    """Return `state` with queries, keys and values as one weight each, in this order."""
    kept = dict(state)
    for key in [key for key in kept if _SPLIT.fullmatch(key)]:
        names = [key.replace(".q_proj.", f".{each}_proj.") for each in "qkv"]
        shapes = {kept[name].shape if name in kept else None for name in names}
        if len(shapes) == 1 and kept[key].ndim:
            whole = torch.cat([kept.pop(name) for name in names])
            kept[_SPLIT.sub(r"\1.in_proj_\2", key)] = whole
    return kept


_INSIDE = "detr."
_MASKS = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
        (r"^mask_head\.conv(\d)\.conv\.", r"mask_head.lay\1."),
        (r"^mask_head\.conv(\d)\.norm\.", r"mask_head.gn\1."),
        *(
            (rf"^mask_head\.fpn_stages\.{stage}\.{theirs}\.", f"mask_head.{ours}.")
            for stage in range(3)
            for theirs, ours in (
                ("fpn_adapter", f"adapter{stage + 1}"),
                (r"refine\.conv", f"lay{stage + 3}"),
                (r"refine\.norm", f"gn{stage + 3}"),
            )
        ),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    )
)


def inside(state: StateDict) -> StateDict:
    """Return the weights of the detector inside one with masks, without its prefix."""
    return {k.removeprefix(_INSIDE): v for k, v in state.items() if k.startswith(_INSIDE)}


def with_masks(state: StateDict) -> StateDict:
    """Return the weights of a DETR with masks by their official keys; no counters of norms."""
    kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    own = inside(kept)
    if _HF not in own:
        return kept
    others = {k: v for k, v in kept.items() if not k.startswith(_INSIDE)}
    return {
        **{_INSIDE + k: v for k, v in official(own).items()},
        **renamed(others, _MASKS),
    }
