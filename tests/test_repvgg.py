from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from deploykit.data.preprocess import Geometry
from deploykit.networks import loading, reparam
from deploykit.networks.blocks import NormedBlock, QARepVGGBlock, QARepVGGBlockV1, VGGBlock
from deploykit.networks.reparam import RepVGGBlock
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

RECIPE = RECIPES.load("repvgg")
FAMILY: Any = sys.modules[RECIPE.build.__module__]


def on_meta(variant: str, classes: int = 1000) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def test_official_keys_are_spelled_like_this() -> None:
    shapes = {k: tuple(v.shape) for k, v in on_meta("a0").state_dict().items()}
    assert shapes["stage0.rbr_dense.conv.weight"] == (48, 3, 3, 3)
    assert shapes["stage1.0.rbr_dense.conv.weight"] == (48, 48, 3, 3)
    assert shapes["stage1.1.rbr_identity.running_var"] == (48,)
    assert shapes["stage4.0.rbr_1x1.bn.weight"] == (1280,)
    assert shapes["linear.weight"] == (1000, 1280)
    assert "stage1.0.rbr_identity.weight" not in shapes


def test_other_state_dicts_are_not_taken_for_a_repvgg() -> None:
    state = dict(on_meta("a0").state_dict())
    scalar = torch.tensor(1.0)
    changes: list[dict[str, Any]] = [
        {"linear.weight": scalar},
        {"stage1.0.rbr_dense.conv.weight": scalar},
        {"stage1.1.rbr_dense.conv.weight": scalar},
        {"stage4.0.rbr_dense.conv.weight": torch.zeros(3, 3)},
    ]
    assert RECIPE.identify({}, Facts()) is None
    assert RECIPE.identify({k: v for k, v in state.items() if "linear" not in k}, Facts()) is None
    assert all(RECIPE.identify({**state, **change}, Facts()) is None for change in changes)


BLOCKS = (RepVGGBlock, QARepVGGBlock, QARepVGGBlockV1, VGGBlock)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("groups", [1, 4])
def test_folding_changes_nothing_but_rounding(
    groups: int, block: type[nn.Module], randomised: Callable[[nn.Module], nn.Module]
) -> None:
    small = FAMILY.Architecture((2, 2, 3, 1), (16, 32, 48, 64), groups, block)
    trained = randomised(FAMILY.Network(small, 5))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = trained(images), reparam.deployed(RECIPE, trained)(images)
    spread = expected.max() - expected.min()
    assert spread > 0
    assert (expected - found).abs().max() <= 1e-5 * spread


@pytest.mark.parametrize("variant", ["a0", "a1", "a2", "b0", "b1", "b1g4", "b2g4", "b3"])
def test_timm_names_are_renamed_to_the_official_ones(variant: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    with torch.device("meta"):
        theirs = RECIPE.adapt(timm.create_model(f"repvgg_{variant}").state_dict())
    ours = on_meta(variant).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


def test_timm_weights_give_what_timm_gives(randomised: Callable[[nn.Module], nn.Module]) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    theirs = randomised(timm.create_model("repvgg_a0", num_classes=5))
    state = RECIPE.adapt(theirs.state_dict())
    assert RECIPE.identify(state, Facts()) == ("a0", 5)
    ours = on_meta("a0", 5)
    ours.load_state_dict(dict(state), assign=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert (expected - found).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_an_image_is_cropped_and_normalised_as_for_imagenet() -> None:
    image = np.full((512, 256, 3), 255, np.uint8)
    values, geometry = RECIPE.variant("a0").preprocess(image)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert values.shape == (3, 224, 224)
    assert np.allclose(values, white[:, None, None], atol=1e-5)
    assert geometry == Geometry(512, 256, 1.0, 1.0, -16, -144)
    assert RECIPE.variant("a0").sized((160, 128)).size == (160, 128)


def test_weights_that_are_folded_already_are_read(
    tmp_path: Path, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    trained = randomised(RECIPE.network("a0", 4))
    folded = reparam.deployed(RECIPE, trained)
    official = folded.state_dict()
    rules = (
        (r"^stage0\.", "stem."),
        (r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
        (r"rbr_reparam", "reparam_conv"),
        (r"^linear\.", "head.fc."),
    )
    for name, renamed in (("official.pth", ()), ("timm.pth", rules)):
        state = dict(official)
        for pattern, new in renamed:
            state = {re.sub(pattern, new, key): value for key, value in state.items()}
        torch.save(state, tmp_path / name)
        network = loading.load_network(tmp_path / name, loading.NetworkOptions())
        assert network.card.variant == "a0"
        images = torch.rand(2, 3, 64, 64)
        with torch.inference_mode():
            assert torch.equal(network.module(images), folded(images))
            assert torch.equal(reparam.deployed(RECIPE, network.module)(images), folded(images))


@pytest.mark.parametrize("variant", ["a0_qa", "a0_qav1"])
def test_a_norm_behind_the_sum_is_told_from_none(
    variant: str, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    trained = randomised(RECIPE.network(variant, 4))
    assert RECIPE.identify(trained.state_dict(), Facts()) == (variant, 4)
    halfway = RECIPE.network(variant, 4)
    for path, module in list(trained.named_modules()):
        if isinstance(module, (QARepVGGBlock, QARepVGGBlockV1)):
            parent, _, last = path.rpartition(".")
            setattr(halfway.get_submodule(parent), last, module.folded())
    halfway.linear = trained.linear
    normed = halfway.eval().state_dict()
    assert any(isinstance(module, NormedBlock) for module in halfway.modules())
    assert RECIPE.identify(normed, Facts()) == ("a0_qa", 4)
    network = reparam.as_stored(RECIPE.network("a0_qa", 4), normed.keys())
    network.load_state_dict(normed)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = trained(images), network.eval()(images)
        folded = reparam.deployed(RECIPE, network)(images)
    spread = expected.max() - expected.min()
    assert (expected - found).abs().max() <= 1e-5 * spread
    assert (expected - folded).abs().max() <= 1e-5 * spread


def test_weights_of_which_only_some_blocks_are_folded_are_read(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    trained = randomised(RECIPE.network("a0", 4))
    state = {k: v for k, v in trained.state_dict().items() if not k.startswith("stage2.1.")}
    block = reparam.deployed(RECIPE, trained).get_submodule("stage2.1")
    state |= {f"stage2.1.{key}": value for key, value in block.state_dict().items()}
    network = reparam.as_stored(RECIPE.network("a0", 4), state.keys())
    network.load_state_dict(state)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network(images), trained(images), atol=1e-4)
