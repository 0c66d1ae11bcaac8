from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import vgg_models
from torchvision.models import vgg16

from deploykit.networks.detectors import vgg
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

RECIPE = RECIPES.load("faster_rcnn_vgg16")


def on_meta(variant: str = "vgg16", classes: int = 20) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def test_parameters_are_as_many_as_the_published_network_has() -> None:
    # Pascal VOC: 20 classes and the background, 9 anchors.
    assert sum(p.numel() for p in on_meta().parameters()) == 137_078_239


def test_the_convolutions_are_torchvisions_without_the_last_pooling() -> None:
    with torch.device("meta"):
        official = vgg16().features[:-1]
        ours = vgg.features(vgg.VARIANTS["vgg16"].widths)
    assert [str(layer).split("(")[0] for layer in ours] == [
        str(layer).split("(")[0] for layer in official
    ]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in official.state_dict().items()
    }


PORT = {
    "RCNN_base.0.weight": "features.0.weight",
    "RCNN_base.28.bias": "features.28.bias",
    "RCNN_rpn.RPN_Conv.weight": "rpn.conv.weight",
    "RCNN_rpn.RPN_cls_score.bias": "rpn.cls_score.bias",
    "RCNN_rpn.RPN_bbox_pred.weight": "rpn.bbox_pred.weight",
    "RCNN_top.0.weight": "head.fc6.weight",
    "RCNN_top.3.bias": "head.fc7.bias",
    "RCNN_cls_score.weight": "head.cls_score.weight",
    "RCNN_bbox_pred.bias": "head.bbox_pred.bias",
}


def test_keys_of_the_pytorch_port_are_renamed() -> None:
    state = {key: torch.zeros(1) for key in PORT}
    assert list(RECIPE.adapt(state)) == list(PORT.values())
    ours = dict(on_meta().state_dict())
    assert set(PORT.values()) <= set(ours)
    assert list(RECIPE.adapt(ours)) == list(ours)


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_a_variant_is_known_by_its_anchors_and_its_boxes(variant: str) -> None:
    assert RECIPE.identify(on_meta(variant, 7).state_dict(), Facts()) == (variant, 7)


def test_other_state_dicts_are_not_taken_for_it() -> None:
    state = dict(on_meta().state_dict())
    scalar = torch.tensor(1.0)
    changes: list[dict[str, Any]] = [
        {"head.cls_score.weight": scalar},
        {"rpn.cls_score.weight": torch.zeros(20, 512, 1, 1)},
        {"head.bbox_pred.weight": torch.zeros(8, 4096)},
        {"features.28.weight": torch.zeros(16, 16, 3, 3)},
    ]
    assert RECIPE.identify({}, Facts()) is None
    assert RECIPE.identify({k: v for k, v in state.items() if "rpn" not in k}, Facts()) is None
    assert all(RECIPE.identify({**state, **change}, Facts()) is None for change in changes)


@pytest.mark.parametrize("agnostic", [False, True])
def test_it_finds_what_the_published_steps_find(agnostic: bool) -> None:  # noqa: FBT001 - two cases
    settings = replace(vgg_models.NARROW, agnostic=agnostic)
    network = vgg_models.narrow(vgg.FasterRcnn, settings)
    inputs = vgg_models.images(2)
    with torch.inference_mode():
        boxes, scores, classes, counts = network(inputs)
        for i in range(2):
            maps = network.features(inputs[i : i + 1])
            regions = vgg_models.proposals(network, maps, settings)
            wanted = vgg_models.detections(network, maps, regions)
            count = len(wanted.scores)
            assert count > 20
            assert int(counts[i]) == count
            np.testing.assert_allclose(scores[i, :count], wanted.scores, atol=1e-5)
            np.testing.assert_allclose(boxes[i, :count], wanted.boxes, atol=2e-3)
            np.testing.assert_array_equal(classes[i, :count], wanted.labels)
            assert (classes[i, count:] == -1).all()
            assert not boxes[i, count:].any()


def test_an_image_without_objects_has_no_detections() -> None:
    network = vgg_models.narrow(vgg.FasterRcnn, vgg_models.NARROW)
    with torch.inference_mode():
        network.head.cls_score.bias[0] += 100
        boxes, scores, classes, count = network(vgg_models.images(2))
    assert count.tolist() == [0, 0]
    assert not boxes.any()
    assert not scores.any()
    assert classes.eq(-1).all()


def test_images_are_prepared_as_for_caffe() -> None:
    preprocess = RECIPE.variant("vgg16").preprocess
    assert preprocess.size == (600, 1000)
    pixels, geometry = preprocess(np.full((300, 400, 3), (10, 20, 30), np.uint8))
    expected = np.array([30, 20, 10]) - [102.9801, 115.9465, 122.7717]
    np.testing.assert_allclose(pixels[:, 0, 0], expected, atol=1e-4)
    assert not pixels[:, :, 801:].any()
    assert (geometry.scale_x, geometry.offset_x) == (2, 0)


def test_classes_have_the_names_of_their_data_set() -> None:
    assert RECIPE.class_names(20)[-1] == "tvmonitor"
    assert RECIPE.class_names(80)[0] == "person"
    assert len(set(RECIPE.class_names(80))) == 80
    assert RECIPE.class_names(3) == ("class0", "class1", "class2")


def state_of_port(network: nn.Module) -> Mapping[str, Tensor]:
    """Return the state dict of a network with the port's keys."""
    parts = {old.rsplit(".", 1)[0]: new.rsplit(".", 1)[0] for old, new in PORT.items()}
    parts = {k: v for k, v in parts.items() if not k.startswith("RCNN_base")}
    renamed = {}
    for key, value in network.state_dict().items():
        module, leaf = key.rsplit(".", 1)
        old = next((o for o, n in parts.items() if n == module), None)
        renamed[f"{old}.{leaf}" if old else key.replace("features.", "RCNN_base.")] = value
    return renamed


def test_every_key_of_the_port_finds_its_place() -> None:
    network = on_meta()
    old = state_of_port(network)
    assert not any(key.startswith(("features", "rpn", "head")) for key in old)
    assert list(RECIPE.adapt(old)) == list(network.state_dict())
