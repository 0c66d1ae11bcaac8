"""RetinaNets of detectron2, MPViT's project and mmdetection, against formulas told anew."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import dense_models
import numpy as np
import published
import pytest
import torch
from detectron2_names import BACKBONE
from random_weights import HALVES, check_refused
from torchvision import ops as vision
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from deploykit.errors import CheckpointError
from deploykit.networks.detectors import dense_family, layouts, retinanet_layouts
from deploykit.networks.detectors.retinanet_layouts import Coarser
from deploykit.recipes.identity import Facts, Found, resolve
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("retinanet")
# variant -> parameters of the official code with 80 classes and no frozen norms, entries of its
# state dict (detectron2's without counters) and the digest of their names and shapes.
OFFICIAL = {
    "detectron2_resnet50_fpn": (37968692, 301, "fcc1f6d32ada213e"),
    "detectron2_mpvit_xsmall_fpn": (19911060, 878, "46fe979e9f6ad593"),
    "mmdet_resnet50_fpn": (37968692, 354, "31183db19335a243"),
}
MILLIONS = {"xsmall": 20, "small": 32, "base": 85}
"""Published parameters on MPViT."""


def detectron2s(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under detectron2's names, with the anchors and means of its files."""
    found = {}
    for key, value in state.items():
        name = key
        if key == "detectron2" or key.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"fpn\.(inner|layer)_blocks\.(\d)\.0", _pyramid, name)
        name = name.replace("backbone.fpn.extra_blocks.", "backbone.top_block.")
        name = re.sub(r"head\.classification_head\.conv\.(\d)\.0", _subnet("cls"), name)
        name = re.sub(r"head\.regression_head\.conv\.(\d)\.0", _subnet("bbox"), name)
        name = name.replace("head.classification_head.cls_logits", "head.cls_score")
        name = name.replace("head.regression_head.bbox_reg", "head.bbox_pred")
        name = name.replace("body.stem", "bottom_up.backbone.stem")
        name = re.sub(r"body\.(patch_embed|mhca)_stages", r"bottom_up.backbone.\1_stages", name)
        for ours, theirs in BACKBONE[: BACKBONE.index((".downsample.1.", ".shortcut.norm.")) + 1]:
            name = name if "bottom_up.backbone" in name else name.replace(ours, theirs)
        found[name] = value
    return found


def _pyramid(match: re.Match[str]) -> str:
    return f"fpn_{'lateral' if match[1] == 'inner' else 'output'}{int(match[2]) + 3}"


def _subnet(kind: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"head.{kind}_subnet.{2 * int(match[1])}"


MMDET = (
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
    (r"^head\.classification_head\.conv\.(\d)\.0\.", r"bbox_head.cls_convs.\1.conv."),
    (r"^head\.regression_head\.conv\.(\d)\.0\.", r"bbox_head.reg_convs.\1.conv."),
    (r"^head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
    (r"^head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
    (r"^backbone\.body\.", "backbone."),
)


def mmdets(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under mmdetection's names."""
    found = {key: value for key, value in state.items() if key != "mmdet"}
    for ours, theirs in MMDET:
        found = {re.sub(ours, theirs, key): value for key, value in found.items()}
    return found


@pytest.mark.parametrize("variant", OFFICIAL)
def test_names_shapes_and_counts_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network: Any = RECIPE.network(variant, 80)
    own = network.state_dict()
    state = mmdets(own) if variant.startswith("mmdet") else detectron2s(own)
    count, whole = published.digest(state)
    assert (sum(p.numel() for p in network.parameters()), count, whole[:16]) == OFFICIAL[variant]
    back = RECIPE.adapt(state)
    expected = {k: v.shape for k, v in own.items() if "num_batches" not in k or k in back}
    assert {k: v.shape for k, v in back.items()} == expected
    found = RECIPE.identify(back, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (variant, 80)
    assert RECIPES.load("fcos").identify(back, Facts()) is None


@pytest.mark.parametrize("size", MILLIONS)
def test_on_mpvit_it_has_as_many_weights_as_published(size: str) -> None:
    variants = [f"{project}_mpvit_{size}_fpn" for project in ("detectron2", "mmdet")]
    for variant, named in zip(variants, (detectron2s, mmdets), strict=True):
        with torch.device("meta"):
            network: Any = RECIPE.network(variant, 80)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == MILLIONS[size]
        found = RECIPE.identify(RECIPE.adapt(named(network.state_dict())), Facts())
        assert isinstance(found, Found)
        assert found.variant == variant
        with torch.device("meta"):
            levels = network.backbone(torch.empty(1, 3, 128, 160)).values()
        sizes = [tuple(x.shape[2:]) for x in levels]
        assert sizes == [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
        assert network.backbone.fpn.extra_blocks.p6.in_channels == network.backbone.body.widths[-1]


@pytest.mark.parametrize("relu", [False, True])
def test_the_last_levels_are_made_from_the_bodys_features(*, relu: bool) -> None:
    """Also where these have as many channels as the pyramid, as those of MPViT XS."""
    made = Coarser(256, relu=relu)
    features, level = torch.randn(1, 256, 8, 8), torch.randn(1, 256, 8, 8)
    (_, sixth, seventh), names = made([level], [features], ["0"])
    assert torch.equal(sixth, made.p6(features))
    assert torch.equal(seventh, made.p7(sixth.relu() if relu else sixth))
    assert names == ["0", "p6", "p7"]


# --- what it finds -------------------------------------------------------------------------------


def reference(network: Any, image: Tensor, project: str) -> list[tuple[float, int, list[float]]]:
    """Return score, class and box of what one image holds, by the project's own steps."""
    size, most = (int(image.shape[2]), int(image.shape[3])), float(np.log(1000 / 16))
    limit = torch.tensor([size[1], size[0]] * 2).float()
    boxes, scores, classes = [], [], []
    for i, level in enumerate(network.backbone(image).values()):
        stride, grid = 8 << i, level.shape[2:]
        sides = [4 * stride * 2 ** (j / 3) for j in range(3)]
        shapes = [(r, s) for r in (0.5, 1, 2) for s in sides]
        if project == "detectron2":
            shapes = [(r, s) for s in sides for r in (0.5, 1, 2)]
        cell = torch.tensor([[s / r**0.5, s * r**0.5] for r, s in shapes])
        y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 1, 2).float() * stride
        anchors = torch.cat([centre - cell / 2, centre + cell / 2], -1).reshape(-1, 4)
        logits = network.head.classification_head([level])[0]
        moves = network.head.regression_head([level])[0]
        chance = logits.sigmoid().flatten()
        best = chance.topk(min(1000, len(chance))).indices
        best = best[chance[best] > 0.05]
        row, label = best // logits.shape[1], best % logits.shape[1]
        start, move = anchors[row], moves[row]
        wide = start[:, 2:] - start[:, :2]
        least = -most if project == "mmdet" else -torch.inf
        grown = wide * move[:, 2:].clamp(least, most).exp()
        middle = (start[:, :2] + start[:, 2:]) / 2 + move[:, :2] * wide
        boxes.append(torch.cat([middle - grown / 2, middle + grown / 2], 1))
        scores.append(chance[best])
        classes.append(label)
    found, chance, label = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    inside = found.clamp(min=0).minimum(limit)
    seen = ((inside[:, 2:] - inside[:, :2]) > 0).all(1)
    compared = inside if project == "mmdet" else found
    kept = vision.batched_nms(compared[seen], chance[seen], label[seen], 0.5)[:100]
    rows = zip(chance[seen][kept], label[seen][kept], inside[seen][kept], strict=True)
    return [(float(s), int(c), b.tolist()) for s, c, b in rows]


@pytest.mark.parametrize("project", ["detectron2", "mmdet"])
def test_it_finds_what_the_projects_steps_find(project: str) -> None:
    variant, sizes = f"{project}_resnet50_fpn", dense_family.Sizes(5, 9)
    backbone: Any = dense_family.pyramid("resnet18", sizes, from_features=True)
    backbone.fpn.extra_blocks = Coarser(512, relu=project == "detectron2")
    model = RetinaNet(backbone, 5, detections_per_img=100)
    with torch.device("meta"):
        own: Any = retinanet_layouts.model(variant, sizes)
    model.anchor_generator = AnchorGenerator(own.anchor_generator.sizes, ((0.5, 1.0, 2.0),) * 5)
    dense_models.sane(model)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    run = partial(dense_models.headed, model, images)
    dense_models.tame(run, [model.head.classification_head.cls_logits], -4.0, 2.0)
    dense_models.tame(run, [model.head.regression_head.bbox_reg], 0.0, 2.5)
    layout: Any = layouts.of_variant(variant)
    settings = resolve(layout.choices(variant, {}), Facts())
    network = retinanet_layouts.network(model, settings, {}, variant)
    with torch.no_grad():
        boxes, scores, classes, count = network(images)
        expected = reference(network, images, project)
    number = int(count[0])
    assert number == len(expected) > 50
    assert classes[0, :number].tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(scores[0, :number], [s for s, *_ in expected], atol=1e-5)
    np.testing.assert_allclose(boxes[0, :number], [b for *_, b in expected], atol=2e-3)


# --- the files -----------------------------------------------------------------------------------

CONFIG = """
model = dict(type='RetinaNet', backbone=dict(style='caffe'),
    neck=dict(type='FPN', add_extra_convs='on_input'),
    bbox_head=dict(type='RetinaHead', anchor_generator=dict(type='AnchorGenerator',
        octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128])),
    test_cfg=dict(nms_pre=900, min_bbox_size=0, score_thr=0.1,
        nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""


def told(text: str) -> Found:
    with torch.device("meta"):
        state = RECIPE.adapt(mmdets(RECIPE.network("mmdet_resnet50_fpn", 4).state_dict()))
    found = RECIPE.identify(state, Facts(beside={"meta": {"config": text}}))
    assert isinstance(found, Found)
    return found


def test_what_a_configuration_says_is_taken() -> None:
    found = told(CONFIG)
    said = {name: s.value for name, s in found.settings.items() if s.origin == "file"}
    wanted = {"candidates": 900, "score_threshold": 0.1, "nms_threshold": 0.6, "detections": 50}
    assert said.items() >= wanted.items()
    assert (said["channels"], said["stride_in_1x1"]) == ("BGR", True)
    assert told("").settings["detections"].value == 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'on_input'", "'on_output'"),
        ("octave_base_scale=4", "octave_base_scale=3"),
        ("min_bbox_size=0", "min_bbox_size=2"),
        ("'RetinaHead'", "'ATSSHead'"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(old: str, new: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(new.strip("'").rpartition("=")[2])):
        told(CONFIG.replace(old, new))


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """Weights on MPViT, as detectron2 keeps them."""
    with torch.device("meta"):
        state = RECIPE.network("detectron2_mpvit_tiny_fpn", 2).state_dict()
    return detectron2s({key: torch.zeros(v.shape, dtype=v.dtype) for key, v in state.items()})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        HALVES[0],
        (lambda s: {k: v for k, v in s.items() if "top_block" not in k}, "missing"),
        (lambda s: s | {"head.cls_score.weight": torch.tensor(1.0)}, "is not a checkpoint of"),
        (lambda s: s | {"anchor_generator.cell_anchors.0": torch.zeros(2, 4)}, "anchors of the"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, whole: dict[str, Tensor], tmp_path: Path
) -> None:
    check_refused({"model": harm(whole)}, said, tmp_path)
