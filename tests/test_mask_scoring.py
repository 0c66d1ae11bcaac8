"""Mask Scoring R-CNN and maskrcnn-benchmark's conventions, against their formulas told anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.data.preprocess import Geometry
from deploykit.networks.detectors import benchmark_layout, dense, grids, layouts, light
from deploykit.networks.detectors.mask_scoring import MaskIou, Widths, widths
from deploykit.networks.detectors.two_stage import Detections, Proposals, Rois
from deploykit.networks.detectors.two_stage_models import Sizes, model, sizes
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks import decoding
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.coco import AveragePrecision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

VARIANT = "maskrcnn_benchmark_resnet50_fpn"
SIZE = (60, 80)
"""Height and width of an image, in pixels."""
EDGE = np.array([0, 0, 1, 1])
"""From boxes whose ends are pixels to their edges."""


def limit() -> torch.Tensor:
    return grids.limits(SIZE, None)


# --- the convention: both ends of a box are inside ----------------------------------------------


def decoded(boxes: Array, deltas: Array, weights: tuple[float, ...]) -> Array:
    """Return moved boxes [n, 4] as maskrcnn-benchmark decodes and clips them."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + 0.5 * sides
    moves = deltas / np.array(weights)
    grown = np.minimum(moves[:, 2:], np.log(1000 / 16))
    centre, half = centre + moves[:, :2] * sides, 0.5 * np.exp(grown) * sides
    corners = np.concatenate([centre - half, centre + half - 1], 1)
    return corners.clip(0, np.array([SIZE[1] - 1, SIZE[0] - 1] * 2))


def kept(boxes: Array, scores: Array, threshold: float) -> list[int]:
    """Return the places that its suppression leaves, best first."""
    left, found = list(np.argsort(-scores, kind="stable")), []
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    while left:
        best = int(left.pop(0))
        found.append(best)
        inside = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(
            boxes[best, :2], boxes[left, :2]
        )
        shared = (inside + 1).clip(0).prod(1)
        overlap = shared / (area[best] + area[left] - shared)
        left = [place for place, each in zip(left, overlap, strict=True) if each <= threshold]
    return found


def random_boxes(random: np.random.Generator, count: int) -> Array:
    low = random.integers(0, 50, (count, 2)).astype(float)
    return np.concatenate([low, low + random.integers(0, 30, (count, 2))], 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_proposals_are_decoded_clipped_and_suppressed_pixel_for_pixel(seed: int) -> None:
    random = np.random.default_rng(seed)
    anchors, deltas = random_boxes(random, 40), random.normal(0, 0.4, (40, 4))
    logits = random.permutation(40) / 10.0 - 2
    boxes = decoded(anchors, deltas, (1.0,) * 4)
    scores = 1 / (1 + np.exp(-logits))
    places = kept(boxes, scores, 0.7)
    level = dense.Level(
        torch.tensor(logits).float().reshape(1, -1, 1),
        torch.tensor(deltas)[None].float(),
        torch.tensor(anchors + EDGE).float(),
    )
    found = Proposals(_limits(), inside=1)([level], limit())
    assert found.count.tolist() == [len(places)]
    ours = found.boxes[0, : len(places)].numpy() - EDGE
    np.testing.assert_allclose(ours, boxes[places], atol=1e-3)


class _limits:  # noqa: N801 - stands for torchvision's RPN
    """What an RPN is limited by."""

    nms_thresh, score_thresh, min_size = 0.7, 0.0, 0.0

    def pre_nms_top_n(self) -> int:
        return 60

    post_nms_top_n = pre_nms_top_n


def test_detections_are_decoded_with_weights_and_suppressed_class_by_class() -> None:
    random = np.random.default_rng(3)
    rois, deltas = random_boxes(random, 12), random.normal(0, 2.0, (12, 3, 4))
    logits = random.normal(0, 1.5, (12, 3))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = []
    for label in (1, 2):
        boxes = decoded(rois, deltas[:, label], (10.0, 10, 5, 5))
        sure = np.flatnonzero(chances[:, label] > 0.05)
        places = sure[kept(boxes[sure], chances[sure, label], 0.5)]
        expected += [(chances[p, label], label - 1, boxes[p]) for p in places]
    expected.sort(key=lambda each: -each[0])
    heads: Any = torch.nn.Module()
    heads.box_coder = type("Coder", (), {"weights": (10.0, 10, 5, 5)})
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.05, 0.5, 50
    select = Detections(heads, inside=1)
    select.least = 0.0
    edges = torch.tensor(rois + EDGE).float()[None]
    boxes, scores, classes, count = select(
        torch.tensor(logits).float(),
        torch.tensor(deltas).float().flatten(1),
        Rois(edges, torch.tensor([12], dtype=torch.int32)),
        limit(),
        0.05,
    )
    assert count.tolist() == [len(expected)]
    assert classes[0, : len(expected)].tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(scores[0, : len(expected)], [s for s, _, _ in expected], atol=1e-6)
    ours = boxes[0, : len(expected)].numpy() - EDGE
    np.testing.assert_allclose(ours, [b for _, _, b in expected], atol=1e-3)


def test_anchors_are_those_that_its_files_hold() -> None:
    with torch.device("meta"):
        network: Any = RECIPES.load("mask_scoring_rcnn").network(VARIANT, 80)
    finest = (network.cells[0] - EDGE).tolist()
    assert finest == [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]]
    assert network.steps == (4, 8, 16, 32, 64)


# --- the files -----------------------------------------------------------------------------------

KEYS = 326
DIGEST = "57003c288cb9838a93dcbf2e8e04283384a73d837fc12b38dff954877a3208ed"
"""How many entries a published checkpoint has, and the SHA-256 of their names and shapes."""


def official() -> dict[str, torch.Tensor]:
    """Return a state dict on the meta device under maskrcnn-benchmark's names."""
    with torch.device("meta"):
        network = RECIPES.load("mask_scoring_rcnn").network(VARIANT, 80)
    found = {}
    for key, value in network.state_dict().items():
        if key == benchmark_layout.MARK or key.endswith("num_batches_tracked"):
            continue
        for ours, theirs in THEIRS:
            key = key.replace(ours, theirs)  # noqa: PLW2901 - one name after the other
        found[key] = value
    for level in range(5):
        found[f"rpn.anchor_generator.cell_anchors.{level}"] = torch.empty(3, 4, device="meta")
    return found


THEIRS = (
    *(("backbone.body.conv1", "backbone.body.stem.conv1"), ("body.bn1", "body.stem.bn1")),
    *((f"fpn.inner_blocks.{i}.0", f"fpn.fpn_inner{i + 1}") for i in range(4)),
    *((f"fpn.layer_blocks.{i}.0", f"fpn.fpn_layer{i + 1}") for i in range(4)),
    ("rpn.head.conv.0.0", "rpn.head.conv"),
    ("box_head.", "box.feature_extractor."),
    ("box_predictor.", "box.predictor."),
    *((f"mask_head.{i}.0", f"mask.feature_extractor.mask_fcn{i + 1}") for i in range(4)),
    ("mask_predictor.", "mask.predictor."),
)


def test_names_and_shapes_are_those_of_a_published_file() -> None:
    state = official()
    assert published.digest(state) == (KEYS, DIGEST)
    layout = layouts.of_names(state)
    assert layout is benchmark_layout
    assert layouts.of_mark(layout.adapt(state)) is benchmark_layout


def test_the_head_has_as_many_weights_and_multiply_adds_as_published() -> None:
    with torch.device("meta"):
        head = MaskIou(256, 81)
        inputs = torch.empty(1, 256, 14, 14), torch.empty(1, 28, 28), torch.zeros(1)
        spent = published.multiply_adds(head, *inputs)
    assert sum(p.numel() for p in head.parameters()) == 16_341_329
    maps = 9 * (14 * 14 * (257 + 2 * 256) + 7 * 7 * 256) * 256  # three convolutions, one of 7x7
    assert spent == maps + (7 * 7 * 256 + 1024 + 81) * 1024 == 390_146_048


def test_the_recipe_knows_its_files_and_the_others_do_not() -> None:
    recipe = RECIPES.load("mask_scoring_rcnn")
    adapted = dict(recipe.adapt(official()))
    for key in [key for key in adapted if key.startswith("cell_anchors")]:
        adapted[key] = torch.zeros(3, 4)
    found = recipe.identify(adapted, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (VARIANT, 80)
    assert found.settings["mean"].value == (102.9801, 115.9465, 122.7717)
    assert RECIPES.load("mask_rcnn").identify(adapted, Facts()) is None
    without = {key: value for key, value in adapted.items() if "maskiou" not in key}
    plain = RECIPES.load("mask_rcnn").identify(without, Facts())
    assert isinstance(plain, Found)
    assert plain.variant == VARIANT


@pytest.mark.parametrize("width", [Widths(48, 64), Widths(), Widths(16, 24)])
def test_the_weights_say_how_wide_the_head_is(width: Widths) -> None:
    recipe = RECIPES.load("mask_scoring_rcnn")
    with torch.device("meta"):
        usual = recipe.network("light", 6)
        made = model("light", Sizes(6, scores=width), "mask_scores")
    assert widths(usual.state_dict()) == light.SCORES
    found = recipe.identify(made.state_dict(), Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == ("light", 6)
    with torch.device("meta"):
        own = sizes(made.state_dict(), 6)
        shapes = {k: v.shape for k, v in model("light", own, "mask_scores").state_dict().items()}
    assert shapes == {key: value.shape for key, value in made.state_dict().items()}


# --- what a mask is worth ------------------------------------------------------------------------


def test_masks_are_ranked_by_scores_of_their_own() -> None:
    """Of two masks of one object the worse has the better box score, and the lesser mask score."""
    half = np.zeros((2, 28, 28), np.float32)
    half[0, :, :14] = half[1] = 1
    outputs: dict[str, Any] = {
        "boxes": np.array([[[0, 0, 40, 40], [0, 0, 40, 40]]], np.float32),
        "scores": np.array([[0.9, 0.8]], np.float32),
        "classes": np.zeros((1, 2), np.int32),
        "count": np.array([2], np.int32),
        "masks": half[None],
        "mask_scores": np.array([[0.3, 0.7]], np.float32),
    }
    (found,) = decoding.padded(outputs, [Geometry(*SIZE, 1.0, 1.0)])
    truth = ImageAnnotations(
        1,
        (
            {
                "category_id": 1,
                "bbox": [0, 0, 40, 40],
                "area": 1600,
                "iscrowd": 0,
                "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]],
            },
        ),
        SIZE,
    )
    metric = AveragePrecision({1: "thing"}, ("thing",), ("bbox", "segm"))
    metric.add("image", found, truth, SIZE)
    scores = metric.scores().metrics
    assert scores["mask_ap"] == pytest.approx(1.0)
    assert found.to_json(("thing",), SIZE)["objects"][0]["mask_score"] == pytest.approx(0.3)
