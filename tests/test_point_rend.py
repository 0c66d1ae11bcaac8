"""PointRend against its rules told anew with grid_sample, over all classes and without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from detectron2_names import BACKBONE, HEADS
from random_weights import HALVES, check_refused
from two_stage_models import pictures, settled

import deploykit
from deploykit import backends
from deploykit.networks import loading
from deploykit.networks.detectors import (
    detectron2_layout,
    layouts,
    light,
    point_rend,
    two_stage_models,
)
from deploykit.networks.detectors.point_rend import PointRend
from deploykit.networks.detectors.two_stage import Rois, TwoStage
from deploykit.networks.reparam import fold
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("point_rend")
CLASSES, CHANNELS, STRIDE = 3, 8, 4.0


# --- the head ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> PointRend:
    """A head with random weights, its coarse masks as sure as its points are."""
    torch.manual_seed(0)
    made = PointRend(CHANNELS, CLASSES).eval()
    for layer in (made.coarse_head.prediction, made.point_head.get_submodule("predictor")):
        assert isinstance(layer, torch.nn.Linear | torch.nn.Conv1d)
        layer.weight.data.normal_(0, 2)
    return made


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Return float[n, C, P] of maps float[n, C, H, W] at points [n, P, 2] within 0 and 1."""
    found = F.grid_sample(maps, 2 * points.unsqueeze(2) - 1, align_corners=False)
    return found.squeeze(3)


def even(side: int) -> Tensor:
    """Return the centres of a box's cells, [1, side * side, 2], x before y."""
    line = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return torch.stack([line.repeat(side), line.repeat_interleave(side)], 1)[None]


def rendered(head: Any, features: Tensor, boxes: Tensor, labels: list[int]) -> Tensor:
    """Return one image's masks as the paper makes them: of every class, and of the label's."""
    maps, size = features.expand(len(boxes), -1, -1, -1), torch.tensor(features.shape[:1:-1])

    def fine(points: Tensor) -> Tensor:
        within = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        return sampled(maps, within / (size * STRIDE))

    def answers(points: Tensor) -> Tensor:
        here = sampled(coarse, points.expand(len(boxes), -1, -1))
        x = fine(points)
        for layer in (head.point_head.fc1, head.point_head.fc2, head.point_head.fc3):
            x = layer(torch.cat([x, here], 1)).relu()
        found: Tensor = head.point_head.predictor(torch.cat([x, here], 1))
        return found

    own = head.coarse_head
    x = own.reduce_spatial_dim_conv(fine(even(14)).reshape(-1, CHANNELS, 14, 14)).relu().flatten(1)
    coarse = own.prediction(own.fc2(own.fc1(x).relu()).relu()).reshape(-1, CLASSES, 7, 7)
    logits = answers(even(28)).reshape(-1, CLASSES, 28, 28)
    for side in (56, 112, 224):
        logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        flat = logits.flatten(2)
        doubt = flat[torch.arange(len(labels)), labels].abs()
        chosen = doubt.argsort(1)[:, :784]
        points = (torch.stack([chosen % side, chosen // side], 2).double() + 0.5) / side
        index = chosen.unsqueeze(1).expand(-1, CLASSES, -1)
        logits = flat.scatter(2, index, answers(points)).reshape(-1, CLASSES, side, side)
    found: Tensor = logits[torch.arange(len(labels)), labels].sigmoid()
    return found


@pytest.mark.parametrize(
    ("form", "size"), [("trained", (10, 13)), ("folded", (10, 13)), ("folded", (40, 52))]
)
def test_masks_are_those_of_the_paper(head: PointRend, form: str, size: tuple[int, int]) -> None:
    """A map with fewer cells than objects have points goes through the first layer as it is."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, CHANNELS, *size, generator=generator, dtype=torch.float64)
    boxes = torch.tensor(
        [[[0.0, 0, 52, 40], [3, 7, 30, 21]], [[20, 5, 51.5, 39], [0, 0, 0, 0]]], dtype=torch.float64
    )
    classes = torch.tensor([[2, 0], [1, -1]], dtype=torch.int32)
    objects = Rois(boxes, torch.tensor([2, 1], dtype=torch.int32))
    module: Any = (head if form == "trained" else fold(head)).double()
    with torch.no_grad():
        found = module(features, STRIDE, objects, classes)
        first = rendered(head.double(), features[:1], boxes[0], [2, 0])
        second = rendered(head.double(), features[1:], boxes[1, :1], [1])
    assert found.shape == (4, 224, 224)
    expected = torch.cat([first, second])
    assert expected.min() < 0.1
    assert expected.max() > 0.9
    assert (found[:3] - expected).abs().max() <= 1e-5


def test_the_head_has_as_many_weights_and_multiply_adds_as_published() -> None:
    with torch.device("meta"):
        head = PointRend(256, 80)
        read = torch.empty(4, 256, 784), torch.empty(4, 80, 784)
        label = torch.zeros(4, 1, dtype=torch.int64)
        coarse = published.multiply_adds(head.coarse_head, torch.empty(1, 256, 14, 14))
        points = published.multiply_adds(head.point_head, *read, label)
    assert coarse + points == 30_752_768 + 4 * 223_383_552
    counted = [sum(p.numel() for p in part.parameters()) for part in head.children()]
    assert counted == [18_176_080, 285_776, 0, 0, 0]


# --- the files -----------------------------------------------------------------------------------

VARIANT = "detectron2_resnet50_fpn"
KEYS = 311
DIGEST = "3118aa1aa065ad46b28ef3c417d93db7ad5c5c31c0e26389bcc5a9f9728c8517"
"""How many entries a published checkpoint has, and the SHA-256 of their names and shapes."""


def official(*, old: bool = False) -> dict[str, Tensor]:
    """Return a state dict on the meta device under detectron2's names."""
    with torch.device("meta"):
        network = RECIPE.network(VARIANT, 80)
    found = {}
    for key, value in network.state_dict().items():
        if key == detectron2_layout.MARK or key.endswith("num_batches_tracked"):
            continue
        name = key
        for ours, theirs in (*BACKBONE, *HEADS, *(OLDER if old else ())):
            name = name.replace(ours, theirs)
        if "bbox_pred" in name and "box_predictor" in name:
            value = value[4:]  # noqa: PLW2901 - without the background
        found[name] = value
    return found


OLDER = (
    ("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc"),
    ("mask_head.coarse_head.", "mask_coarse_head."),
    ("mask_head.point_head.", "mask_point_head."),
)
"""Names of the project's first files."""


def test_names_and_shapes_are_those_of_the_official_network() -> None:
    state = official()
    assert published.digest(state) == (KEYS, DIGEST)
    assert layouts.of_names(state) is detectron2_layout


@pytest.mark.parametrize("old", [False, True])
def test_both_forms_of_its_files_are_known_and_to_no_other_recipe(*, old: bool) -> None:
    state = official(old=old)
    assert any("coarse_mask_fc1" in key for key in state) == old
    adapted = RECIPE.adapt(state)
    with torch.device("meta"):
        own = RECIPE.network(VARIANT, 80).state_dict()
    kept = {k: v.shape for k, v in own.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in adapted.items()} == kept
    found = RECIPE.identify(adapted, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (VARIANT, 80)
    assert found.settings["mask_pasting"].value == "exact"
    for other in ("mask_rcnn", "faster_rcnn", "mask_scoring_rcnn"):
        assert RECIPES.load(other).identify(adapted, Facts()) is None


@pytest.fixture(scope="module")
def little() -> dict[str, Tensor]:
    """The weights of the light network."""
    torch.manual_seed(0)
    return dict(RECIPE.network("light", CLASSES).state_dict())


def test_how_wide_the_heads_are_is_read_from_their_weights(little: dict[str, Tensor]) -> None:
    assert point_rend.widths(official()) == point_rend.Widths()
    assert point_rend.widths(little) == light.POINTS
    other = point_rend.Widths(points=24, reduced=16, hidden=48)
    with torch.device("meta"):
        sizes = two_stage_models.Sizes(CLASSES, points=other)
        state = two_stage_models.model("light", sizes, "mask_points").state_dict()
    found = RECIPE.identify(state, Facts())
    assert isinstance(found, Found)
    assert found.build is not None
    with torch.device("meta"):
        made = found.build().state_dict()
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in state.items()}


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {k: v for k, v in state.items() if not any(p in k for p in parts)}


FC2 = "roi_heads.mask_head.point_head.fc2.weight"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (without("point_head."), "missing"),
        (without("coarse_head.fc"), "missing"),
        (without("fpn."), "."),
        *HALVES,
        (lambda s: s | {FC2: s[FC2].squeeze(2)}, "point_head.fc2"),
        (lambda s: s | {FC2: torch.tensor(1.0)}, "point_head.fc2"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, little: dict[str, Tensor], tmp_path: Path
) -> None:
    check_refused(harm(little), said, tmp_path)


# --- the graph -----------------------------------------------------------------------------------


def test_the_graph_finds_what_the_network_finds_and_has_no_branches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(two_stage_models.model("light", two_stage_models.Sizes(CLASSES), "masks"))
    rendering = two_stage_models.model("light", two_stage_models.Sizes(CLASSES), "mask_points")
    rendering.load_state_dict(model.state_dict(), strict=False)
    rendering.roi_heads.mask_head.point_head.predictor.weight.data.normal_(0, 0.3)
    weights = tmp_path / "points.pth"
    torch.save(TwoStage(rendering).state_dict(), weights)
    few = {"detections": "2", "proposals": "30", "candidates": "60"}
    options = deploykit.ExportOptions(input_size=(128, 160), settings=few)
    deploykit.export(weights, tmp_path / "points.onnx", options)
    network = loading.load_network(weights, loading.NetworkOptions(settings=few)).module
    kinds = {node.op_type for node in onnx.load(tmp_path / "points.onnx").graph.node}
    assert {"If", "Loop", "NonZero"}.isdisjoint(kinds)
    images = pictures(2)
    with torch.inference_mode():
        *_, expected_count, expected = network(images)
    session = backends.load("onnxruntime").open_session(tmp_path / "points.onnx")
    found = session.run({"images": images.numpy()})
    count = found["count"]
    assert count.tolist() == expected_count.tolist()
    assert int(count.min()) > 0
    for image, number in enumerate(count):
        values: Any = found["masks"]
        ours, theirs = values[image, :number], expected[image, :number].numpy()
        assert (np.abs(ours - theirs).max((1, 2)) <= 1e-3).mean() >= 0.9  # points may tie
        assert not values[image, number:].any()
    nothing = session.run({"images": np.full((1, 3, 128, 160), np.nan, np.float32)})
    assert nothing["count"].tolist() == [0]  # and not an error of the runtime
    assert not np.asarray(nothing["masks"]).any()
