"""UPerNet on Swin and MPViT: names, counts, the head against torch's layers, images, the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mmdet_names
import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES, check_refused, skewed

import deploykit
from deploykit import backends
from deploykit.errors import CheckpointError
from deploykit.networks import loading, swin, swin_dense, upernet
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("upernet")

# variant -> parameters without the head of training, multiply-adds at 512x2048, entries of the
# state dict and the digest of their names and shapes: of the official code with 150 classes.
OFFICIAL = {
    "swin_tiny": (59018064, 944385149184, 263, "0a86eebbbca1f5a7"),
    "swin_small": (80335968, 1037416899840, 431, "e0e4537fd8376ebd"),
    "swin_base_window12": (120196366, 1206023487488, 431, "ebf0dbcaa8823217"),
}
MILLIONS = {"mpvit_small": 52, "mpvit_base": 105}
"""As published, with the head of training: a convolution, its norm, a 1x1 convolution."""


def means(width: int, high: int, wide: int) -> int:
    """Return the multiply-adds of the means over parts, which the official code does not count."""
    return sum(width * (high * wide * n + n * high * n) for n in (1, 2, 3, 6))


@pytest.mark.parametrize("variant", OFFICIAL)
def test_names_shapes_and_counts_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network: Any = RECIPE.network(variant, 150)
        images = torch.empty(1, 3, 512, 2048)
    own = network.state_dict()
    state = mmdet_names.swin(own)
    parameters, spent, _, _ = published.facts(network, images)
    less = means(network.backbone.widths[-1], 16, 64)
    count, whole = published.digest(state)
    assert (parameters, spent - less, count, whole[:16]) == OFFICIAL[variant]
    back = RECIPE.adapt(state | {"auxiliary_head.conv_seg.bias": torch.zeros(150)})
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}
    found = RECIPE.identify(back, Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (variant, 150)
    assert RECIPES.load("swin").identify(back, Facts()) is None


@pytest.mark.parametrize("variant", MILLIONS)
def test_on_mpvit_it_has_as_many_weights_as_published(variant: str) -> None:
    with torch.device("meta"):
        network: Any = RECIPE.network(variant, 150)
        state = RECIPE.adapt(network.state_dict())
    width = network.backbone.widths[2]
    training = 9 * width * 256 + 2 * 256 + 256 * 150 + 150
    total = sum(p.numel() for p in network.parameters()) + training
    assert round(total / 1e6) == MILLIONS[variant]
    found = RECIPE.identify(state, Facts())
    assert isinstance(found, Found)
    assert found.variant == variant
    assert RECIPES.load("mpvit").identify(state, Facts()) is None


def layer(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return a convolution, its norm and a ReLU of a map, in float64."""
    weight = state[f"{name}.conv.weight"]
    mean, variance, gain, bias = (
        state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
    )
    found = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return F.batch_norm(found, mean, variance, gain, bias).relu()


def head(state: dict[str, Tensor], maps: list[Tensor], *, aligned: bool) -> Tensor:
    """Return what the published head gives, by torch's own pooling."""

    def to(x: Tensor, like: Tensor) -> Tensor:
        size = [int(side) for side in like.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=aligned)

    last = maps[3]
    parts = [
        to(layer(state, f"psp_modules.{i}.1", F.adaptive_avg_pool2d(last, n)), last)
        for i, n in enumerate((1, 2, 3, 6))
    ]
    top = layer(state, "bottleneck", torch.cat([last, *parts], 1))
    sides = [layer(state, f"lateral_convs.{i}", maps[i]) for i in range(3)]
    third = sides[2] + to(top, sides[2])
    second = sides[1] + to(third, sides[1])
    first = sides[0] + to(second, sides[0])
    smooth = [layer(state, f"fpn_convs.{i}", x) for i, x in enumerate((first, second, third))]
    whole = torch.cat([to(x, smooth[0]) for x in (*smooth, top)], 1)
    mixed = layer(state, "fpn_bottleneck", whole)
    return F.conv2d(mixed, state["conv_seg.weight"], state["conv_seg.bias"])


@pytest.mark.parametrize("aligned", [False, True])
def test_the_head_is_the_published_one(monkeypatch: pytest.MonkeyPatch, *, aligned: bool) -> None:
    monkeypatch.setattr(upernet, "CHANNELS", 16)
    widths, generator = (8, 12, 16, 24), torch.Generator().manual_seed(0)
    network = skewed(upernet.Head(widths, 5, aligned=aligned)).double()
    maps = [
        torch.randn(2, width, 64 >> i, 88 >> i, generator=generator).double()
        for i, width in enumerate(widths)
    ]
    assert tuple(maps[3].shape[2:]) == (8, 11)  # which 3 and 6 do not divide
    with torch.no_grad():
        expected = head(dict(network.state_dict()), maps, aligned=aligned)
        found = network(maps)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


CONFIG = """
model = dict(
    decode_head=dict(type='UPerHead', pool_scales=(1, 2, 3, 6), align_corners=True),
    test_cfg=dict(mode='whole'))
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(2048, 1024), flip=False,
    transforms=[dict(type='Resize', keep_ratio=True)])]
"""


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A little network by the name of a published one, with another body's classes."""
    monkeypatch.setitem(swin_dense.BODIES, "tiny", swin.Architecture(32, (1, 1, 1, 1)))
    monkeypatch.setitem(swin.VARIANTS, "tiny", swin.Architecture(32, (1, 1, 1, 1)))
    monkeypatch.setattr(upernet, "CHANNELS", 16)
    return skewed(RECIPE.network("swin_tiny", 19))


def test_a_file_is_exported_as_its_configuration_says_without_branches(
    little: Any, tmp_path: Path
) -> None:
    weights, model = tmp_path / "iter_160000.pth", tmp_path / "out.onnx"
    meta = {"config": CONFIG, "CLASSES": [f"thing {i}" for i in range(19)], "PALETTE": [[0, 0, 0]]}
    torch.save({"meta": meta, "state_dict": mmdet_names.swin(little.state_dict())}, weights)
    loaded = loading.load_network(weights, loading.NetworkOptions())
    prepared = loaded.card.preprocess
    assert (prepared.sizes, prepared.limits) == (((1024, 2048), (2048, 1024)), (1024, 2048))
    assert (prepared.mean, prepared.resampler) == ((1, 2, 3), "cv2-linear")
    assert loaded.card.class_names[3] == "thing 3"
    deploykit.export(weights, model, deploykit.ExportOptions(input_size=(96, 128)))
    kinds = {node.op_type for node in onnx.load(model).graph.node}
    assert {"If", "Loop", "NonZero", "ScatterND"}.isdisjoint(kinds)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = little.backbone.maps(images)
        expected = head(dict(little.decode_head.state_dict()), maps, aligned=True).numpy()
    found = backends.load("onnxruntime").open_session(model).run({"images": images.numpy()})["out"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if ".fpn_convs." not in k}, "missing"),
        (lambda s: {k: v for k, v in s.items() if "norm2" not in k}, "missing|not a checkpoint"),
        (
            lambda s: s | {"backbone.patch_embed.projection.weight": torch.zeros(32, 1, 4, 4)},
            "1 ch",
        ),
        (lambda s: s | {"backbone.stages.0.downsample.norm.weight": torch.tensor(1.0)}, "norm"),
        (lambda s: s | {"backbone.absolute_pos_embed": torch.zeros(1, 32, 56, 56)}, "absolute"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, little: Any, tmp_path: Path
) -> None:
    check_refused(harm(mmdet_names.swin(little.state_dict())), said, tmp_path)


def test_another_evaluation_is_refused_by_name() -> None:
    with torch.device("meta"):
        state = RECIPE.network("mpvit_tiny", 3).state_dict()
    text = CONFIG.replace("'whole'", "'slide'")
    with pytest.raises(CheckpointError, match=r"test_cfg\.mode = slide"):
        RECIPE.identify(state, Facts(beside={"meta": {"config": text}}))
