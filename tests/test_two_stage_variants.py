"""Every architecture and published layout of a two-stage detector finds what its origin finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from dense_models import assert_same, eager, told
from torchvision.models import detection as zoo
from torchvision.models.detection import backbone_utils
from torchvision.ops import FrozenBatchNorm2d
from two_stage_models import SIZE, assert_same_masks, pictures, settled

from deploykit.networks import loading, reparam
from deploykit.pipeline.exporting import ExportOptions
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = 3
PUBLISHED: dict[str, Callable[[], Any]] = {
    "faster_rcnn resnet50_fpn_v2": lambda: zoo.fasterrcnn_resnet50_fpn_v2(**bare()),
    "faster_rcnn mobilenet_v3_large_fpn": lambda: zoo.fasterrcnn_mobilenet_v3_large_fpn(**bare()),
    "faster_rcnn mobilenet_v3_large_320_fpn": lambda: zoo.fasterrcnn_mobilenet_v3_large_320_fpn(
        **bare()
    ),
    "faster_rcnn resnext50_32x4d_fpn": lambda: zoo.FasterRCNN(body("resnext50_32x4d"), CLASSES + 1),
    "mask_rcnn resnet50_fpn": lambda: zoo.maskrcnn_resnet50_fpn(**bare()),
}


def bare() -> dict[str, Any]:
    """Return the options of torchvision's functions for random weights."""
    return {"weights": None, "weights_backbone": None, "num_classes": CLASSES + 1}


def body(name: str, norm: Callable[..., torch.nn.Module] = torch.nn.BatchNorm2d) -> Any:
    """Return a ResNet with a pyramid, weights random."""
    return backbone_utils.resnet_fpn_backbone(
        backbone_name=name, weights=None, norm_layer=norm, trainable_layers=5
    )


def loaded(state: Any, recipe: str, variant: str, folder: Path) -> Any:
    """Return the network that a saved state dict gives, its norms folded."""
    torch.save(state, folder / "model.pth")
    options = ExportOptions(recipe, variant=variant, input_size=SIZE)
    network = loading.load_network(folder / "model.pth", options)
    return reparam.deployed(network.recipe, network.module).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture_finds_what_torchvision_finds(name: str, tmp_path: Path) -> None:
    recipe, variant = name.split()
    torch.manual_seed(0)
    model = settled(PUBLISHED[name]())
    images = pictures(1)
    expected = eager(model, images)
    assert len(expected[0]["scores"]) >= 10
    network = loaded(model.state_dict(), recipe, variant, tmp_path)
    with torch.inference_mode():
        found = [value.numpy() for value in network(images)]
    if recipe == "mask_rcnn":
        assert_same_masks(found, expected)
    else:
        assert_same(found, expected, 1)


@pytest.mark.parametrize(("variant", "eps"), [("resnet50_fpn_eps0", 0.0), ("resnet50_fpn", 1e-5)])
def test_frozen_norms_keep_the_epsilon_of_their_variant(
    variant: str, eps: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = zoo.FasterRCNN(body("resnet50", FrozenBatchNorm2d), CLASSES + 1)
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.eps = eps
            norm.running_var.copy_(10 ** torch.empty_like(norm.bias).uniform_(-6, 0.3))
            norm.weight.copy_(norm.running_var.sqrt() * 0.7)
            norm.bias.normal_(0, 0.2, generator=generator)
    state = model.state_dict()
    assert not any(key.endswith("num_batches_tracked") for key in state)
    network = loaded(state, "faster_rcnn", variant, tmp_path)
    images = pictures(1)
    with torch.inference_mode():
        expected, found = model.eval().backbone(images), network.backbone(images)
    for level, features in expected.items():
        torch.testing.assert_close(found[level], features, rtol=1e-3, atol=1e-4)


def test_published_weights_of_resnet50_are_taken_for_those_with_an_epsilon_of_0() -> None:
    with torch.device("meta"):
        state = zoo.FasterRCNN(body("resnet50", FrozenBatchNorm2d), CLASSES + 1).state_dict()
        other = zoo.FasterRCNN(body("resnet101", FrozenBatchNorm2d), CLASSES + 1).state_dict()
    recipe = RECIPES.load("faster_rcnn")
    assert told(recipe.identify(state, Facts())) == ("resnet50_fpn_eps0", CLASSES)
    assert told(recipe.identify(other, Facts())) == ("resnet101_fpn", CLASSES)
