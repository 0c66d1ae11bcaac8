"""Networks that are not carried are refused by what they are, not by the first of their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

import detectron2_names
import pytest
import torch
from torch import Tensor

from deploykit.errors import CheckpointError
from deploykit.networks import loading
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    State: TypeAlias = dict[str, Tensor]
ONE = torch.zeros(1)


@pytest.fixture(scope="module")
def detectron2() -> State:
    """Return the weights of a Faster R-CNN by detectron2's names."""
    made = RECIPES.load("faster_rcnn").network("detectron2_resnet50_fpn", 2).state_dict()
    found = {}
    for key, value in made.items():
        own = value
        if "cls_score" in key:
            own = torch.cat([value[1:], value[:1]])
        elif "box_predictor.bbox_pred" in key:
            own = value[4:]
        name = key.removeprefix("backbone.")
        pairs = detectron2_names.BACKBONE if name != key else detectron2_names.HEADS
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        found[f"backbone.{name}" if pairs is detectron2_names.BACKBONE else name] = own
    return {k: v for k, v in found.items() if k != "detectron2" and not k.endswith("_tracked")}


def renamed(state: State, pattern: str, new: str) -> State:
    return {re.sub(pattern, new, key): value for key, value in state.items()}


def without(state: State, pattern: str) -> State:
    return {key: value for key, value in state.items() if not re.search(pattern, key)}


CASES: dict[str, Callable[[State], State]] = {
    "several box heads (Cascade)": lambda s: renamed(s, r"(box_head|box_predictor)\.", r"\1.0."),
    "heads on the body's fourth stage (C4)": lambda s: renamed(
        without(s, "fpn"), r"backbone\.bottom_up\.res5", "roi_heads.res5"
    ),
    "no pyramid (C4 or DC5)": lambda s: renamed(without(s, "fpn"), r"bottom_up\.", ""),
    "proposals alone, without heads (RPN)": lambda s: without(s, "^roi_heads"),
    "deformable convolutions": lambda s: {
        **s,
        "backbone.bottom_up.res3.0.conv2_offset.weight": torch.zeros(18, 128, 3, 3),
    },
    "norms in the pyramid": lambda s: {**s, "backbone.fpn_lateral2.norm.weight": torch.ones(256)},
    "group norms in the body": lambda s: without(s, "running_"),
    "convolutions in the box head": lambda s: {**s, "roi_heads.box_head.conv1.weight": ONE},
    "a head for stuff (panoptic)": lambda s: {**s, "sem_seg_head.predictor.weight": ONE},
    "both keypoints and masks": lambda s: {
        **s,
        "roi_heads.keypoint_head.score_lowres.weight": torch.zeros(512, 17, 4, 4),
        "roi_heads.mask_head.predictor.weight": torch.zeros(2, 256, 1, 1),
    },
    "the attention of Swin V2": lambda _: {"layers.0.blocks.0.attn.cpb_mlp.0.weight": ONE},
    "the head of DeepLabV3": lambda _: {"classifier.0.convs.0.0.weight": ONE},
}


@pytest.mark.parametrize("part", CASES)
def test_what_is_not_carried_is_called_by_its_name(
    part: str, detectron2: State, tmp_path: Path
) -> None:
    torch.save(CASES[part](detectron2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not carried: ") as caught:
        loading.load_network(tmp_path / "x.pth", loading.NetworkOptions())
    assert part in caught.value.found


def test_one_regressor_for_all_classes_is_that_of_each(detectron2: State, tmp_path: Path) -> None:
    boxes = "roi_heads.box_predictor.bbox_pred"
    alike = {f"{boxes}.{kind}": detectron2[f"{boxes}.{kind}"][:4] for kind in ("weight", "bias")}
    torch.save(detectron2 | alike, tmp_path / "x.pth")
    state = loading.load_network(tmp_path / "x.pth", loading.NetworkOptions()).module.state_dict()
    found = state[f"{boxes}.weight"].reshape(3, 4, -1)
    assert not found[0].any()
    for row in found[1:]:
        torch.testing.assert_close(row, alike[f"{boxes}.weight"], rtol=0, atol=0)


def test_stored_anchors_of_another_number_are_taken(detectron2: State, tmp_path: Path) -> None:
    head, cells = "proposal_generator.rpn_head", "proposal_generator.anchor_generator.cell_anchors"
    own = {f"{cells}.{i}": torch.randn(5, 4) * 2**i for i in range(5)}
    for name, rows in (("objectness_logits", 5), ("anchor_deltas", 20)):
        own[f"{head}.{name}.weight"] = torch.randn(rows, 256, 1, 1)
        own[f"{head}.{name}.bias"] = torch.randn(rows)
    torch.save(detectron2 | own, tmp_path / "x.pth")
    module = loading.load_network(tmp_path / "x.pth", loading.NetworkOptions()).module
    assert [len(cell) for cell in module.cells] == [5] * 5  # type: ignore[union-attr]  # its own attribute
    assert module.state_dict()["rpn.head.cls_logits.weight"].shape == (5, 256, 1, 1)
