"""DETR's masks against its layers told query by query, official counts and names, and its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from test_detr import renamed, skewed
from torch import nn

import deploykit
from deploykit.errors import CheckpointError
from deploykit.networks import detr, detr_bodies, detr_masks, detr_names, loading
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = RECIPES.load("detr_panoptic")

# As in test_detr.py, with 250 classes: multiply-adds without the heads of the five inner layers.
HEADS = 5 * 100 * (256 * 251 + 2 * 256 * 256 + 256 * 4)
OFFICIAL = (42899288, 236610892800 - HEADS, 490, "c960bdfde385ed7d")


def test_parameters_multiply_adds_and_keys_are_the_official_ones() -> None:
    with torch.device("meta"):
        network = RECIPE.network("r50", 250).requires_grad_(requires_grad=False)
        images = torch.empty(1, 3, 800, 1066)
    assert published.facts(network, images) == OFFICIAL
    known = found(RECIPE.identify(network.state_dict(), Facts(given={"detections": "7"})))
    assert known is not None
    assert (known.variant, known.classes) == ("r50", 250)
    assert "--variant r50_dc5" in known.assumed


SIZES = detr.Sizes(width=128)
CHANNELS = (6, 5, 3)


def test_looks_are_shares_of_all_places_and_heads() -> None:
    layer: Any = skewed(detr_masks.Looks(SIZES))
    queries, image = torch.randn(2, 3, 128), torch.randn(2, 10, 128)
    beside = torch.zeros(2, 1, 1, 10)
    beside[1, ..., 6:] = -1e4
    with torch.no_grad():
        made = layer(queries, image, beside)
        q, k = (
            layer.q_linear(queries).reshape(2, 3, 8, 16),
            layer.k_linear(image).reshape(2, 10, 8, 16),
        )
        looks = torch.einsum("bqhc,bnhc->bqhn", q, k) / 4
        looks[1, ..., 6:] = -torch.inf
        expected = looks.flatten(2).softmax(2).reshape(2, 3, 8, 10)
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("form", ["trained", "folded"])
def test_a_mask_is_what_the_layers_make_of_one_query(form: str) -> None:
    head: Any = skewed(detr_masks.MaskHead(SIZES, CHANNELS))
    weights = head.state_dict()
    x, looks = torch.randn(2, 128, 3, 4), torch.rand(2, 5, 8, 12)
    shapes = ((5, 8), (10, 15), (19, 30))
    maps = [torch.randn(2, c, *s) for c, s in zip(CHANNELS, shapes, strict=True)]

    def layer(name: str, x: Any, padding: int = 1) -> Any:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def normed(place: int, x: Any) -> Any:
        name = f"gn{place}"
        return F.group_norm(x, 8, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()

    with torch.no_grad():
        made = (head if form == "trained" else head.folded())(detr_masks.Given(x, looks, maps))
        for image, query in ((0, 0), (1, 3)):
            own = torch.cat([x[image], looks[image, query].reshape(8, 3, 4)])[None]
            own = normed(2, layer("lay2", normed(1, layer("lay1", own))))
            for place, each in enumerate(maps, start=1):
                own = F.interpolate(own, each.shape[2:]) + layer(
                    f"adapter{place}", each[[image]], 0
                )
                own = normed(place + 2, layer(f"lay{place + 2}", own))
            expected = layer("out_lay", own)[0]
            assert torch.allclose(made[image * 5 + query], expected, atol=1e-4)


@pytest.mark.parametrize("version", [4, 5])
def test_transformers_names_are_renamed_to_the_official_ones(version: int) -> None:
    with torch.device("meta"):
        own = RECIPE.network("r50", 7).state_dict()
    inside = {k.removeprefix("detr."): v for k, v in own.items() if k.startswith("detr.")}
    theirs = {f"detr.{k}": v for k, v in renamed(inside, version=version).items()}
    new = {"lay1": "conv1.conv", "gn1": "conv1.norm", "lay2": "conv2.conv", "gn2": "conv2.norm"}
    for stage in range(3):
        new[f"adapter{stage + 1}"] = f"fpn_stages.{stage}.fpn_adapter"
        new[f"lay{stage + 3}"] = f"fpn_stages.{stage}.refine.conv"
        new[f"gn{stage + 3}"] = f"fpn_stages.{stage}.refine.norm"
    new |= {"out_lay": "output_conv", "q_linear": "q_proj", "k_linear": "k_proj"}
    for key in own.keys() - {f"detr.{name}" for name in inside}:
        part, layer, last = key.split(".")
        theirs[f"{part}.{new[layer] if version == 5 else layer}.{last}"] = own[key]
    state = detr_names.with_masks(theirs)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}


class Patches(nn.Module):
    """A body of four maps, with the names of a ResNet-50 that are looked at."""

    channels, channels_of = 16, (4, 6, 8, 16)

    def __init__(self, depth: int, *, dilated: bool) -> None:
        super().__init__()
        del depth, dilated
        self.body = nn.Module()
        self.body.conv1 = nn.Conv2d(3, 4, 4, 4)
        self.body.layer2 = nn.Conv2d(4, 6, 2, 2)
        self.body.layer3 = nn.Sequential(nn.Conv2d(6, 8, 2, 2), *(nn.Tanh() for _ in range(5)))
        for place in range(1, 6):  # six blocks are a ResNet-50's
            self.body.layer3[place].weight = nn.Parameter(torch.zeros(1))
        self.body.layer4 = nn.Conv2d(8, 16, 2, 2)

    def forward(self, images: torch.Tensor) -> Any:
        body: Any = self.body
        maps = [body.conv1(images).tanh()]
        for stage in (body.layer2, body.layer3, body.layer4):
            maps.append(stage(maps[-1]))
        return tuple(maps)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network of one layer on a simple body, five of whose objects have masks."""
    monkeypatch.setattr(detr, "LAYERS", 1)
    monkeypatch.setattr(detr_bodies, "AllStages", Patches)
    body: Any = Patches(50, dilated=False)
    return skewed(detr_masks.Network(body, 7, detr.Sizes(layers=1), detections=5))


def test_masks_span_the_input_and_are_cut_at_the_image(small: Any, tmp_path: Path) -> None:
    weights, model = tmp_path / "net.pth", tmp_path / "net.onnx"
    torch.save({"model": small.state_dict()}, weights)
    options = deploykit.ExportOptions(
        input_size=(96, 96), protocol="padded", settings={"detections": "5"}
    )
    deploykit.export(weights, model, options)
    kinds = {node.op_type for node in onnx.load(model).graph.node}
    assert kinds.isdisjoint({"If", "Loop", "NonZero"})
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    result = deploykit.load(model)(image)
    variant = RECIPE.variant("r50")
    made = variant.protocol("padded").prepared(variant.sized((96, 96)))
    pixels, _ = made(image)
    with torch.inference_mode():
        _, scores, _, _, masks = small(torch.from_numpy(pixels)[None], torch.tensor([[64.0, 96]]))
    kept = len(result.scores)
    assert kept > 0
    assert np.allclose(result.scores, scores[0, :kept], atol=1e-5)
    assert np.allclose(result.masks, masks[0, :kept], atol=1e-5)
    grown = F.interpolate(masks[:, :kept].logit(), (96, 96), mode="bilinear")[0, :, :64]
    for (top, left, values), expected in zip(result.areas((64, 96)), grown > 0, strict=True):
        assert (top, left, values.shape) == (0, 0, (64, 96))
        assert (values == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if "mask_head" not in k}, "is not a checkpoint of"),
        (lambda s: {k: v for k, v in s.items() if ".gn3." not in k}, "missing"),
        (lambda s: s | {"detr.query_embed.weight": torch.zeros(9, 8)}, "is not a checkpoint of"),
        (lambda s: s | {"mask_head.lay1.weight": torch.zeros(1)}, "lay1"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, tmp_path: Path, small: Any
) -> None:
    torch.save(harm(dict(small.state_dict())), tmp_path / "harmed.pth")
    with pytest.raises(CheckpointError, match=said):
        loading.load_network(tmp_path / "harmed.pth", loading.NetworkOptions())
