from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torchvision.models import segmentation

import deploykit
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks.semantic import Semantic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

RECIPE = RECIPES.load("fcn")


@pytest.mark.parametrize("variant", ["resnet50", "resnet101"])
def test_torchvisions_networks_are_known_with_and_without_their_second_classifier(
    variant: str,
) -> None:
    made: Any = getattr(segmentation, f"fcn_{variant}")
    with torch.device("meta"):
        theirs = made(num_classes=21, weights_backbone=None, aux_loss=True).state_dict()
        ours = RECIPE.network(variant, 21).state_dict()
    state = RECIPE.adapt(theirs)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.items()}
    assert RECIPE.identify(state, Facts()) == (variant, 21)
    assert RECIPE.class_names(21)[15] == "person"


def test_other_state_dicts_are_not_taken_for_an_fcn() -> None:
    state = dict(RECIPE.network("light", 7).state_dict())
    assert RECIPE.identify(state, Facts()) == ("light", 7)
    assert RECIPE.identify({}, Facts()) is None
    wider = {**state, "backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}
    assert RECIPE.identify(wider, Facts()) is None
    assert RECIPE.identify({"classifier.4.weight": torch.zeros(5, 9)}, Facts()) is None


def test_an_image_is_resized_as_torchvision_does() -> None:
    from torchvision.transforms import functional

    preset = segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.transforms()
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    found, place = RECIPE.variant("resnet50").preprocess(image)
    theirs = preset(functional.to_pil_image(image)).numpy()
    assert place.sides == theirs.shape[1:]
    high, wide = theirs.shape[1:]
    assert np.abs(found[:, :high, :wide] - theirs).max() < 1.01 / 255 / 0.224


def test_a_light_segmenter_gives_the_label_map_that_its_network_gives(
    tmp_path: Path, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    network = randomised(RECIPE.network("light", 4))
    torch.save(network.state_dict(), tmp_path / "light.pth")
    options = deploykit.ExportOptions(input_size=(64, 64))
    deploykit.export(tmp_path / "light.pth", tmp_path / "light.onnx", options)
    image = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)
    pixels, place = RECIPE.variant("light").sized((64, 64))(image)
    with torch.inference_mode():
        scores = network(torch.from_numpy(pixels)[None])["out"]
        whole = torch.nn.functional.interpolate(
            scores, (48, 80), mode="bilinear", align_corners=False
        )
    import onnxruntime

    runner = onnxruntime.InferenceSession(
        tmp_path / "light.onnx", providers=["CPUExecutionProvider"]
    )
    outputs = dict(zip(["out"], runner.run(None, {"images": pixels[None]}), strict=True))
    (found,) = Semantic().decode(outputs, [place])
    assert (found.labels == whole.argmax(1)[0].numpy()).mean() > 0.999
