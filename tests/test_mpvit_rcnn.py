"""MPViT as the body of Mask R-CNN, under the names of its authors' detectron2 project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from detectron2_names import BACKBONE, HEADS

from deploykit.networks import mpvit
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from torch import Tensor

RECIPE = RECIPES.load("mask_rcnn")
MASKS = (
    ("backbone.body.", "backbone.bottom_up.backbone."),
    *((f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.") for i in range(4)),
    ("mask_predictor.conv5_mask.", "mask_head.deconv."),
    ("mask_predictor.mask_fcn_logits.", "mask_head.predictor."),
)
"""(ours, theirs)."""


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under detectron2's names, the background where it has it."""
    found = {}
    for key, value in state.items():
        name, kept = key, value
        for ours, theirs in (*BACKBONE, *HEADS, *MASKS):
            name = name.replace(ours, theirs)
        if name.endswith(("box_predictor.bbox_pred.weight", "box_predictor.bbox_pred.bias")):
            kept = value[4:]
        elif "mask_head.predictor" in name:
            kept = value[1:]
        if key != "detectron2" and not key.endswith("num_batches_tracked"):
            found[name] = kept
    return found


@pytest.mark.parametrize(("size", "millions"), {"xsmall": 30, "small": 43, "base": 95}.items())
def test_weights_are_as_many_as_published_and_known_by_their_names(
    size: str, millions: int
) -> None:
    variant = f"detectron2_mpvit_{size}_fpn"
    with torch.device("meta"):
        network = RECIPE.network(variant, 80)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
    own = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    state = official(own)
    assert "backbone.bottom_up.backbone.mhca_stages.0.mhca_blks.0.cpe.proj.weight" in state
    assert "backbone.fpn_lateral2.weight" in state
    adapted = RECIPE.adapt(state)
    assert {k: v.shape for k, v in adapted.items()} == {k: v.shape for k, v in own.items()}
    found = RECIPE.identify(adapted, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (variant, 80)
    assert RECIPES.load("mpvit").identify(adapted, Facts()) is None


def test_images_are_made_as_its_configuration_says() -> None:
    made = RECIPE.variant("detectron2_mpvit_tiny_fpn").preprocess
    assert made.channels == "RGB"
    assert made.mean == (123.675, 116.28, 103.53)
    assert made.std == (58.395, 57.12, 57.375)
    grouped = RECIPE.variant("detectron2_resnext101_32x8d_fpn").preprocess
    assert (grouped.channels, grouped.std) == ("BGR", (57.375, 57.12, 58.395))


def test_the_pyramid_reads_the_four_maps() -> None:
    with torch.device("meta"):
        network: Any = RECIPE.network("detectron2_mpvit_small_fpn", 80)
        maps = network.backbone(torch.empty(1, 3, 64, 96))
    sizes = [tuple(x.shape) for x in maps.values()]
    assert sizes == [(1, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(1, 256, 1, 2)]
    inner = [block[0].in_channels for block in network.backbone.fpn.inner_blocks]
    assert inner == [128, 216, 288, 288]


def test_weights_of_another_body_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    other = mpvit.Architecture((64, 96, 176, 216), (1, 2, 4, 2), 2)
    with monkeypatch.context() as odd, torch.device("meta"):
        odd.setitem(mpvit.VARIANTS, "tiny", other)
        state = official(dict(RECIPE.network("detectron2_mpvit_tiny_fpn", 3).state_dict()))
    assert RECIPE.identify(RECIPE.adapt(state), Facts()) is None
