from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit import tasks
from deploykit.data.preprocess import Geometry
from deploykit.errors import CheckpointError, OptionError
from deploykit.networks import loading, reparam
from deploykit.networks.blocks import NormedBlock, QARepVGGBlock, VGGBlock
from deploykit.networks.reparam import ConvNorm
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Randomised = Callable[[nn.Module], nn.Module]


class PickledModule(NamedTuple):
    """What a checkpoint says of a pickled module."""

    kind: str
    values: dict[str, Any]


RECIPE = RECIPES.load("yolov6")
FAMILY: Any = sys.modules[RECIPE.build.__module__]


def on_meta(variant: str, classes: int = 80) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return RECIPE.network(variant, classes)


def test_official_keys_are_spelled_like_this() -> None:
    shapes = {k: tuple(v.shape) for k, v in on_meta("v3n").state_dict().items()}
    assert shapes["backbone.stem.rbr_dense.conv.weight"] == (16, 3, 3, 3)
    assert shapes["backbone.ERBlock_3.1.block.2.rbr_identity.running_mean"] == (64,)
    assert shapes["backbone.ERBlock_5.2.cspsppf.cv1.block.conv.weight"] == (128, 256, 1, 1)
    assert shapes["neck.reduce_layer0.block.bn.weight"] == (64,)
    assert shapes["neck.Bifusion0.upsample.upsample_transpose.bias"] == (64,)
    assert shapes["neck.Rep_n4.conv1.rbr_1x1.conv.weight"] == (128, 128, 1, 1)
    assert shapes["detect.stems.0.block.conv.weight"] == (32, 32, 1, 1)
    assert shapes["detect.cls_preds.2.weight"] == (80, 128, 1, 1)
    assert shapes["detect.proj_conv.weight"] == (1, 17, 1, 1)
    older = {k: tuple(v.shape) for k, v in on_meta("v2m").state_dict().items()}
    assert older["backbone.ERBlock_5.2.sppf.cv2.block.conv.weight"] == (768, 1536, 1, 1)
    assert older["backbone.ERBlock_3.1.m.block.0.alpha"] == (1,)
    assert older["detect.reg_preds.0.bias"] == (68,)


def test_batch_norms_have_the_epsilon_the_weights_were_trained_with() -> None:
    norms = [m for m in on_meta("v3m").modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_the_layout_of_old_releases_is_renamed(variant: str) -> None:
    state = on_meta(variant).state_dict()
    plain = FAMILY.VARIANTS[variant].block == "conv"
    pattern = r"(?<=cv\d)\.block|(?<=reduce_layer\d)\.block|(?<=downsample)\.block"
    pattern += r"|(?<=downsample\d)\.block|(?<=stems\.\d)\.block|(?<=convs\.\d)\.block"
    old = {re.sub(pattern, "", re.sub(r"\.(csp)?sppf\.", ".", k)): v for k, v in state.items()}
    assert "neck.reduce_layer0.conv.weight" in old
    assert "detect.stems.0.bn.bias" in old
    assert ("backbone.stem.block.conv.weight" in old) == plain
    again = list(RECIPE.adapt(old))
    if FAMILY.VARIANTS[variant].block == "repopt":  # which had the names of plain blocks then
        again = list(RECIPE.adapt({**old, FAMILY._LEVEL: state[FAMILY._LEVEL]}))
        blocks = [k for k in again if k.startswith("backbone.stem.")]
        assert blocks == [k for k in state if k.startswith("backbone.stem.")]
    else:
        assert again == list(state)


def test_other_state_dicts_are_not_taken_for_a_yolov6() -> None:
    state = dict(on_meta("v3n").state_dict())
    scalar = torch.tensor(1.0)
    changes: list[dict[str, Any]] = [
        {"detect.cls_preds.0.bias": scalar},
        {"detect.reg_preds.0.bias": scalar},
        {"backbone.stem.rbr_dense.conv.weight": scalar},
        {"detect.reg_preds.0.bias": torch.zeros(12)},
    ]
    assert RECIPE.identify({}, Facts()) is None
    assert RECIPE.identify({k: v for k, v in state.items() if "detect" not in k}, Facts()) is None
    assert all(RECIPE.identify({**state, **change}, Facts()) is None for change in changes)


def test_branches_that_only_training_reads_are_dropped() -> None:
    state = dict(on_meta("v3n").state_dict())
    extras = {
        "detect.reg_preds_dist.0.weight": torch.zeros(68, 32, 1, 1),
        "detect.cls_preds_ab.1.bias": torch.zeros(240),
        "detect.reg_preds_ab.2.weight": torch.zeros(12, 128, 1, 1),
    }
    assert list(RECIPE.adapt({**state, **extras})) == list(state)


def test_a_bias_before_a_batch_norm_moves_into_its_mean(randomised: Randomised) -> None:
    network = randomised(RECIPE.network("pico", 3))
    conv = network.get_submodule("neck.reduce_layer0.block.conv")
    assert isinstance(conv, nn.Conv2d)
    images = torch.rand(1, 3, 64, 64)
    conv.bias = nn.Parameter(torch.randn(conv.out_channels))
    ours = RECIPE.network("pico", 3)
    ours.load_state_dict(dict(RECIPE.adapt(network.state_dict())))
    assert difference(network, ours, images) < 1e-6


def narrow(architecture: Any) -> Any:
    """Return an architecture with a quarter of the channels."""
    inner = architecture.inner and tuple(max(c // 4, 4) for c in architecture.inner)
    channels = tuple(max(c // 4, 8) for c in architecture.channels)
    return replace(architecture, channels=channels, inner=inner)


def difference(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    """Return the largest error of boxes or scores, relative to the range of each."""
    with torch.inference_mode():
        expected, found = a(images), b(images)
    parts = [(expected[..., s], found[..., s]) for s in (slice(0, 4), slice(5, None))]
    return max(float((e - f).abs().max() / (e.max() - e.min())) for e, f in parts)


@pytest.mark.parametrize("variant", ["pico", "v2n", "v2m", "v2l", "v3n", "v3l"])
def test_folding_changes_nothing_but_rounding(variant: str, randomised: Randomised) -> None:
    small = narrow(FAMILY.VARIANTS[variant])
    trained = randomised(FAMILY.Network(small, 4).eval())
    folded = reparam.deployed(RECIPE, trained)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert difference(trained, folded, torch.rand(2, 3, 96, 64)) < 1e-5


def test_the_raw_outputs_decode_to_the_returned_rows(randomised: Randomised) -> None:
    network: Any = randomised(RECIPE.network("pico", 3))
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        rows = network(images)
        logits, distances, anchors, strides = network.raw(images)
    assert rows.shape == (2, 126, 8)
    assert logits.shape == (2, 126, 3)
    assert distances.shape == (2, 126, 4 * 17)
    assert (anchors.shape, strides.shape) == ((126, 2), (126, 1))
    sides = (distances.reshape(2, 126, 4, 17).softmax(-1) @ torch.arange(17.0)) * strides
    corners = torch.cat([anchors - sides[..., :2], anchors + sides[..., 2:]], -1)
    centres = (corners[..., :2] + corners[..., 2:]) / 2
    assert torch.allclose(rows[..., :2], centres, atol=1e-3)
    assert torch.allclose(rows[..., 2:4], corners[..., 2:] - corners[..., :2], atol=1e-3)
    assert torch.equal(rows[..., 4], torch.ones(2, 126))
    assert torch.allclose(rows[..., 5:], logits.sigmoid())


def test_every_parameter_that_learns_gets_a_gradient() -> None:
    network: Any = RECIPE.network("pico", 3).train()
    nn.init.normal_(network.detect.cls_preds[0].weight)
    logits, distances, _, _ = network.raw(torch.rand(2, 3, 64, 64))
    (logits.square().mean() + distances.square().mean()).backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_pico_is_small_and_suits_int8_kernels() -> None:
    network = reparam.deployed(RECIPE, on_meta("pico", 6))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels != 17]
    assert 500_000 <= sum(p.numel() for p in network.parameters()) <= 900_000
    assert all(c.in_channels >= 16 and c.in_channels % 8 == 0 for c in convs[1:])
    assert RECIPE.variant("pico").preprocess.size == (320, 320)


def test_an_image_is_letterboxed_on_grey_and_scaled_to_one() -> None:
    preprocess = RECIPE.variant("v3s").preprocess
    values, geometry = preprocess(np.full((320, 640, 3), 255, np.uint8))
    assert values.shape == (3, 640, 640)
    assert values[:, 0, 0].tolist() == pytest.approx([114 / 255] * 3)
    assert values[:, 320, 320].tolist() == pytest.approx([1.0] * 3)
    assert geometry.offset_y == 160
    assert RECIPE.variant("v3s").sized((320, 416)).size == (320, 416)


def test_its_task_reads_the_one_output() -> None:
    rows = np.array([[[50, 50, 20, 10, 1, 0.9, 0.2]]], np.float32)
    found = tasks.find(RECIPE.task).decode({"outputs": rows}, [Geometry(100, 100, 1.0, 1.0)])[0]
    assert found.classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("detect.cls_preds.0", Precision.FP16),
        ("detect.reg_preds.2/Conv", Precision.FP16),
        ("detect.boxes", Precision.FP32),
        ("detect.boxes/Softmax", Precision.FP32),
        ("detect.cls_convs.0.block.conv", None),
        ("backbone.stem.rbr_reparam", None),
    ],
)
def test_prediction_and_decoding_stay_in_float(node: str, expected: Precision | None) -> None:
    found = [k.precision for k in RECIPE.variant("v3n").keep_float if re.search(k.pattern, node)]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize("variant", ["v2n", "v2m", "v2s_base", "v3s", "v3l", "v3n_base", "pico"])
def test_the_architecture_is_read_from_the_weights(variant: str) -> None:
    own = FAMILY.VARIANTS[variant]
    odd = replace(own, channels=(24, 40, 56, 72, 88, 48, 40, 24, 56, 32, 64), inputs=1)
    odd = replace(odd, inner=own.inner and (16, 20, 28, 36, 24, 20, 28, 32))
    for architecture in (own, odd, replace(odd, repeats=(1, 2, 1, 3, 2, 1, 2, 4))):
        with torch.device("meta"):
            network = FAMILY.Network(architecture, 3)
        for module in (network, reparam.deployed(RECIPE, network)):
            assert FAMILY.read(module.state_dict(), architecture.activation) == architecture


def test_sizes_that_no_release_has_are_carried(randomised: Randomised, tmp_path: Path) -> None:
    small = narrow(FAMILY.VARIANTS["v2m"])
    trained = randomised(FAMILY.Network(small, 3).eval())
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    network = loading.load_network(tmp_path / "model.pt", loading.NetworkOptions())
    assert network.card.variant == "v2_repvgg"
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.module(images), trained(images))


def test_weights_that_are_folded_already_are_read(randomised: Randomised, tmp_path: Path) -> None:
    trained = randomised(FAMILY.Network(narrow(FAMILY.VARIANTS["v3m"]), 3).eval())
    folded = reparam.deployed(RECIPE, trained)
    torch.save(folded.state_dict(), tmp_path / "model.pt")
    network = loading.load_network(tmp_path / "model.pt", loading.NetworkOptions())
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.module(images), folded(images))


@pytest.mark.parametrize(("variant", "other"), [("v3l_base", "v3l"), ("v2n_base", "v2_silu")])
def test_an_activation_that_the_weights_do_not_say_is_asked_for(variant: str, other: str) -> None:
    state = on_meta(variant, 3).state_dict()
    with pytest.raises(OptionError) as error:
        RECIPE.identify(state, Facts())
    assert f"{variant} (relu) or {other} (silu)" in str(error.value)
    assert f"--variant {variant} or --variant {other}" in str(error.value)
    for stated, activation in ((variant, nn.ReLU), (other, nn.SiLU)):
        answer = found(RECIPE.identify(state, Facts(variant=stated)))
        assert answer is not None
        assert answer.build is not None
        assert answer.variant == stated
        with torch.device("meta"):
            network = answer.build()
        assert isinstance(network.get_submodule("backbone.stem.block.act"), activation)
    with pytest.raises(OptionError, match=r"v3n"):
        RECIPE.identify(state, Facts(variant="v3n"))


@pytest.mark.parametrize("name", ["act", "block.act", "relu"])
def test_a_pickled_module_says_the_activation(name: str) -> None:
    state = on_meta("v3l_base", 3).state_dict()
    for kind, variant in (("ReLU", "v3l_base"), ("SiLU", "v3l")):
        layer = PickledModule(f"torch.nn.modules.activation.{kind}", {"inplace": False})
        facts = Facts({f"backbone.stem.{name}": layer})
        answer = found(RECIPE.identify(state, facts))
        assert answer is not None
        assert answer.variant == variant
    layer = PickledModule("torch.nn.modules.activation.Hardswish", {})
    with pytest.raises(CheckpointError, match="Hardswish"):
        RECIPE.identify(state, Facts({f"backbone.stem.{name}": layer}))


def test_evaluation_of_release_0_3_reads_other_branches() -> None:
    state = dict(on_meta("v3n", 3).state_dict())
    plain = {k: v for k, v in state.items() if "_preds." not in k}
    own = {k: v for k, v in state.items() if "_preds." in k}
    anchors = {k.replace("_preds.", "_preds_ab."): torch.zeros(1) for k in own}
    beside = plain | {k.replace("_preds.", "_preds_af."): v for k, v in own.items()} | anchors
    read = RECIPE.adapt(beside)
    assert all(read[key] is value for key, value in own.items())
    assert read.keys() == state.keys()
    distilled = dict(state)
    for key in [key for key in own if "reg_preds" in key]:
        distilled[key.replace("reg_preds", "reg_preds_lrtb")] = state[key]
        distilled[key] = torch.zeros(68)
    read = RECIPE.adapt(distilled)
    assert all(read[key] is value for key, value in own.items())
    assert read.keys() == state.keys()


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("backbone.ERBlock_6.0.rbr_dense.conv.weight", "P6"),
        ("backbone.ERBlock_2.1.m.0.0.conv1.block.conv.weight", "MBLA"),
        ("detect.obj_preds.0.weight", "release 0.1"),
        ("detect.proto.cv1.conv.weight", "mask head"),
    ],
)
def test_parts_that_are_not_carried_are_refused_by_name(key: str, what: str) -> None:
    state = {**on_meta("v3n").state_dict(), key: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=what):
        RECIPE.identify(state, Facts())


SPECIAL = {"pico_repopt": "conv.bias", "pico_hs": "conv.bias", "pico_qa": "rbr_reparam.bias"}
"""Variant -> what a folded block of it has."""


@pytest.mark.parametrize("variant", SPECIAL)
def test_blocks_made_for_int8_are_read_and_fold_exactly(
    variant: str, randomised: Randomised, tmp_path: Path
) -> None:
    trained = randomised(FAMILY.Network(narrow(FAMILY.VARIANTS[variant]), 3).eval())
    folded = reparam.deployed(RECIPE, trained)
    assert f"backbone.stem.{SPECIAL[variant]}" in folded.state_dict()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.rand(1, 3, 64, 64)
    assert difference(trained, folded, images) < 1e-5
    for module in (trained, folded):
        torch.save(module.state_dict(), tmp_path / "model.pt")
        stated = "v3_qarepvgg" if variant == "pico_qa" and module is trained else None
        options = loading.NetworkOptions(variant=stated)
        read = loading.load_network(tmp_path / "model.pt", options)
        with torch.inference_mode():
            assert torch.equal(read.module(images), module(images))


def test_a_qarepvgg_with_folded_branches_keeps_its_last_norm(
    randomised: Randomised, tmp_path: Path
) -> None:
    """YOLOv6 stores this form for training with quantisation."""
    trained = randomised(FAMILY.Network(narrow(FAMILY.VARIANTS["pico_qa"]), 3).eval())
    halfway = copy.deepcopy(trained)
    with torch.no_grad():
        for path, module in list(halfway.named_modules()):
            if isinstance(module, QARepVGGBlock):
                parent, _, last = path.rpartition(".")
                setattr(halfway.get_submodule(parent), last, module.folded())
    torch.save(halfway.state_dict(), tmp_path / "model.pt")
    read = loading.load_network(tmp_path / "model.pt", loading.NetworkOptions())
    assert isinstance(read.module.get_submodule("backbone.stem"), NormedBlock)
    images = torch.rand(1, 3, 64, 64)
    assert difference(trained, read.module, images) < 1e-5
    assert difference(trained, reparam.deployed(RECIPE, read.module), images) < 1e-5


def test_the_average_branch_is_asked_for_unless_a_pickled_module_says_it() -> None:
    state = on_meta("v3n_qa", 3).state_dict()
    with pytest.raises(OptionError, match=r"v3_qarepvgg \(without average branch\) or v3n_qa"):
        RECIPE.identify(state, Facts())
    inner = "backbone.ERBlock_2.1.conv1"
    layers = {inner: PickledModule("yolov6.layers.common.QARepVGGBlockV2", {})}
    for more, variant in (
        ({}, "v3_qarepvgg"),
        ({f"{inner}.rbr_avg": PickledModule("torch.nn.modules.pooling.AvgPool2d", {})}, "v3n_qa"),
    ):
        answer = found(RECIPE.identify(state, Facts(layers | more)))
        assert answer is not None
        assert answer.variant == variant


def test_repoptimizer_networks_of_old_releases_are_read_by_the_stated_variant() -> None:
    state = on_meta("v2s_repopt", 3).state_dict()
    old = {
        k.replace(".block.conv.", ".conv.").replace(".block.bn.", ".bn."): v
        for k, v in state.items()
    }
    answer = found(RECIPE.identify(RECIPE.adapt(old), Facts(variant="v2s_repopt")))
    assert answer is not None
    assert (answer.variant, answer.like) == ("v2s_repopt", "v2s_repopt")
    answer = found(RECIPE.identify(RECIPE.adapt(state), Facts()))
    assert answer is not None
    assert answer.variant == "v2s_repopt"


def test_official_keys_of_the_blocks_made_for_int8_are_spelled_like_this() -> None:
    keys = {v: on_meta(v).state_dict().keys() for v in ("v2n_hs", "v2n_repopt", "v3n_qa")}
    inner = "backbone.ERBlock_3.1.block.0."
    norm = {f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    scales = {f"scale_{n}.weight" for n in ("conv", "1x1", "identity")}
    dense = {f"rbr_dense.{n}" for n in (*norm, "conv.weight")}
    expected = {
        "v2n_hs": {"conv.weight", "conv_1x1.weight", *scales, *norm},
        "v2n_repopt": {"conv.weight", *norm},
        "v3n_qa": {"rbr_1x1.weight", *dense, *norm},
    }
    for variant, names in expected.items():
        own = {k.removeprefix(inner) for k in keys[variant] if k.startswith(inner)}
        assert {k for k in own if not k.endswith("tracked")} == names


@pytest.mark.parametrize(
    ("variant", "trained", "deployed"),
    [("v2s_repopt", 17_229_438, 17_226_942), ("v2n_repopt", 4_321_742, 4_320_494)],
)
def test_repoptimizer_networks_have_the_official_number_of_parameters(
    variant: str, trained: int, deployed: int
) -> None:
    """The official deployed form keeps the norms of the blocks that RepOptimizer trains."""
    network = on_meta(variant)
    norms = {True: 0, False: 0}
    for module in network.modules():
        if isinstance(module, ConvNorm):
            norms[isinstance(module, VGGBlock)] += module.bn.num_features
    assert sum(p.numel() for p in network.parameters()) == trained
    assert trained - norms[False] == deployed
    folded = reparam.deployed(RECIPE, network)
    assert sum(p.numel() for p in folded.parameters()) == deployed - norms[True]
