from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import published
import pytest
import torch
from random_weights import HALVES, TABLES, check_refused, skewed
from torchvision.models.swin_transformer import SwinTransformer

import deploykit
from deploykit.networks import reparam, swin
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = RECIPES.load("swin")

# variant -> parameters, multiply-adds, entries of the state dict and the digest of their names and
# shapes: of the official code, with 1000 classes.
OFFICIAL = {
    "tiny": (28288354, 4490566656, 173, "e3d497d6ecbcbf76"),
    "small": (49606258, 8740875264, 329, "0c2bebe9dbb16dce"),
    "base": (87768224, 15430946816, 329, "e0b947080a2004a2"),
    "base_384": (87903584, 47083134976, 329, "dc8e798c39f0161a"),
    "large": (196532476, 34475759616, 329, "6448c1fb658f43d3"),
    "large_384": (196735516, 103919087616, 329, "537b5529e56b2af5"),
}


@pytest.mark.parametrize("variant", OFFICIAL)
def test_parameters_multiply_adds_and_keys_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network = RECIPE.network(variant, 1000)
        images = torch.empty(1, 3, *RECIPE.variant(variant).preprocess.size)
    assert OFFICIAL[variant] == published.facts(network, images)


@pytest.mark.parametrize("sides", [(56, 56), (56, 112)])
def test_shifted_windows_give_what_torchvision_gives_trained_and_folded(
    sides: tuple[int, int],
) -> None:
    theirs = skewed(
        SwinTransformer([4, 4], 32, [2, 2], [1, 2], [7, 7], num_classes=5, stochastic_depth_prob=0),
        spreads=TABLES,
    )
    ours = swin.Classifier(swin.Architecture(32, (2, 2)), 5, sides)  # at last one row of windows
    ours.load_state_dict(dict(RECIPE.adapt(theirs.state_dict())))
    images = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, trained = theirs(images), ours.eval()(images)
        folded = reparam.deployed(RECIPE, ours)(images)
    spread = expected.max() - expected.min()
    assert (expected - trained).abs().max() <= 1e-5 * spread
    assert (expected - folded).abs().max() <= 1e-5 * spread


def test_a_folded_network_gives_patches_that_are_apart_a_share_of_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(more[1])
        return original(q, k, v, *more)

    original = swin.attended
    monkeypatch.setattr(swin, "attended", attended)
    layer, mask = swin.Attention(64, 4).eval(), swin.shift_mask((8, 8), 4, (2, 2))
    patches = torch.randn(4, 16, 64)
    with torch.inference_mode():
        for each in (layer, layer.folded()):
            each(patches, mask)
    alike = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    few, none = ((alike + added).softmax(-1)[(mask < 0).expand_as(alike)] for added in seen)
    assert ((few > 0) & (few < torch.finfo(torch.float32).tiny)).any()  # processors are slow here
    assert not none.any()


@pytest.mark.parametrize("variant", ["tiny", "base_384"])
def test_timms_and_torchvisions_names_are_renamed_to_the_official_ones(variant: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    name = {"tiny": "tiny_patch4_window7_224", "base_384": "base_patch4_window12_384"}[variant]
    a = swin.VARIANTS[variant]
    heads = [(a.width << i) // swin.HEAD for i in range(4)]
    with torch.device("meta"):
        own = RECIPE.network(variant, 1000).state_dict()
        made = [
            timm.create_model(f"swin_{name}"),
            SwinTransformer([4, 4], a.width, list(a.depths), heads, [a.window] * 2),
        ]
    for network in made:
        state = RECIPE.adapt(network.state_dict())
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
        assert RECIPE.identify(state, Facts()) == (variant, 1000)


def test_timms_weights_give_what_timm_gives() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: extra `zoo`")
    theirs: Any = skewed(
        timm.models.SwinTransformer(
            56, 4, 3, 5, embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=7
        ),
        spreads=TABLES,
    )
    # Maps of 7 by 7 cannot be halved evenly: ours are made of the first two stages.
    state = RECIPE.adapt(theirs.state_dict())
    ours = swin.Classifier(swin.Architecture(32, (2, 2)), 5, (56, 56)).eval()
    kept = ("patch_embed.", "layers.0.", "layers.1.")
    part = {k: v for k, v in state.items() if k.startswith(kept) and "1.downsample" not in k}
    ours.load_state_dict(part, strict=False)
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.layers[1](theirs.layers[0](theirs.patch_embed(images)))
        found = ours.layers(ours.patch_embed(images))
    assert (expected - found).abs().max() <= 1e-5 * (expected.max() - expected.min())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if ".fc1." not in k}, "missing"),
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(96, 1, 4, 4)}, "1 channel"),
        (lambda s: s | {"layers.0.blocks.0.attn.qkv.weight": torch.tensor(1.0)}, "qkv"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    state = dict(RECIPE.network("tiny", 5).state_dict())
    check_refused(harm(state), said, tmp_path)


def test_a_swin_is_exported_as_a_graph_without_branches_and_its_biases_stand_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(swin.VARIANTS, "tiny", swin.Architecture(32, (2, 2)))
    weights, model = tmp_path / "swin.pth", tmp_path / "swin.onnx"
    network = skewed(RECIPE.build("tiny", 5, (224, 224)), spreads=TABLES)
    torch.save({"model": network.state_dict()}, weights)
    deploykit.export(weights, model, deploykit.ExportOptions())
    graph = onnx.load(model).graph
    kinds = [node.op_type for node in graph.node]
    assert {"If", "Loop", "NonZero", "Gather", "ScatterND", "Where"}.isdisjoint(kinds)
    assert kinds.count("Softmax") == 4
    shapes = [tuple(each.dims) for each in graph.initializer]
    assert (1, 49, 49) in shapes
    assert (64, 1, 49, 49) in shapes


def test_an_image_is_made_as_each_evaluation_does() -> None:
    made = RECIPE.variant("base").preprocess
    assert (made.crop_fraction, made.interpolation) == (0.875, "bicubic")
    ways = RECIPE.variant("base").protocols
    assert ways["timm"].prepared(made).crop_fraction == 0.9
    assert round(224 / ways["torchvision"].prepared(made).crop_fraction) == 238
    assert RECIPE.variant("base_384").preprocess.resize == "stretch"


def test_the_light_one_is_known_by_its_weights_trained_and_folded() -> None:
    network = RECIPE.network("light", 6)
    made = RECIPE.variant("light")
    assert sum(p.numel() for p in network.parameters()) == 2_248_098
    assert (made.preprocess.size, made.size_multiple) == ((64, 64), 64)
    for kind in (network, reparam.deployed(RECIPE, network)):
        assert RECIPE.identify(kind.state_dict(), Facts()) == ("light", 6)
    maps: list[torch.Size] = []
    network.get_submodule(made.features[0]).register_forward_hook(
        lambda *a: maps.append(a[2].shape)
    )
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 6)
    assert maps == [(2, 4, 4, 256)]
