"""The official names of a Swin's weights, from those of mmdetection, mmsegmentation and theirs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.networks import swin
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from deploykit.recipes.recipe import StateDict

MADE = re.compile(r"\.(attn\.(w_msa\.)?relative_position_index|attn_mask)$")
"""What other code stores though it follows from the sizes."""
_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\bpatch_embed\.projection\."), "patch_embed.proj."),
    (re.compile(r"\bstages\.(\d+)\.(?=blocks|downsample)"), r"layers.\1."),
    (re.compile(r"\.attn\.w_msa\."), ".attn."),
    (re.compile(r"\.ffn\.layers\.0\.0\."), ".mlp.fc1."),
    (re.compile(r"\.ffn\.layers\.1\."), ".mlp.fc2."),
)


def official(state: StateDict, prefix: str) -> dict[str, Tensor]:
    """Return `state` with the official names of what is behind `prefix`, and what follows left out.

    mmdetection and mmsegmentation join four patches channel by channel, the official code patch by
    patch, and another one second.
    """
    foreign = f"{prefix}patch_embed.projection.weight" in state
    found = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            found[key] = value
        elif not MADE.search(key):
            moved = foreign and ".downsample." in key
            found[_renamed(key) if foreign else key] = _by_patch(value) if moved else value
    return found


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return key


def _by_patch(value: Tensor) -> Tensor:
    """Return [..., 4 * C] by columns, then rows, then channels of channels, then rows, columns."""
    if not value.ndim or value.shape[-1] % 4:
        return value
    split = value.reshape(*value.shape[:-1], -1, 2, 2)
    return split.transpose(-1, -3).flatten(-3).contiguous()


def body(state: StateDict, prefix: str) -> str | None:
    """Return the size of `swin_dense.BODIES` that weights are of, None where they are of none."""
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    name = swin.variant(inside)
    if name is None or outputs(inside, "norm0.weight") is None:
        return None
    return name.replace("_384", "_window12")
