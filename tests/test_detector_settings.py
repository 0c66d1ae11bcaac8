"""What a file says of a detector is kept or refused by name; what nobody says is told."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from dense_models import assert_same, told
from torch import nn
from torchvision.models import detection as zoo
from torchvision.models.detection import anchor_utils, backbone_utils
from two_stage_models import SIZE, settled

from deploykit.errors import CheckpointError, ModelError, OptionError
from deploykit.networks import loading
from deploykit.networks.detectors import adapted, dense_family, detectron2_layout, grids
from deploykit.networks.loading import NetworkOptions
from deploykit.recipes import identity
from deploykit.recipes.identity import Facts, Setting
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = 3
FILE = "model.pth"


def faster(**options: Any) -> Any:
    """Return torchvision's Faster R-CNN on a ResNet-18, which sees images as they are."""
    torch.manual_seed(0)
    body = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=options.pop("stages", None),
    )
    size = {"min_size": SIZE[0], "max_size": SIZE[1]}
    return zoo.FasterRCNN(body, CLASSES + 1, **size, **options)


@cache
def weights() -> dict[str, Any]:
    """Return weights that find something."""
    state: dict[str, Any] = settled(faster()).state_dict()
    return state


def light() -> dict[str, Any]:
    """Return the weights of a Mask R-CNN that is small: for what no size has a part in."""
    return RECIPES.load("mask_rcnn").network("light", CLASSES).state_dict()


def loaded(saved: Any, folder: Path, **options: Any) -> loading.Network:
    """Return the network of what was saved."""
    torch.save(saved, folder / FILE)
    return loading.load_network(folder / FILE, NetworkOptions(**options))


def written(card: ModelCard) -> Any:
    """Return a card as it comes back from a file."""
    return json.loads(json.dumps(card.to_json()))


def anchors(*sides: float) -> anchor_utils.AnchorGenerator:
    return anchor_utils.AnchorGenerator(tuple((s,) for s in sides), ((0.5, 1.0, 2.0),) * len(sides))


@pytest.mark.parametrize(
    "options",
    [
        {"box_detections_per_img": 7, "box_nms_thresh": 0.2, "box_score_thresh": 0.3},
        {"rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 90, "rpn_nms_thresh": 0.4},
        {"rpn_anchor_generator": anchors(8, 16, 32, 64, 128), "bbox_reg_weights": (5, 5, 2, 2)},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
)
def test_a_pickled_detector_is_built_as_it_was_set_up(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = faster(**options).eval()
    model.load_state_dict(weights())
    network = loaded(model, tmp_path)
    prepared = network.card.preprocess
    assert prepared.size == SIZE
    pixels = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    scaled = (pixels - torch.tensor(prepared.mean).view(3, 1, 1)) / torch.tensor(prepared.std).view(
        3, 1, 1
    )
    with torch.inference_mode():
        expected = model(list(pixels))
        found = [value.numpy() for value in network.module(scaled)]
    assert len(expected[0]["scores"]) == found[3][0] > 0
    assert_same(found, expected, 1)
    origins = {name: setting.origin for name, setting in network.card.settings.items()}
    assert set(origins.values()) == {"file"}
    assert not any("assumed" in note for note in network.notes)


def test_in_double_precision_every_row_stands_where_torchvision_has_it(tmp_path: Path) -> None:
    """In single precision rows of near-equal scores change places, there and here."""
    model = faster(box_detections_per_img=300, box_score_thresh=0.0).eval()
    model.load_state_dict(weights())
    network = loaded(model, tmp_path)
    mean, std = (
        torch.tensor(getattr(network.card.preprocess, name), dtype=torch.float64).view(3, 1, 1)
        for name in ("mean", "std")
    )
    pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        expected = model.double()([pixels])[0]
        boxes, scores, classes, count = network.module.double()(((pixels - mean) / std)[None])
    assert count[0] == len(expected["scores"]) > 250
    rows = slice(0, int(count[0]))
    torch.testing.assert_close(scores[0, rows], expected["scores"], rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes[0, rows], expected["boxes"], rtol=0, atol=1e-4)
    assert torch.equal(classes[0, rows] + 1, expected["labels"])


def step(change: Any) -> Any:
    """Return a detector in whose RPN a step was put in, or left out."""
    model = faster().eval()
    change(model.rpn.head.conv[0])
    return model


def changed(path: str, attribute: str, value: Any) -> Any:
    model = faster().eval()
    setattr(model.get_submodule(path), attribute, value)
    return model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: changed("roi_heads.box_roi_pool", "sampling_ratio", 3), "sampling_ratio = 3"),
        (lambda: changed("backbone.body", "relu", nn.SiLU()), "SiLU"),
        (lambda: changed("backbone.body.layer2.0.conv1", "dilation", (2, 2)), "dilation"),
        (lambda: changed("backbone.body", "maxpool", nn.Identity()), "maxpool of class .*Identity"),
        (lambda: changed("transform", "fixed_size", (96, 128)), "fixed_size"),
        (lambda: step(lambda conv: conv.append(nn.Tanh())), "rpn.head.conv.0.2 of class Tanh"),
        (lambda: step(lambda conv: conv.pop(1)), "rpn.head.conv.0.1 missing"),
        (lambda: changed("roi_heads", "detections_per_img", -1), "detections is -1"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(model: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        loaded(model(), tmp_path)


def test_a_step_that_does_nothing_is_no_difference(tmp_path: Path) -> None:
    model = step(lambda conv: conv.append(nn.Dropout(0.5)))
    assert loaded(model, tmp_path).card.variant == "resnet18_fpn"


def test_a_norms_epsilon_is_that_of_the_pickled_one(tmp_path: Path) -> None:
    model = faster().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 3e-4
    network = loaded(model, tmp_path)
    norms = [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {3e-4}


def test_what_a_state_dict_does_not_say_is_told_and_recorded(tmp_path: Path) -> None:
    state = faster().state_dict()
    network = loaded(state, tmp_path)
    note = next(note for note in network.notes if note.startswith("assumed"))
    assert "objects per image 100 (detections)" in note
    assert "anchor sizes 32/64/128/256/512 (anchor_sizes)" in note
    assert network.card.settings["detections"] == Setting(100, "assumed")
    stated = loaded(state, tmp_path, settings={"detections": "300", "mean": "[0, 0, 0]"})
    assert stated.card.settings["detections"] == Setting(300, "given")
    assert list(stated.card.preprocess.mean) == [0, 0, 0]
    assert "(detections)" not in "".join(stated.notes)
    module: Any = stated.module
    assert module.select.limits.detections == 300
    assert ModelCard.from_json(written(stated.card)).settings == stated.card.settings


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"detection": "3"}, "did you mean detections"),
        ({"detections": "few"}, "whole number"),
        ({"score_threshold": "2"}, "0 to 1"),
        ({"anchor_sizes": "[[32],[64]]"}, "5 levels with 3 in each cell"),
        ({"std": "[1, 2]"}, "three numbers"),
        ({"std": "[0.2, 0, 0.2]"}, "three numbers above 0"),
        ({"box_weights": "[10, 10, 5, 0]"}, "four numbers above 0"),
        ({"detections": "100000000"}, "1 to 3840"),
        ({"candidates": "3841"}, "1 to 3840"),
        ({"proposals": "3841"}, "1 to 3840"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    given: dict[str, str], error: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=error):
        loaded(light(), tmp_path, settings=given)


def test_a_family_without_settings_takes_none(tmp_path: Path) -> None:
    state = RECIPES.load("repvgg").network("a0", 2).state_dict()
    with pytest.raises(OptionError, match="unknown setting of repvgg 'detections'"):
        loaded(state, tmp_path, settings={"detections": "3"})


def test_anchors_that_the_weights_leave_open_are_asked_for(tmp_path: Path) -> None:
    rows = tuple((s, s * 1.5) for s in (16, 32, 64, 128, 256))
    many = anchor_utils.AnchorGenerator(rows, ((0.5, 1.0, 2.0),) * 5)
    state = faster(rpn_anchor_generator=many).state_dict()
    with pytest.raises(OptionError, match=r"6 in each cell.*\n.*--set anchor_sizes"):
        loaded(state, tmp_path)
    given = {"anchor_sizes": str([list(row) for row in rows])}
    module: Any = loaded(state, tmp_path, settings=given).module
    for ours, theirs in zip(module.cells, many.cell_anchors, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_levels_of_the_pyramid_are_those_of_the_weights(tmp_path: Path) -> None:
    generator = anchors(32, 64, 128, 256)
    model = faster(stages=[2, 3, 4], rpn_anchor_generator=generator).eval()
    with pytest.raises(OptionError, match="anchor_sizes"):
        loaded(model.state_dict(), tmp_path)
    module: Any = loaded(model, tmp_path).module
    maps = module.backbone(torch.rand(1, 3, *SIZE))
    assert [m.shape[2] for m in maps.values()] == [16, 8, 4, 2]
    for ours, theirs in zip(module.cells, generator.cell_anchors, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_images_of_another_number_of_channels_are_refused(tmp_path: Path) -> None:
    model = faster()
    model.backbone.body.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    with pytest.raises(CheckpointError, match="takes 1 channel\n"):
        loaded(model.state_dict(), tmp_path)


@pytest.mark.parametrize(
    "variant", ["ssdlite320_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large_full"]
)
def test_the_last_blocks_of_ssdlite_are_those_of_the_weights(variant: str) -> None:
    family = RECIPES.load("ssd")
    state = family.network(variant, CLASSES).state_dict()
    assert told(family.identify(state, Facts())) == (variant, CLASSES)


@pytest.mark.parametrize("count", [4, 17])
def test_keypoints_are_as_many_as_in_the_weights(count: int) -> None:
    family = RECIPES.load("keypoint_rcnn")
    with torch.device("meta"):
        state = family.network("resnet18_fpn", 1).state_dict()
    key = "roi_heads.keypoint_predictor.kps_score_lowres."
    state |= {f"{key}weight": torch.zeros(512, count, 4, 4), f"{key}bias": torch.zeros(count)}
    answer = identity.found(family.identify(state, Facts()))
    assert answer is not None
    assert answer.build is not None
    assert answer.class_names == (("person",) if count == 17 else None)
    assert answer.build().state_dict()[f"{key}bias"].shape == (count,)


# detectron2


def detectron2s(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a detectron2 state dict under torchvision's names, as `adapt` leaves it."""
    family = RECIPES.load("mask_rcnn")
    with torch.device("meta"):
        return {**family.network("detectron2_resnet50_fpn", CLASSES).state_dict(), **more}


def answered(state: dict[str, torch.Tensor], **given: str) -> identity.Found:
    facts = Facts(given=given)
    answer = identity.found(RECIPES.load("mask_rcnn").identify(state, facts))
    assert answer is not None
    return answer


def test_detectron2s_stored_image_statistics_and_anchors_are_kept() -> None:
    mean, std = (103.5, 116.5, 123.5), (57.5, 57.0, 58.5)
    cells = [torch.randn(3, 4) * 2**i for i in range(5)]
    stored = {f"cell_anchors_{i}": cell for i, cell in enumerate(cells)}
    stored |= {"pixel_mean": torch.tensor(mean).view(3, 1, 1)}
    stored |= {"pixel_std": torch.tensor(std).view(3, 1, 1)}
    answer = answered(detectron2s(**stored))
    assert answer.preprocess is not None
    assert answer.build is not None
    prepared = answer.preprocess((128, 160))
    assert (prepared.mean, prepared.std, prepared.channels) == (mean, std, "BGR")
    network: Any = answer.build()
    for ours, theirs in zip(network.cells, cells, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    assert set(stored) <= set(network.state_dict())
    assert answer.settings["mask_pasting"].value == "exact"
    turned = stored | {"pixel_mean": torch.tensor(mean[::-1]).view(3, 1, 1)}
    again = answered(detectron2s(**turned)).preprocess
    assert again is not None
    assert again(None).channels == "RGB"


def test_detectron2s_anchors_of_another_shape_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"5 levels of \[3, 4\]"):
        answered(detectron2s(cell_anchors_0=torch.zeros(3, 4)))


def test_detectron2s_strides_can_be_stated() -> None:
    for text, strides in (("true", ((2, 2), (1, 1))), ("false", ((1, 1), (2, 2)))):
        build = answered(detectron2s(), stride_in_1x1=text).build
        assert build is not None
        network: Any = build()
        block = network.backbone.body.layer2[0]
        assert (block.conv1.stride, block.conv2.stride) == strides


def test_detectron2s_anchors_step_by_the_stride_of_their_level() -> None:
    network: Any = RECIPES.load("faster_rcnn").network("detectron2_resnet50_fpn", CLASSES)
    assert network.steps == (4, 8, 16, 32, 64)
    cell, image, grid = np.zeros((1, 4), np.float32), (800, 1344), (13, 21)
    boxes = grids.anchors(cell, image, grid, 64)
    assert boxes[-1].tolist() == [20 * 64, 12 * 64, 20 * 64, 12 * 64]
    assert grids.anchors(cell, image, grid)[-1, 1] == 12 * (800 // 13)  # torchvision's
    assert adapted.FIRST_STRIDE == 4


# names of classes


def test_own_classes_are_not_given_cocos_names(tmp_path: Path) -> None:
    network = loaded(light(), tmp_path)
    assert network.card.class_names == ("class0", "class1", "class2")
    assert any("the file has no names" in note for note in network.notes)
    for count in (1, 80, 90):
        family = RECIPES.load("faster_rcnn")
        with torch.device("meta"):
            state = family.network("resnet18_fpn", count).state_dict()
        for published, named in ((False, False), (True, True)):
            sha256 = next(iter(dense_family._published())) if published else "0" * 64
            answer = identity.found(family.identify(state, Facts(sha256=sha256)))
            assert answer is not None
            assert (answer.class_names is not None) == named


def test_published_files_are_known_by_the_hash_in_their_address() -> None:
    weights = zoo.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    assert dense_family.published(weights.url.rpartition("-")[2].partition(".")[0] + "0" * 56)
    assert not dense_family.published("0" * 64)


@pytest.mark.parametrize("first", ["__background__", "background", "BACKGROUND", "bg"])
def test_a_name_for_the_background_is_left_out(first: str, tmp_path: Path) -> None:
    state = light()
    names = ["cat", "dog", "cow"]
    for stored in ([first, *names], [*names, first], names):
        network = loaded({"model": state, "CLASSES": stored}, tmp_path)
        assert network.card.class_names == ("cat", "dog", "cow")
    with pytest.raises(OptionError, match="4 class names for a model of 3 classes"):
        loaded({"model": state, "CLASSES": ["ant", *names]}, tmp_path)


def test_a_data_sets_names_are_asked_for_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no coco names for mask_rcnn with 3 classes"):
        loaded(light(), tmp_path, class_names=("coco",))


def test_a_card_of_a_version_without_settings_and_kinds_is_read(tmp_path: Path) -> None:
    card = loaded(light(), tmp_path).card
    data = written(card)
    del data["settings"], data["outputs"]
    assert ModelCard.from_json(data) == replace(card, settings={}, outputs=())


def test_the_card_says_what_each_output_means(tmp_path: Path) -> None:
    card = loaded(faster().state_dict(), tmp_path).card
    assert ModelCard.from_json(written(card)).outputs == RECIPES.load("faster_rcnn").outputs
    data = written(card)
    data["outputs"][0][1] = "colours"
    with pytest.raises(ModelError, match="outputs"):
        ModelCard.from_json(data)
    assert len(repr(card)) < 100


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights whose names say that they are detectron2's, without the mark of its norms."""
    return {**state, detectron2_layout.MARK: torch.zeros(())}


@pytest.mark.parametrize(
    ("change", "stated", "expected"),
    [
        (renamed, "resnet18_fpn", "detectron2_resnet18_fpn"),
        (dict, "detectron2_resnet50_fpn", "resnet18_fpn"),
        (dict, "resnet50_fpn", "resnet18_fpn"),
        (dict, "mobilenet_v3_large_fpn", "resnet18_fpn"),
    ],
)
def test_a_stated_variant_of_another_body_or_project_is_refused(
    change: Any, stated: str, expected: str
) -> None:
    """Their pixels are prepared otherwise: RGB from 0 to 1, or BGR from 0 to 255."""
    identify = RECIPES.load("faster_rcnn").identify
    with pytest.raises(CheckpointError, match=f"not those of {stated}") as caught:
        identify(change(faster().state_dict()), Facts(variant=stated))
    assert caught.value.expected.startswith(f"{expected},")
    assert "leave --variant out" in caught.value.fix
