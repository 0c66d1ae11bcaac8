"""What names and shapes say of a Deformable DETR: the official ones, and those of transformers.

Heads that are one module under several names are stored under all of them by the official code,
and under one by others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from deploykit.networks import detr, detr_names
from deploykit.networks.deformable_attention import Sizes
from deploykit.networks.states import children, outputs

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.recipes.recipe import StateDict

_HF = "model.level_embed"
"""A weight by the name that transformers gives it."""
_DECODER = "transformer.decoder"
_RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (detr_names.BACK, "backbone.0.body."),
        (r"^model\.input_proj\.", "input_proj."),
        (r"^model\.query_position_embeddings\.", "query_embed."),
        (r"^model\.", "transformer."),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
        (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
        (r"\.encoder_attn_layer_norm\.", ".norm1."),
        (r"\.self_attn_layer_norm\.", ".norm2."),
        (r"\.final_layer_norm\.", ".norm3."),
        (r"\.encoder_attn\.", ".cross_attn."),
    )
)
LEVELS, WIDTHS = (1, 3, 4, 5, 6), range(32, 1025, 32)
"""How many maps there may be (two are less than the body gives), and channels."""
MOST_INNER, MOST_POINTS = 16_384, 64
_HEAD = re.compile(r"^(transformer\.decoder\.)?((?:class|bbox)_embed)\.(\d{1,4})\.(.*)$")


def official(state: StateDict) -> StateDict:
    """Return `state` with the official keys, every head under all of its names."""
    if _HF in state:
        state = detr_names.joined(detr_names.renamed(state, _RULES))
    return complete(state)


def complete(state: StateDict) -> StateDict:
    """Return `state` with the other names of heads that it has under some of them only.

    Heads are one for all layers of the decoder, or one for each where boxes are refined; those are
    the decoder's too.
    """
    layers = len(children(state, f"{_DECODER}.layers"))
    parts = [(m, v) for k, v in state.items() if (m := _HEAD.match(k))]
    known = {(m[2], int(m[3]), m[4]): value for m, value in parts}
    if not known or not layers:
        return state
    count = layers + ("transformer.enc_output.weight" in state)
    inside = {m[2] for m, _ in parts if m[1]}
    refined = bool(inside) or count > layers or _differ(known)
    inside |= {"bbox_embed"} if refined else set()
    inside |= {"class_embed"} if count > layers else set()
    made = dict(state)
    for (kind, place, rest), value in known.items():
        for other in [place] if refined else range(count) if place == 0 else []:
            made.setdefault(f"{kind}.{other}.{rest}", value)
            if kind in inside:
                made.setdefault(f"{_DECODER}.{kind}.{other}.{rest}", value)
    return made


def _differ(known: dict[tuple[str, int, str], Tensor]) -> bool:
    """Return whether the heads of the first two layers have other weights."""
    pairs = [
        (value, known.get((kind, 1, rest)))
        for (kind, place, rest), value in known.items()
        if place == 0 and kind == "bbox_embed"
    ]
    return any(
        b is not None and not a.is_meta and a.shape == b.shape and not torch.equal(a, b)
        for a, b in pairs
    )


def sizes(state: StateDict) -> Sizes | None:
    """Return what the weights say of the sizes, None where they are of no Deformable DETR."""
    layers = {len(children(state, f"transformer.{part}.layers")) for part in ("encoder", "decoder")}
    levels = state.get("transformer.level_embed")
    if levels is None or levels.ndim != 2 or len(layers) != 1:
        return None
    count, width = levels.shape
    first = "transformer.encoder.layers.0"
    inner = outputs(state, f"{first}.linear1.weight") or 0
    places = outputs(state, f"{first}.self_attn.attention_weights.weight") or 0
    if count not in LEVELS or width not in WIDTHS or not 0 < inner <= MOST_INNER:
        return None
    points, rest = divmod(places, detr.HEADS * count)
    if rest or not 0 < points <= MOST_POINTS:
        return None
    two = "transformer.enc_output.weight" in state
    return Sizes(
        width=width,
        inner=inner,
        layers=layers.pop(),
        levels=count,
        points=points,
        refined=two or f"{_DECODER}.bbox_embed.0.layers.0.weight" in state,
        two_stage=two,
    )
