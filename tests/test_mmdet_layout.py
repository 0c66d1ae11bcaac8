"""MMDetection's R-CNNs: names, conventions and configurations, against formulas told anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mmdet_names
import numpy as np
import published
import pytest
import torch
from torchvision import ops as vision
from two_stage_models import pictures, settled

from deploykit.errors import CheckpointError
from deploykit.networks import loading, mm_config
from deploykit.networks.detectors import layouts, light, mmdet_layout
from deploykit.recipes.identity import Facts, Found, resolve
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

# variant and recipe -> parameters of the official code with 80 classes, entries of its state dict
# and the digest of their names and shapes, multiply-adds of its body and neck at 800x1280.
OFFICIAL = {
    ("mask_rcnn", "resnet50"): (44396336, 360, "93d7a1e804511c1b", 141410304000),
    ("mask_rcnn", "resnet101"): (63388464, 666, "1ea7d3f1a3f6af2e", None),
    ("faster_rcnn", "resnet50"): (41753056, 348, "4ed1625f53e08317", None),
    ("mask_rcnn", "swin_tiny"): (47794602, 231, "8ee80ac217126ebd", 148647410688),
    ("mask_rcnn", "swin_small"): (69112506, 399, "94617428e6590189", 240689150976),
}


def theirs(network: Any) -> dict[str, Tensor]:
    """Return the state dict of a network under mmdetection's names."""
    state = mmdet_names.detector(network.state_dict())
    return mmdet_names.swin(state) if "backbone.layers.0.downsample.norm.weight" in state else state


@pytest.mark.parametrize(("name", "body"), OFFICIAL)
def test_names_shapes_and_counts_are_the_official_ones(name: str, body: str) -> None:
    recipe, variant = RECIPES.load(name), f"mmdet_{body}_fpn"
    with torch.device("meta"):
        network: Any = recipe.network(variant, 80)
        images = torch.empty(1, 3, 800, 1280)
    parameters, entries, digest, spent = OFFICIAL[name, body]
    weights = {key for key, _ in network.named_parameters()}
    state = theirs(network)
    assert parameters == sum(
        v.numel()
        for v in mmdet_names.detector({k: network.state_dict()[k] for k in weights}).values()
    )
    count, whole = published.digest(state)
    assert (count, whole[:16]) == (entries, digest)
    if spent:
        assert published.multiply_adds(network.backbone, images) == spent
    back = recipe.adapt(state)
    own = network.state_dict()
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}
    found = recipe.identify(back, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (variant, 80)
    other = "faster_rcnn" if name == "mask_rcnn" else "mask_rcnn"
    assert RECIPES.load(other).identify(back, Facts()) is None


def test_the_names_of_swins_authors_are_read_too() -> None:
    recipe = RECIPES.load("mask_rcnn")
    with torch.device("meta"):
        own = recipe.network("mmdet_swin_tiny_fpn", 3).state_dict()
        state = mmdet_names.detector(own)
        state["backbone.layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49)
    assert "backbone.norm3.weight" in state
    back = recipe.adapt(state)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}


def test_a_head_for_all_classes_alike_has_rows_for_each() -> None:
    state = {
        "roi_head.bbox_head.fc_cls.weight": torch.arange(4.0).reshape(4, 1),
        "roi_head.bbox_head.fc_reg.bias": torch.arange(4.0),
        "roi_head.mask_head.conv_logits.bias": torch.tensor([7.0]),
    }
    found = mmdet_layout.adapt(state)
    top = "roi_heads.box_predictor"
    assert found[f"{top}.cls_score.weight"].flatten().tolist() == [3, 0, 1, 2]
    assert found[f"{top}.bbox_pred.bias"].tolist() == [0] * 4 + [0, 1, 2, 3] * 3
    assert found["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 7, 7, 7]


@pytest.mark.parametrize("name", ["bbox_head.fc_cls.weight", "bbox_head.fc_reg.bias"])
def test_weights_without_sides_are_left_to_the_network_to_refuse(name: str) -> None:
    state = {"roi_head.bbox_head.fc_cls.weight": torch.zeros(4, 1)}
    found = mmdet_layout.adapt(state | {f"roi_head.{name}": torch.tensor(1.0)})
    assert sum(value.ndim == 0 for value in found.values()) == 1


# --- what it finds, by torchvision's ops and the numbers of its configuration --------------------


def decoded(
    boxes: Tensor, deltas: Tensor, stds: tuple[float, ...], size: tuple[int, int]
) -> Tensor:
    """Return boxes moved as `delta2bbox` does, inside the image."""
    most = float(np.log(1000 / 16))
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(-1)
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x = (boxes[:, 0] + boxes[:, 2]) / 2 + dx * wide
    y = (boxes[:, 1] + boxes[:, 3]) / 2 + dy * high
    w, h = wide * dw.clamp(-most, most).exp(), high * dh.clamp(-most, most).exp()
    corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    limits = [size[1], size[0], size[1], size[0]]
    return torch.stack([c.clamp(0, limit) for c, limit in zip(corners, limits, strict=True)], -1)


def proposed(network: Any, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the best proposals of one image."""
    found, scores, levels = [], [], []
    logits, deltas = network.rpn.head(maps)
    for level, side in enumerate(light.ANCHORS):
        stride, grid = 4 << level, logits[level].shape[2:]
        cell = [(side / r**0.5 / 2, side * r**0.5 / 2) for r in light.RATIOS]
        boxes = [
            (x * stride - w, y * stride - h, x * stride + w, y * stride + h)
            for y in range(grid[0])
            for x in range(grid[1])
            for w, h in cell
        ]
        chance = logits[level][0].permute(1, 2, 0).flatten().sigmoid()
        moves = deltas[level][0].permute(1, 2, 0).reshape(-1, 4)
        best = chance.topk(min(light.CANDIDATES, len(chance))).indices
        moved = decoded(torch.tensor(boxes)[best], moves[best], (1.0,) * 4, size)
        seen = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
        found.append(moved[seen])
        scores.append(chance[best][seen])
        levels.append(torch.full((int(seen.sum()),), level))
    kept = vision.batched_nms(torch.cat(found), torch.cat(scores), torch.cat(levels), 0.7)
    return torch.cat(found)[kept[: light.PROPOSALS]]


def pooled(maps: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    """Return the features of boxes, aligned, with as many samples as they have cells."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(torch.log2(areas.sqrt() / 56 + 1e-6)).clamp(0, 3)
    found = torch.zeros(len(boxes), maps[0].shape[1], side, side)
    for i in range(4):
        own = boxes[level == i]
        if len(own):
            read = vision.roi_align(maps[i], [own], side, 1 / (4 << i), 0, aligned=True)
            found[level == i] = read
    return found


def reference(network: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, scores, classes and masks of an image float32[1, 3, H, W]."""
    size = int(image.shape[2]), int(image.shape[3])
    maps, heads = list(network.backbone(image).values()), network.roi_heads
    rois = proposed(network, maps, size)
    logits, deltas = heads.box_predictor(heads.box_head(pooled(maps, rois, 7)))
    chances = logits.softmax(1)
    boxes, scores, classes = [], [], []
    for label in range(1, chances.shape[1]):
        sure = chances[:, label] > 0.05
        moves = deltas[sure, 4 * label : 4 * label + 4]
        boxes.append(decoded(rois[sure], moves, (0.1, 0.1, 0.2, 0.2), size))
        scores.append(chances[sure, label])
        classes.append(torch.full((int(sure.sum()),), label - 1))
    whole = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    kept = vision.batched_nms(*whole, 0.5)[: light.DETECTIONS]
    found, chance, labels = (value[kept] for value in whole)
    masks = heads.mask_predictor(heads.mask_head(pooled(maps, found, 14)))
    own = torch.stack([each[k + 1] for each, k in zip(masks, labels.tolist(), strict=True)])
    return found, chance, labels, own.sigmoid()


def test_it_finds_what_the_numbers_of_its_configuration_say() -> None:
    model = settled(light.light_mask_rcnn(3), seed=1)
    model.roi_heads.box_predictor.bbox_pred.bias.data[8:12] = torch.tensor([0.0, 0.0, -25, -25])
    settings = resolve(mmdet_layout.choices("mmdet_resnet50_fpn", {}), Facts())
    network: Any = mmdet_layout.network(model, settings, {})
    image = pictures(1, seed=2)
    with torch.no_grad():
        boxes, scores, classes, count, masks = network(image)
        expected = reference(network, image)
    number = int(count[0])
    assert number == len(expected[0]) > 20
    sides = expected[0][:, 2:] - expected[0][:, :2]
    assert (sides[expected[2] == 1] < 10).all()  # -25 / 5 would make them less than half of that
    order = expected[1].argsort(descending=True, stable=True)
    np.testing.assert_allclose(boxes[0, :number], expected[0][order], atol=1e-3)
    np.testing.assert_allclose(scores[0, :number], expected[1][order], atol=1e-5)
    assert classes[0, :number].tolist() == expected[2][order].tolist()
    np.testing.assert_allclose(masks[0, :number], expected[3][order], atol=1e-4)


# --- the configuration in the file ---------------------------------------------------------------

CAFFE = """
model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[4, 8], ratios=[0.5, 2.0],
        strides=[4, 8, 16, 32, 64])),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1]))),
    test_cfg=dict(
        rpn=dict(nms_pre=600, max_per_img=500, nms=dict(type='nms', iou_threshold=0.6)),
        rcnn=dict(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.4), max_per_img=30)))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1000, 600), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
        dict(type='Pad', size_divisor=32)])]
"""
NEWER = """
model = dict(
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0],
        bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(style='pytorch'))
test_pipeline = [dict(type='Resize', scale=(1333, 640), keep_ratio=True)]
"""


def said(text: str, key: str = "config") -> Mapping[str, Any]:
    """Return the settings in a file with a configuration."""
    sizes: Any = None
    return mmdet_layout.stored({}, sizes, Facts(beside={"meta": {key: text}}))


def test_the_configuration_of_a_file_is_read_in_both_of_its_forms() -> None:
    found = said(CAFFE)
    expected = {
        "stride_in_1x1": True,
        "channels": "BGR",
        "mean": (103.53, 116.28, 123.675),
        "std": (1.0, 1.0, 1.0),
        "min_size": 600,
        "max_size": 1000,
        "anchor_ratios": ((0.5, 2.0),),
        "candidates": 600,
        "proposals": 500,
        "proposal_nms_threshold": 0.6,
        "score_threshold": 0.1,
        "nms_threshold": 0.4,
        "detections": 30,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["anchor_sizes"][1] == (32, 64)
    assert found["box_weights"] == pytest.approx((20, 20, 10, 10))
    newer = said(NEWER, "cfg")
    assert (newer["mean"], newer["channels"]) == ((1.0, 2.0, 3.0), "RGB")
    assert (newer["min_size"], newer["max_size"], newer["stride_in_1x1"]) == (640, 1333, False)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))", "soft_nms"),
        (
            "model = dict(roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(aligned=False))))",
            "aligned",
        ),
        ("model = dict(rpn_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])))", "0.1"),
        ("model = dict(rpn_head=dict(anchor_generator=dict(strides=[8, 16])))", "strides"),
        ("test_pipeline = [dict(type='Resize', scale=(512, 512), keep_ratio=False)]", "keep_ratio"),
        *(
            (
                f"model = dict(roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds={row}))))",
                "stds",
            )
            for row in (
                "['a', 1, 1, 1]",
                "[0, 0, 0, 0]",
                "[[1], 1, 1, 1]",
                "[1e-320, 1, 1, 1]",
                "'x'",
            )
        ),
        *(
            (f"model = dict(rpn_head=dict(anchor_generator=dict(scales={row})))", "scales")
            for row in ("['a']", "[[1]]", "[4 * 2]", "[]", "8")
        ),
    ],
)
def test_what_a_configuration_says_and_is_not_carried_is_refused(line: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        said(line)


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system('touch ran')\nmodel = open('ran', 'w')",
        "model = dict(**{'a': 1}, b=__import__('os').getcwd())",
        "model = " + "[" * 5000,
        "model = " + "-" * 100_000 + "1",
        "model = " + "+".join("1" * 50_000),
        "model = dict(" * 90 + ")" * 90,
        "\0",
        "x" * (mm_config.LONGEST + 1),
        "model = None\ntest_pipeline = [1, None, dict(type='Resize', scale=(1e999, 'x'))]",
    ],
)
def test_a_hostile_configuration_runs_nothing_and_says_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(text) == {}
    assert not list(tmp_path.iterdir())
    assert mm_config.read({"meta": text}) == mm_config.read({"meta": {"cfg": [text]}}) == {}


def test_a_whole_file_is_loaded_with_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "epoch_12.pth"
    recipe = RECIPES.load("faster_rcnn")
    network = recipe.network("mmdet_resnet50_fpn", 2)
    state = theirs(network)
    meta = {"config": CAFFE.replace("[4, 8]", "[8]").replace("[0.5, 2.0]", "[0.5, 1.0, 2.0]")}
    names = {"CLASSES": ("cat", "dog"), "mmdet_version": "2.28.2"}
    torch.save({"meta": meta | names, "state_dict": state, "optimizer": {}}, path)
    loaded = loading.load_network(path, loading.NetworkOptions())
    assert loaded.card.variant == "mmdet_resnet50_fpn"
    assert loaded.card.class_names == ("cat", "dog")
    assert loaded.card.settings["detections"].value == 30
    prepared = loaded.card.preprocess
    assert (prepared.channels, prepared.resampler, prepared.limits) == (
        "BGR",
        "cv2-linear",
        (600, 1000),
    )
    block: Any = loaded.module.get_submodule("backbone.body.layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert layouts.of_names(state) is mmdet_layout
