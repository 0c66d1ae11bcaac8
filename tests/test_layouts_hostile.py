"""Weights of other projects' layouts with a shape of their own each: taken, refused, or not known.

Whatever one weight is, no layout may fail in another way; what fits then is the network's to say.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import mmdet_names
import pytest
import torch
from detectron2_names import BACKBONE, HEADS
from test_deformable_detr import renamed as deformables
from test_detr import renamed as transformers
from test_mask_scoring import official as benchmarks
from test_mpvit_rcnn import official as mpvits
from test_point_rend import official as point_rends
from test_point_rend_seg import official as semantic_fpns
from test_retinanet_layouts import detectron2s, mmdets
from torchvision.models.swin_transformer import SwinTransformer

from deploykit.errors import DeployError
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = ((), (0,), (1,), (3, 0), (2, 2, 2, 2, 2))
"""No weight of these networks has one of them."""
KNOWN = 3
"""Of each layout so many are looked at as a whole: networks are made for it."""


def state(name: str, variant: str) -> dict[str, Tensor]:
    """Return weights on no device, under the names of the network."""
    with torch.device("meta"):
        return dict(RECIPES.load(name).network(variant, 4).state_dict())


def two_stage() -> dict[str, Tensor]:
    found = {}
    for key, value in state("faster_rcnn", "detectron2_resnet50_fpn").items():
        name = key
        for ours, theirs in (*BACKBONE, *HEADS):
            name = name.replace(ours, theirs)
        found[name] = value
    return found | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.zeros(3, 1, 1)}


def timms(name: str) -> dict[str, Tensor]:
    """Return weights on no device, of one of timm's networks."""
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    with torch.device("meta"):
        return dict(timm.create_model(name).state_dict())


def torchvisions() -> dict[str, Tensor]:
    """Return those of torchvision's smallest Swin."""
    with torch.device("meta"):
        made = SwinTransformer([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7])
    return dict(made.state_dict())


LAYOUTS: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "DETR of transformers 4": ("detr", lambda: transformers(state("detr", "r50"), version=4)),
    "DETR of transformers 5": ("detr", lambda: transformers(state("detr", "r50"), version=5)),
    "Deformable DETR of transformers": (
        "deformable_detr",
        lambda: deformables(state("deformable_detr", "r50_two_stage"), version=5),
    ),
    "Swin of timm": ("swin", lambda: timms("swin_tiny_patch4_window7_224")),
    "Swin of torchvision": ("swin", torchvisions),
    "HRNet of timm": ("hrnet", lambda: timms("hrnet_w18_small")),
    "MPViT in detectron2": (
        "mask_rcnn",
        lambda: mpvits(state("mask_rcnn", "detectron2_mpvit_tiny_fpn")),
    ),
    "PointRend": ("point_rend", point_rends),
    "PointRend, old": ("point_rend", lambda: point_rends(old=True)),
    "PointRend, semantic": ("point_rend_seg", lambda: semantic_fpns("resnet18")),
    "detectron2": ("faster_rcnn", two_stage),
    "maskrcnn-benchmark": ("mask_scoring_rcnn", benchmarks),
    "mmdetection": (
        "mask_rcnn",
        lambda: mmdet_names.detector(state("mask_rcnn", "mmdet_resnet50_fpn")),
    ),
    "mmdetection, Swin": (
        "mask_rcnn",
        lambda: mmdet_names.swin(mmdet_names.detector(state("mask_rcnn", "mmdet_swin_tiny_fpn"))),
    ),
    "mmsegmentation": ("upernet", lambda: mmdet_names.swin(state("upernet", "swin_tiny"))),
    "RetinaNet of detectron2": (
        "retinanet",
        lambda: detectron2s(state("retinanet", "detectron2_mpvit_tiny_fpn")),
    ),
    "RetinaNet of mmdetection": (
        "retinanet",
        lambda: mmdets(state("retinanet", "mmdet_resnet50_fpn")),
    ),
}


def mutants(whole: dict[str, Tensor], seed: int) -> list[dict[str, Tensor]]:
    """Return the weights with one of a wrong shape each, those of heads among them, and halves."""
    chance, heads = random.Random(seed), [k for k in whole if "backbone" not in k]
    keys = [*chance.sample(heads, min(12, len(heads))), *chance.sample(list(whole), 12)]
    found = []
    for key in keys:
        kind = whole[key].dtype
        found.append(whole | {key: torch.zeros(chance.choice(SHAPES), dtype=kind)})
    means = [whole | {key: torch.zeros(0)} for key in ("pixel_mean", "pixel_std") if key in whole]
    chance.shuffle(found)
    names = list(whole)
    halves = [{k: whole[k] for k in names[i::2]} for i in range(2)]
    return [*means, *found, *halves, {k: whole[k] for k in names[: len(names) // 2]}]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weight_of_any_shape_is_refused_or_left_to_the_network(layout: str) -> None:
    name, make = LAYOUTS[layout]
    recipe = RECIPES.load(name)
    whole = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in make().items()}
    less = max(40, len(whole) - len(recipe.adapt(whole)))  # what sizes say, or three in one
    for i, harmed in enumerate(mutants(whole, seed=len(layout))):
        with contextlib.suppress(DeployError):
            adapted = recipe.adapt(harmed)
            assert len(adapted) >= len(harmed) - less
            if i < KNOWN:
                recipe.identify(adapted, Facts())
