from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dense_models
import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    RetinaNet,
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from deploykit.errors import OptionError
from deploykit.networks import reparam
from deploykit.networks.detectors import dense_family
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = RECIPES.load("retinanet")
CLASSES, SIZE = 7, (128, 192)
OFFICIAL = {
    "resnet50_fpn": (retinanet_resnet50_fpn, RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    "resnet50_fpn_v2": (retinanet_resnet50_fpn_v2, RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
}


def on_meta(variant: str, classes: int = 91) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs() -> RetinaNet:
    """A small RetinaNet of torchvision with a few hundred objects in noise."""
    model = RetinaNet(dense_family.pyramid("resnet18", dense_family.Sizes(CLASSES, 9)), CLASSES)
    dense_models.sane(model)
    inputs, head = images(2), model.head

    def run() -> None:
        dense_models.headed(model, inputs)

    dense_models.tame(run, [head.classification_head.cls_logits], -8.0, 2.0)
    dense_models.tame(run, [head.regression_head.bbox_reg], 0.0, 0.3)
    return model


@pytest.fixture(scope="module")
def ours(theirs: RetinaNet) -> Any:
    """The same weights in our form."""
    network = RECIPE.network("resnet18_fpn", CLASSES)
    network.load_state_dict(theirs.state_dict())
    return network


@pytest.fixture(scope="module")
def onnx(ours: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    path = tmp_path_factory.mktemp("retinanet") / "model.onnx"
    return dense_models.exported(ours, RECIPE, SIZE, path)


@pytest.mark.parametrize("variant", OFFICIAL)
def test_keys_and_shapes_are_torchvisions(variant: str) -> None:
    with torch.device("meta"):
        official = OFFICIAL[variant][0](weights=None, weights_backbone=None)
    expected = {k: v.shape for k, v in official.state_dict().items()}
    assert {k: v.shape for k, v in on_meta(variant).state_dict().items()} == expected


@pytest.mark.parametrize("variant", OFFICIAL)
def test_parameters_are_as_many_as_torchvision_publishes(variant: str) -> None:
    network = on_meta(variant)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    # The first version was published with frozen norms, whose weights are no parameters.
    frozen = 0 if variant.endswith("v2") else sum(2 * m.num_features for m in norms)
    count = sum(p.numel() for p in network.parameters()) - frozen
    assert count == OFFICIAL[variant][1].meta["num_params"]


def test_the_layout_of_old_releases_is_renamed(theirs: RetinaNet) -> None:
    state = theirs.state_dict()
    old = {}
    for key, value in state.items():
        parts = key.split(".")
        if "fpn" in parts and "_blocks" in key and parts[-2] == "0":
            parts = [*parts[:-2], parts[-1]]
        elif parts[0] == "head" and parts[2] == "conv":
            parts = [*parts[:3], str(2 * int(parts[3])), parts[-1]]
        old[".".join(parts)] = value
    assert "backbone.fpn.inner_blocks.2.weight" in old
    assert "head.regression_head.conv.6.bias" in old
    theirs.load_state_dict(old)  # torchvision knows that layout too
    assert list(RECIPE.adapt(old)) == list(state)
    assert list(RECIPE.adapt(state)) == list(state)


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_a_variant_is_known_by_its_state_dict(variant: str) -> None:
    state = on_meta(variant, 5).state_dict()
    if variant == "resnet50_fpn_eps0":  # published with frozen norms, which count no batches
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert dense_models.told(RECIPE.identify(state, Facts())) == (variant, 5)


def test_published_weights_are_run_with_the_epsilon_they_were_trained_with() -> None:
    found = {
        variant: {m.eps for m in on_meta(variant).modules() if isinstance(m, nn.BatchNorm2d)}
        for variant in ("resnet50_fpn", "resnet50_fpn_eps0")
    }
    assert found == {"resnet50_fpn": {1e-5}, "resnet50_fpn_eps0": {0.0}}


def test_other_state_dicts_are_not_taken_for_it() -> None:
    state = dict(on_meta("resnet18_fpn").state_dict())
    scalar = torch.tensor(1.0)
    changes: list[dict[str, Any]] = [
        {"head.classification_head.cls_logits.weight": scalar},
        {"head.regression_head.bbox_reg.weight": torch.zeros(10, 256, 3, 3)},
        {"backbone.body.layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)},
        {"backbone.body.layer2.2.conv1.weight": torch.zeros(128, 128, 3, 3)},
    ]
    assert RECIPE.identify({}, Facts()) is None
    assert all(RECIPE.identify({**state, **change}, Facts()) is None for change in changes)
    fewer = {"head.regression_head.bbox_reg.weight": torch.zeros(12, 256, 3, 3)}
    with pytest.raises(OptionError, match="3 in each cell"):
        RECIPE.identify({**state, **fewer}, Facts())


@pytest.mark.parametrize("batch", [1, 2])
def test_it_finds_what_torchvision_finds(theirs: RetinaNet, ours: Any, batch: int) -> None:
    inputs = images(batch, seed=5)
    expected = dense_models.eager(theirs, inputs)
    assert all(20 < len(found["scores"]) < 300 for found in expected)
    with torch.inference_mode():
        dense_models.assert_same(ours(inputs), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_exported_model_finds_the_same(theirs: RetinaNet, onnx: Path, batch: int) -> None:
    inputs = images(batch, seed=6)
    found = dense_models.run(onnx, images=inputs)
    dense_models.assert_same(found, dense_models.eager(theirs, inputs))


def test_boxes_end_where_their_images_do(theirs: RetinaNet, ours: Any, onnx: Path) -> None:
    inputs, sizes = dense_models.cut(images(3))
    expected, ends = dense_models.eager(theirs, inputs, sizes), torch.tensor(sizes).float()
    assert all(len(found["scores"]) > 10 for found in expected)
    with torch.inference_mode():
        dense_models.assert_same(ours(inputs, ends), expected)
    dense_models.assert_same(dense_models.run(onnx, images=inputs, image_sizes=ends), expected)


def test_an_image_without_objects_has_no_detections(theirs: RetinaNet, onnx: Path) -> None:
    inputs = torch.cat([torch.zeros(1, 3, *SIZE), images(1)])
    expected = dense_models.eager(theirs, inputs)
    assert [len(found["scores"]) > 0 for found in expected] == [False, True]
    dense_models.assert_same(dense_models.run(onnx, images=inputs), expected)


def test_folding_changes_nothing_but_rounding(ours: Any) -> None:
    inputs = images(2, seed=7)
    with torch.inference_mode():
        found, expected = reparam.deployed(RECIPE, ours)(inputs), ours(inputs)
    assert torch.equal(found[3], expected[3])
    assert torch.allclose(found[1], expected[1], atol=1e-4)


def test_the_names_are_torchvisions_labels() -> None:
    names = RECIPE.class_names(91)
    assert (names[0], names[1], names[90]) == ("__background__", "person", "toothbrush")
    assert RECIPE.class_names(2) == ("class0", "class1")
