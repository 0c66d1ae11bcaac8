from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES, check_refused, skewed
from torch import nn

import deploykit
from deploykit.networks import bodies, loading, mpvit, mpvit_encoder, reparam
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("mpvit")

# variant -> parameters and multiply-adds, entries of the state dict and the digest of their names
# and shapes: of the official code, with 1000 classes.
OFFICIAL = {
    "tiny": (5843736, 1635527496, 873, "129c1e20769c35aa"),
    "xsmall": (10573448, 2950215936, 873, "a15877b12c62c5ef"),
    "small": (22892400, 4771330976, 1263, "2789ba2398df58cb"),
    "base": (74845976, 16390139552, 1419, "2518f20967f06d6e"),
}
LITTLE = mpvit.Architecture((16, 24, 16, 32), (1, 2, 1, 1), 2, (2, 1, 1, 1))
"""A network for tests: as many stages, few channels."""


@pytest.mark.parametrize("variant", OFFICIAL)
def test_parameters_multiply_adds_and_keys_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network = RECIPE.network(variant, 1000)
        images = torch.empty(1, 3, 224, 224)
    assert OFFICIAL[variant] == published.facts(network, images)
    assert RECIPE.identify(network.state_dict(), Facts()) == (variant, 1000)


@pytest.mark.parametrize(
    ("variant", "official"),
    [
        ("tiny", 1_654_163_812),
        ("xsmall", 2_971_396_560),
        ("small", 4_799_650_824),
        ("base", 16_445_326_240),
    ],
)
def test_flops_as_fvcore_counts_them_are_the_published_ones(variant: str, official: int) -> None:
    """Two for each number of a folded norm, five of a LayerNorm, one of the mean over the image.

    Those of the two einsums of each attention fvcore reads from a text of four digits.
    """
    with torch.device("meta"):
        network, images = RECIPE.network(variant, 1000), torch.empty(1, 3, 224, 224)
    seen: Counter[type[nn.Module]] = Counter()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | mpvit_encoder.Norm):
            module.register_forward_hook(
                lambda norm, _, result: seen.update({type(norm): result.numel()})
            )
    network(images)
    shape, cut = mpvit.VARIANTS[variant], 0
    for stage, (width, layers, paths) in enumerate(
        zip(shape.widths, shape.layers, shape.paths, strict=True)
    ):
        exact = (56 >> stage) ** 2 * width**2 // 8
        cut += 2 * layers * paths * (int(float(f"{2 * exact:.3e}") / 2) - exact)
    spent = OFFICIAL[variant][1] + 2 * seen[nn.BatchNorm2d] + 5 * seen[mpvit_encoder.Norm]
    assert spent + cut + shape.joined[-1] * 7 * 7 == official


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The little network, by the name of a published one."""
    monkeypatch.setitem(mpvit.VARIANTS, "tiny", LITTLE)
    return skewed(RECIPE.build("tiny", 5, (64, 64)))


def by_the_formula(layer: mpvit_encoder.Attention, x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return CoaT's equations 6 to 9, head by head and in float64."""
    double = {key: value.double() for key, value in layer.state_dict().items()}
    size = x.shape[2] // 8
    q, k, v = F.linear(x, double["qkv.weight"], double["qkv.bias"]).chunk(3, 2)
    found = []
    for head in range(8):
        window, first = [(0, 0), (1, 2), (2, 5)][(head >= 2) + (head >= 5)]
        own = slice(head * size, (head + 1) * size)
        within = slice((head - first) * size, (head - first + 1) * size)
        weight, bias = (double[f"crpe.conv_list.{window}.{n}"][within] for n in ("weight", "bias"))
        image = v[..., own].transpose(1, 2).reshape(len(x), size, *sides)
        seen = F.conv2d(image, weight, bias, padding="same", groups=size)
        factor = torch.exp(k[..., own]) / torch.exp(k[..., own]).sum(1, keepdim=True)
        context = torch.einsum("bnk,bnv->bkv", factor, v[..., own])
        whole = torch.einsum("bnk,bkv->bnv", q[..., own], context) / size**0.5
        found.append(whole + q[..., own] * seen.flatten(2).transpose(1, 2))
    return F.linear(torch.cat(found, 2), double["proj.weight"], double["proj.bias"])


def test_attention_is_the_papers_formula() -> None:
    layer = skewed(mpvit_encoder.Attention(32, mpvit_encoder.RelativePlaces(32)))
    x = torch.randn(2, 35, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        places = layer(x.transpose(1, 2).reshape(2, 32, 5, 7))
        found = places.flatten(2).transpose(1, 2)
        expected = by_the_formula(layer, x.double(), (5, 7))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_folded_it_gives_the_same_and_no_norm_of_a_convolution_is_left(little: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    folded = reparam.deployed(RECIPE, little)
    with torch.inference_mode():
        expected, found = little(images), folded(images)
    assert (expected - found).abs().max() <= 1e-5 * (expected.max() - expected.min())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def _first_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep one name of each weight, as files do that store shared memory once."""
    seen: dict[int, str] = {}
    return {k: v for k, v in state.items() if seen.setdefault(id(v), k) == k}


def _last_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return _first_names(dict(reversed(state.items())))


@pytest.mark.parametrize("kept", [_first_names, _last_names])
def test_weights_that_layers_share_may_have_one_name_or_all(
    kept: Callable[[dict[str, Tensor]], dict[str, Tensor]], little: nn.Module, tmp_path: Path
) -> None:
    state = little.state_dict(keep_vars=True)
    torch.save({"model": {k: v.detach() for k, v in kept(state).items()}}, tmp_path / "once.pth")
    read = loading.load_network(tmp_path / "once.pth", loading.NetworkOptions())
    assert len(kept(state)) < len(state)
    found = read.module.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    key = "mhca_stages.1.mhca_blks.0.MHCA_layers.1.factoratt_crpe.crpe.conv_list.2.bias"
    return state | {key: state[key] + 1}


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if ".fc2." not in k}, "missing"),
        (lambda s: {k: v for k, v in s.items() if ".cpe." not in k}, "missing"),
        (lambda s: s | {"stem.0.conv.weight": torch.zeros(8, 1, 3, 3)}, "1 channel"),
        (lambda s: s | {"cls_head.cls.weight": torch.tensor(1.0)}, "is not a checkpoint of"),
        (lambda s: s | {"mhca_stages.0.mhca_blks.0.cpe.proj.bias": torch.tensor(1.0)}, "differ"),
        (_unshared, "share their encodings"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, little: nn.Module, tmp_path: Path
) -> None:
    check_refused(harm(dict(little.state_dict())), said, tmp_path)


def test_an_mpvit_is_exported_as_a_graph_without_branches(
    little: nn.Module, tmp_path: Path
) -> None:
    weights, model = tmp_path / "mpvit.pth", tmp_path / "mpvit.onnx"
    torch.save({"model": little.state_dict()}, weights)
    deploykit.export(weights, model, deploykit.ExportOptions(input_size=(64, 64)))
    graph = onnx.load(model).graph
    kinds = [node.op_type for node in graph.node]
    assert {"If", "Loop", "NonZero", "Shape", "Gather", "Where"}.isdisjoint(kinds)
    assert kinds.count("Softmax") == 6  # one in each layer of each path
    assert "BatchNormalization" not in kinds


def test_an_image_is_made_as_each_evaluation_does() -> None:
    made = RECIPE.variant("base").preprocess
    assert (made.crop_fraction, made.interpolation) == (0.875, "bicubic")
    assert RECIPE.variant("base").protocols["timm"].prepared(made).crop_fraction == 0.9


def test_the_light_one_is_known_by_its_weights_and_no_body_of_detectors() -> None:
    network = RECIPE.network("light", 6)
    made = RECIPE.variant("light")
    assert sum(p.numel() for p in network.parameters()) == 1_321_430
    assert made.preprocess.size == (64, 64)
    assert RECIPE.identify(network.state_dict(), Facts()) == ("light", 6)
    assert not any("light" in name for name in bodies.NAMES)
    maps: list[torch.Size] = []
    network.get_submodule(made.features[0]).register_forward_hook(
        lambda *a: maps.append(a[2].shape)
    )
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 6)
    assert maps == [(2, 128, 2, 2)]
