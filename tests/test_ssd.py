from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dense_models
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection as zoo

from deploykit.errors import OptionError
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = RECIPES.load("ssd")
LITE, VGG = "ssdlite320_mobilenet_v3_large", "ssd300_vgg16"
CLASSES = 7
WEIGHTS = {
    LITE: zoo.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
    VGG: zoo.SSD300_VGG16_Weights.COCO_V1,
}


def on_meta(variant: str, classes: int = 90) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def inputs(variant: str, batch: int, seed: int) -> torch.Tensor:
    """Return even patches of noise."""
    size = RECIPE.variant(variant).preprocess.size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 10, 10, generator=generator)
    return nn.functional.interpolate(coarse, size)


def last(head: Any) -> list[Any]:
    """Return the convolutions that give the answers."""
    parts = list(head.module_list)
    return [part[-1] if isinstance(part, nn.Sequential) else part for part in parts]


def tamed(variant: str) -> Any:
    """Return torchvision's model with random weights and some objects."""
    make = getattr(zoo, variant)
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    dense_models.sane(model)

    def run() -> None:
        dense_models.headed(model, inputs(variant, 1, 0))

    dense_models.tame(run, last(model.head.classification_head), 0.0, 2.0)
    dense_models.tame(run, last(model.head.regression_head), 0.0, 0.5)
    return model


def ours(theirs: Any, variant: str) -> Any:
    """Return the same weights in our form."""
    network = RECIPE.network(variant, CLASSES)
    network.load_state_dict(theirs.state_dict())
    return network


@pytest.fixture(scope="module")
def lite() -> Any:
    """A small SSDlite of torchvision."""
    return tamed(LITE)


@pytest.fixture(scope="module")
def onnx(lite: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our form of it, exported."""
    path = tmp_path_factory.mktemp("ssd") / "model.onnx"
    return dense_models.exported(ours(lite, LITE), RECIPE, (320, 320), path)


@pytest.mark.parametrize("variant", [name for name in RECIPE.variants if hasattr(zoo, name)])
def test_keys_shapes_and_parameters_are_torchvisions(variant: str) -> None:
    with torch.device("meta"):
        official = getattr(zoo, variant)(weights=None, weights_backbone=None)
    network = on_meta(variant)
    found = {k: v.shape for k, v in network.state_dict().items()}
    assert found == {k: v.shape for k, v in official.state_dict().items()}
    count = sum(p.numel() for p in network.parameters())
    assert count == WEIGHTS[variant].meta["num_params"]


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_a_variant_is_known_by_its_state_dict(variant: str) -> None:
    state = dict(on_meta(variant, 5).state_dict())
    assert dense_models.told(RECIPE.identify(state, Facts())) == (variant, 5)
    assert list(RECIPE.adapt(state)) == list(state)
    assert (
        RECIPE.identify({k: v for k, v in state.items() if "classification" not in k}, Facts())
        is None
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_ssdlite_finds_what_torchvision_finds(lite: Any, onnx: Path, batch: int) -> None:
    images = inputs(LITE, batch, 3)
    expected = dense_models.eager(lite, images)
    assert all(len(found["scores"]) > 50 for found in expected)
    with torch.inference_mode():
        dense_models.assert_same(ours(lite, LITE)(images), expected, first=1)
    dense_models.assert_same(dense_models.run(onnx, images=images), expected, first=1)


def test_ssd300_finds_what_torchvision_finds() -> None:
    theirs = tamed(VGG)
    images = inputs(VGG, 1, 3)
    expected = dense_models.eager(theirs, images)
    assert len(expected[0]["scores"]) > 50
    with torch.inference_mode():
        dense_models.assert_same(ours(theirs, VGG)(images), expected, first=1)


def test_an_image_without_objects_has_no_detections(lite: Any) -> None:
    network = ours(lite, LITE)
    with torch.inference_mode():
        for layer in last(network.head.classification_head):
            layer.bias.reshape(-1, CLASSES + 1)[:, 0] += 100
        boxes, scores, classes, count = network(inputs(LITE, 1, 1))
    assert count.tolist() == [0]
    assert not boxes.any()
    assert not scores.any()
    assert classes.eq(-1).all()


def test_the_input_has_one_size() -> None:
    assert RECIPE.variant(VGG).sized((300, 300)).size == (300, 300)
    with pytest.raises(OptionError, match="input size 320x320\nexpected: 300x300"):
        RECIPE.variant(VGG).sized((320, 320))


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_images_are_prepared_as_by_torchvision(variant: str) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (50, 70, 3), np.uint8)
    with torch.device("meta"):
        theirs = getattr(zoo, variant.removesuffix("_full"))(weights=None, weights_backbone=None)
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255
    expected = theirs.transform([tensor])[0].tensors[0]
    found, geometry = RECIPE.variant(variant).preprocess(image)
    np.testing.assert_allclose(found, expected, atol=2e-3 * float(expected.abs().max()))
    side = found.shape[1]
    assert (geometry.scale_x, geometry.scale_y) == pytest.approx((side / 70, side / 50))


def test_the_names_are_torchvisions_labels_from_one() -> None:
    names = RECIPE.class_names(90)
    assert (names[0], names[89]) == ("person", "toothbrush")
    assert RECIPE.class_names(2) == ("class0", "class1")
