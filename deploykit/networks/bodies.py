"""The transformers that detectors and segmenters stand on: MPViT's and Swin's four maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.networks import mpvit, mpvit_names, swin_dense, swin_names

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

_MPVIT, _SWIN = "mpvit_", "swin_"
NAMES = (
    *(f"{_SWIN}{size}" for size in swin_dense.BODIES),
    *(f"{_MPVIT}{size}" for size in mpvit.SIZES),
)
"""The kind, and its size."""


def body(name: str) -> mpvit.Backbone | swin_dense.Backbone:
    """Return one of `NAMES` with random weights."""
    if name.startswith(_MPVIT):
        return mpvit.Backbone(mpvit.VARIANTS[name.removeprefix(_MPVIT)])
    return swin_dense.Backbone(swin_dense.BODIES[name.removeprefix(_SWIN)])


def name(state: StateDict, prefix: str) -> str | None:
    """Return which of `NAMES` weights behind `prefix` are of, None where they are of none."""
    kinds = ((_MPVIT, mpvit_names.variant), (_SWIN, swin_names.body))
    sizes = ((kind, find(state, prefix)) for kind, find in kinds)
    return next((f"{kind}{size}" for kind, size in sizes if size is not None), None)
