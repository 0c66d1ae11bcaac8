from __future__ import annotations

from typing import TYPE_CHECKING, Any

import formulas
import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES, check_refused

import deploykit
from deploykit.data.preprocess import Geometry
from deploykit.networks.hrnet import backbone
from deploykit.pipeline import open_model
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks import label_maps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

CLASSIFIER, SEGMENTER = RECIPES.load("hrnet"), RECIPES.load("hrnet_seg")

# (recipe, variant) -> parameters, multiply-adds at 224x224 or 1024x2048, entries of the state dict
# and the digest of their names and shapes: of the official code, with 1000 and 19 classes.
OFFICIAL = {
    ("hrnet", "w18_small"): (13187464, 1601508352, 552, "cdbf0a1b7aa8a2ec"),
    ("hrnet", "w18_small_v2"): (15597464, 2595712864, 990, "89b1ed909da4e6f8"),
    ("hrnet", "w18"): (21299004, 4283537072, 1956, "2727a8f29aa660a9"),
    ("hrnet", "w30"): (37712220, 8105781680, 1956, "49ae089a68b64598"),
    ("hrnet", "w32"): (41232680, 8921133056, 1956, "28985285d885828c"),
    ("hrnet", "w40"): (57557160, 12691997440, 1956, "db59f205349ba314"),
    ("hrnet", "w44"): (67064984, 14883104960, 1956, "3e6231a95b746671"),
    ("hrnet", "w48"): (77469864, 17277996032, 1956, "7f8db3fcde914109"),
    ("hrnet", "w64"): (128059944, 28895395840, 1956, "ba82225d22b06c89"),
    ("hrnet_seg", "w18_small"): (1540819, 33390854144, 435, "3f9031b2a4e377ad"),
    ("hrnet_seg", "w18_small_v2"): (3939579, 76856885248, 873, "cf355056471def47"),
    ("hrnet_seg", "w18"): (9641119, 147401048064, 1839, "c0feef513a66eb04"),
    ("hrnet_seg", "w32"): (29546515, 361226043392, 1839, "f91cd136517348a3"),
    ("hrnet_seg", "w48"): (65859379, 747513053184, 1839, "4673ddc089f7a7b5"),
    ("hrnet_seg", "w48_ocr"): (70372678, 1297879072768, 1890, "31b1dab530e4949a"),
}
SHOWN = [*list(OFFICIAL)[:3], ("hrnet_seg", "w18_small_v2"), ("hrnet_seg", "w48_ocr")]
"""Of each form one; the sizes differ in numbers alone."""


def made(name: str, variant: str) -> nn.Module:
    """Return a network on no device, of as many classes as published."""
    with torch.device("meta"):
        return RECIPES.load(name).network(variant, 1000 if name == "hrnet" else 19)


@pytest.mark.parametrize(("name", "variant"), SHOWN)
def test_parameters_multiply_adds_and_keys_are_the_official_ones(name: str, variant: str) -> None:
    size = (224, 224) if name == "hrnet" else (1024, 2048)
    images = torch.empty(1, 3, *size, device="meta")
    assert OFFICIAL[name, variant] == published.facts(made(name, variant), images)


@pytest.mark.parametrize(("name", "variant"), [each for each in OFFICIAL if each not in SHOWN])
def test_parameters_and_keys_of_all_sizes_are_the_official_ones(name: str, variant: str) -> None:
    network = made(name, variant)
    parameters, _, entries, digest = OFFICIAL[name, variant]
    count, whole = published.digest(network.state_dict())
    assert (count, whole[:16]) == (entries, digest)
    assert sum(p.numel() for p in network.parameters()) == parameters


# (variant, corners aligned) -> class scores of one pixel by the official code, weights and image
# by the formula.
PIXEL = {
    ("w18_small", "false"): [2.41661, -0.29302, 1.3377, 0.75314, 2.63056],
    ("w18_small", "true"): [2.41452, -0.35774, 1.35799, 0.73071, 2.61383],
    ("w18_small_v2", "false"): [30.05837, -14.91108, 0.49, 5.22875, 0.25603],
    ("w18_small_ocr", "true"): [-4.20253, 0.88977, 0.86147, 1.39689, 0.13347],
}


@pytest.mark.parametrize(("variant", "aligned"), PIXEL)
def test_a_segmenter_gives_what_the_official_code_gives(variant: str, aligned: str) -> None:
    state = SEGMENTER.network(variant, 5).state_dict()
    answer = found(SEGMENTER.identify(state, Facts(given={"align_corners": aligned})))
    assert answer is not None
    assert answer.build is not None
    assert (answer.variant, answer.classes) == (variant, 5)
    with torch.inference_mode():
        scores = formulas.filled(answer.build())(formulas.images(1, 72, 104))
    assert scores.shape == (1, 5, 18, 26)
    expected = torch.tensor(PIXEL[variant, aligned])
    assert (scores[0, :, 7, 11] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_classifier_gives_what_timm_gives(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    theirs = randomised(timm.create_model("hrnet_w18_small", num_classes=5))
    state = CLASSIFIER.adapt(theirs.state_dict())
    assert CLASSIFIER.identify(state, Facts()) == ("w18_small", 5)
    ours = CLASSIFIER.network("w18_small", 5)
    ours.load_state_dict(dict(state))
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, ours_out = theirs(images), ours(images)
    assert (expected - ours_out).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_a_head_without_biases_is_read() -> None:
    with torch.device("meta"):
        own = CLASSIFIER.network("w18_small", 5).state_dict()
    bare = {k: v for k, v in own.items() if k != "final_layer.0.bias"}
    assert CLASSIFIER.adapt(bare).keys() == own.keys()


def test_what_a_training_script_stores_beside_the_network_is_left_out() -> None:
    own = SEGMENTER.network("w18_small", 5).state_dict()
    stored = {f"model.{k}": v for k, v in own.items()} | {"loss.criterion.weight": torch.ones(5)}
    assert SEGMENTER.adapt(stored).keys() == own.keys()
    assert SEGMENTER.class_names(19)[13] == "car"


def test_corners_are_aligned_where_the_published_weights_want_it() -> None:
    for variant, aligned in (("w18_small", False), ("w18_small_ocr", True)):
        with torch.device("meta"):
            state = SEGMENTER.network(variant, 5).state_dict()
        answer = found(SEGMENTER.identify(state, Facts()))
        assert answer is not None
        assert answer.settings["align_corners"].value is aligned
        assert "align_corners" in answer.assumed


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: s | {"stage3.0.branches.0.0.conv1.weight": torch.zeros(9, 16, 3, 3)}, "stage3"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 4, 3, 3)}, "4 channels"),
        (lambda s: s | {"stage2.0.branches.0.0.conv1.weight": torch.tensor(1.0)}, "not a check"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    state = dict(SEGMENTER.network("w18_small", 5).state_dict())
    check_refused(harm(state), said, tmp_path)


def test_a_segmenter_is_exported_as_a_graph_without_branches_and_its_corners_are_read(
    tmp_path: Path,
    randomised: Callable[[nn.Module], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(backbone.VARIANTS, "w18_small", backbone.Architecture(8, (1, 1, 1), 1))
    network = randomised(SEGMENTER.network("w18_small_ocr", 4))
    weights, model = tmp_path / "ocr.pth", tmp_path / "ocr.onnx"
    torch.save(network.state_dict(), weights)
    deploykit.export(weights, model, deploykit.ExportOptions(input_size=(48, 64)))
    kinds = {node.op_type for node in onnx.load(model).graph.node}
    assert kinds.isdisjoint({"If", "Loop", "NonZero", "BatchNormalization"})
    card = open_model(model).card
    assert card is not None
    assert card.settings["align_corners"].value is True
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with torch.inference_mode():
        scores = network(torch.from_numpy(card.preprocess(pixels)[0])[None])
        whole = F.interpolate(scores, (48, 64), mode="bilinear", align_corners=True)
    result = deploykit.load(model)(pixels)
    assert (result.labels == whole.argmax(1)[0].numpy()).mean() > 0.995


def test_aligned_scores_are_interpolated_as_torch_does() -> None:
    scores = np.random.default_rng(0).standard_normal((5, 7, 9)).astype(np.float32)
    place = Geometry(31, 45, 1.0, 1.0, canvas=(31, 45))
    labels = label_maps.best(scores, place, aligned=True)
    whole = F.interpolate(
        torch.from_numpy(scores)[None], (31, 45), mode="bilinear", align_corners=True
    )
    assert (labels == whole.argmax(1)[0].numpy()).mean() > 0.995
