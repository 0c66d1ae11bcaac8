from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dense_models
import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, FCOS_ResNet50_FPN_Weights, fcos_resnet50_fpn

from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = RECIPES.load("fcos")
SIZE = (128, 192)


def on_meta(variant: str, classes: int = 91) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def noise(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A small FCOS of torchvision; few candidates, so that levels have more cells than that."""
    model = FCOS(dense_family.pyramid("resnet18", dense_family.Sizes(5, 1)), 5, topk_candidates=90)
    dense_models.sane(model)
    inputs, boxes = noise(2, 0), model.head.regression_head

    def run() -> None:
        dense_models.headed(model, inputs)

    dense_models.tame(run, [model.head.classification_head.cls_logits], -4.0, 2.0)
    dense_models.tame(run, [boxes.bbox_reg], 1.0, 0.5)
    dense_models.tame(run, [boxes.bbox_ctrness], 0.0, 1.0)
    return model


@pytest.fixture(scope="module")
def onnx(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our form of it, exported."""
    path = tmp_path_factory.mktemp("fcos") / "model.onnx"
    return dense_models.exported(dense.Pyramid(theirs, grids.spread), RECIPE, SIZE, path)


def test_keys_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        official = fcos_resnet50_fpn(weights=None, weights_backbone=None)
    found = {k: v.shape for k, v in on_meta("resnet50_fpn").state_dict().items()}
    assert found == {k: v.shape for k, v in official.state_dict().items()}


def test_parameters_are_as_many_as_torchvision_publishes() -> None:
    network = on_meta("resnet50_fpn")
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = sum(2 * norm.num_features for norm in norms)  # not counted: no parameters there
    count = sum(p.numel() for p in network.parameters()) - frozen
    assert count == FCOS_ResNet50_FPN_Weights.COCO_V1.meta["num_params"]


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_a_variant_is_known_by_its_state_dict(variant: str) -> None:
    state = dict(on_meta(variant, 5).state_dict())
    assert dense_models.told(RECIPE.identify(state, Facts())) == (variant, 5)
    assert list(RECIPE.adapt(state)) == list(state)
    assert RECIPE.identify({k: v for k, v in state.items() if "ctrness" not in k}, Facts()) is None


def test_a_retinanet_is_not_taken_for_it_nor_it_for_one() -> None:
    retinanet = RECIPES.load("retinanet")
    with torch.device("meta"):
        other = retinanet.network("resnet50_fpn", 5).state_dict()
    assert RECIPE.identify(other, Facts()) is None
    adapted = retinanet.adapt(on_meta("resnet50_fpn").state_dict())
    assert retinanet.identify(adapted, Facts()) is None


@pytest.mark.parametrize("batch", [1, 2])
def test_it_finds_what_torchvision_finds(theirs: Any, onnx: Path, batch: int) -> None:
    inputs = noise(batch, 3)
    expected = dense_models.eager(theirs, inputs)
    assert all(len(found["scores"]) > 20 for found in expected)
    with torch.inference_mode():
        dense_models.assert_same(dense.Pyramid(theirs, grids.spread)(inputs), expected)
    dense_models.assert_same(dense_models.run(onnx, images=inputs), expected)


def test_boxes_end_where_their_images_do(theirs: Any, onnx: Path) -> None:
    inputs, sizes = dense_models.cut(noise(3, 3))
    expected, ends = dense_models.eager(theirs, inputs, sizes), torch.tensor(sizes).float()
    assert all(len(found["scores"]) > 10 for found in expected)
    with torch.inference_mode():
        dense_models.assert_same(dense.Pyramid(theirs, grids.spread)(inputs, ends), expected)
    dense_models.assert_same(dense_models.run(onnx, images=inputs, image_sizes=ends), expected)


def test_an_image_without_objects_has_no_detections(theirs: Any) -> None:
    network = dense.Pyramid(theirs, grids.spread)
    network.score_threshold = 0.9999
    with torch.inference_mode():
        boxes, scores, classes, count = network(noise(2, 4))
    assert count.tolist() == [0, 0]
    assert not boxes.any()
    assert not scores.any()
    assert classes.eq(-1).all()
