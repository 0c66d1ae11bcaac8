"""How images are made for DETRs, and which of them weights are of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks import detr, detr_bodies
from deploykit.networks.states import children, outputs
from deploykit.recipes.recipe import Protocol

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

BODY = "backbone.0.body"
BLOCKS = {6: 50, 23: 101}
"""Blocks in the third stage -> layers of the ResNet."""
LIGHT = "light"
PREPROCESS = Preprocess((800, 1066), "stretch", mean=MEAN, std=STD)
"""The official one for images of 4 to 3: the short side 800; without a mask an image fills its
input."""
SMALL = Preprocess((160, 160), "stretch", mean=MEAN, std=STD)
LIMITS, CANVAS = (800, 1333), (800, 1333)
"""Short and longest long side of an image by the official evaluation, and what holds it."""


def padded(made: Preprocess) -> Preprocess:
    """Return how the authors' evaluation makes an image for the canvas of `made`.

    The preprocessing of a variant, taken where no size is asked for, gets canvases for all images.
    """
    whole = replace(made, size=CANVAS).turned() if made is PREPROCESS else made
    corner = replace(whole, resize="corner", pad_value=None, rounding="short")
    return corner.at_scale(*LIMITS)


PADDED = Protocol(
    "the authors': the aspect ratio is kept, and what is beside an image is not looked at", padded
)


def variant(state: StateDict) -> str | None:
    """Return which one the weights are of, without dilation, None where they are of none."""
    queries, blocks = state.get("query_embed.weight"), len(children(state, f"{BODY}.layer3"))
    layers = {len(children(state, f"transformer.{part}.layers")) for part in ("encoder", "decoder")}
    if queries is None or queries.ndim != 2 or len(layers) != 1:
        return None
    sizes = (queries.shape[1], layers.pop(), queries.shape[0])
    first = outputs(state, f"{BODY}.conv1.weight")
    if sizes == (detr.LIGHT.width, detr.LIGHT.layers, detr.LIGHT.queries):
        return LIGHT if first == detr_bodies.LIGHT_WIDTHS[0] and blocks == 2 else None
    if sizes == (detr.WIDTH, detr.LAYERS, detr.QUERIES) and blocks in BLOCKS:
        return f"r{BLOCKS[blocks]}"
    return None


DILATED = "_dc5"
"""How the name of a variant ends whose last stage is dilated, which its weights do not say."""
NAMES = tuple(f"r{depth}{end}" for depth in BLOCKS.values() for end in ("", DILATED))


def body(name: str) -> tuple[int, bool]:
    """Return the layers of the ResNet of a variant, and whether its last stage is dilated."""
    return int(name.removesuffix(DILATED).removeprefix("r")), name.endswith(DILATED)


def assumed(name: str, facts: Facts) -> str:
    """Return what is assumed of the last stage where nobody states the variant."""
    if facts.variant or name == LIGHT:
        return ""
    return f"assumed: no dilated last stage, else --variant {name}{DILATED}"
