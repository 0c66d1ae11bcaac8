from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
from random_weights import HALVES
from torch import nn

import deploykit
from deploykit.errors import CheckpointError
from deploykit.networks import detr, detr_bodies, detr_names, detr_places, loading
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = RECIPES.load("detr")

# Multiply-adds that the official graph spends on the heads of the five inner layers of its decoder.
HEADS = 5 * 100 * (256 * 92 + 2 * 256 * 256 + 256 * 4)
# variant -> parameters, multiply-adds at 800x1066, entries of the state dict and the digest of
# their names and shapes, with 91 classes; the sums and the names are those of the official code.
OFFICIAL = {
    "r50": (41524768, 81245056000 - HEADS, 458, "01f0ab8e837e85ae"),
    "r50_dc5": (41524768, 173251456000 - HEADS, 458, "01f0ab8e837e85ae"),
    "r101": (60464672, 144693734400 - HEADS, 713, "e7bf88cbb1e5dd97"),
    "r101_dc5": (60464672, 236700134400 - HEADS, 713, "e7bf88cbb1e5dd97"),
}


def skewed(network: nn.Module) -> nn.Module:
    """Give a network random weights, and uneven norms."""
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(torch.exp(torch.randn(value.shape, generator=generator) / 2))
        elif "query_embed" in key:
            value.normal_(0, 1, generator=generator)
        elif value.ndim == 1 and key.endswith("weight"):
            value.copy_(0.6 * torch.exp(torch.randn(value.shape, generator=generator) / 3))
        elif value.ndim == 1:
            value.normal_(0, 0.2, generator=generator)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("variant", OFFICIAL)
def test_parameters_multiply_adds_and_keys_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network = RECIPE.network(variant, 91).requires_grad_(requires_grad=False)
        images = torch.empty(1, 3, 800, 1066)
    assert OFFICIAL[variant] == published.facts(network, images)


@pytest.mark.parametrize("form", ["trained", "folded"])
def test_attention_gives_what_torchs_gives(form: str) -> None:
    theirs = skewed(nn.MultiheadAttention(detr.WIDTH, detr.HEADS, batch_first=True))
    ours = detr.Attention(detr.Sizes()).eval()
    ours.load_state_dict(theirs.state_dict())
    queries, keys, values = torch.randn(3, 2, 9, detr.WIDTH).unbind()
    layer = ours if form == "trained" else ours.folded()
    with torch.inference_mode():
        expected, found_ = theirs(queries, keys, values)[0], layer(queries, keys, values)
    assert (expected - found_).abs().max() <= 1e-5 * expected.abs().max()


def test_an_encoder_layer_gives_what_torchs_gives() -> None:
    theirs = skewed(
        nn.TransformerEncoderLayer(detr.WIDTH, detr.HEADS, detr.INNER, batch_first=True)
    )
    ours = detr.EncoderLayer(detr.Sizes()).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, detr.WIDTH)
    with torch.no_grad():
        expected, found_ = theirs(x), ours(x, torch.zeros(1, 7, detr.WIDTH))
    assert (expected - found_).abs().max() <= 1e-5 * expected.abs().max()


def test_places_are_embedded_by_the_formula() -> None:
    made = detr_places.positions(3, 5, detr.WIDTH)[0].reshape(3, 5, detr.WIDTH)
    angle = 2 * np.pi * np.array([2 / 3, 4 / 5]) / 10_000 ** (2 * 7 / 128)
    assert np.allclose(made[1, 3, [14, 15]], [np.sin(angle[0]), np.cos(angle[0])], atol=1e-5)
    assert np.allclose(made[1, 3, [142, 143]], [np.sin(angle[1]), np.cos(angle[1])], atol=1e-5)


def test_places_beside_an_image_are_not_looked_at_and_the_others_count_within_it() -> None:
    canvas, shape, sizes = (50, 70), (4, 5), torch.tensor([[50.0, 70], [25, 70], [26, 29]])
    made = detr_places.Padding()(torch.zeros(3, 8, *shape), sizes, canvas)
    inside = torch.zeros(3, *canvas)
    for one, (height, width) in zip(inside, sizes.int().tolist(), strict=True):
        one[:height, :width] = 1
    inside = nn.functional.interpolate(inside[None], size=shape)[0]
    assert torch.equal(inside.flatten(1) > 0, made.beside[:, 0, 0] == 0)
    for axis, channels in ((1, slice(0, 4)), (2, slice(4, 8))):
        place = inside.cumsum(axis) / inside.sum(axis, keepdim=True).clamp(min=1) * 2 * torch.pi
        for pair, divisor in enumerate((1, 100)):
            waves = torch.stack([(place / divisor).sin(), (place / divisor).cos()], -1)
            found_ = made.place.reshape(3, *shape, 8)[..., channels][..., 2 * pair : 2 * pair + 2]
            assert torch.allclose(waves[inside > 0], found_[inside > 0], atol=1e-5)


def test_attention_leaves_out_the_same_keys_as_torchs() -> None:
    theirs = skewed(nn.MultiheadAttention(detr.WIDTH, detr.HEADS, batch_first=True))
    ours = detr.Attention(detr.Sizes()).eval()
    ours.load_state_dict(theirs.state_dict())
    queries, keys, values = torch.randn(3, 2, 9, detr.WIDTH).unbind()
    out = torch.arange(9) >= torch.tensor([[5], [8]])
    beside = (out * detr_places.UNSEEN)[:, None, None]
    with torch.inference_mode():
        expected = theirs(queries, keys, values, key_padding_mask=out)[0]
        found_ = ours(queries, keys, values, beside)
    assert (expected - found_).abs().max() <= 1e-5 * expected.abs().max()


def test_an_image_in_a_larger_canvas_gives_what_it_gives_alone(small: Any) -> None:
    """Its body sees no pixel of one patch in another."""
    image = torch.randn(2, 3, 64, 96)
    canvas = torch.randn(2, 3, 128, 160)
    canvas[:, :, :64, :96] = image
    with torch.inference_mode():
        alone, there = small(image), small(canvas, torch.tensor([[64.0, 96]] * 2))
    for one, other in zip(alone, there, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)


def test_a_padded_detr_takes_sizes_beside_images(small: Any, tmp_path: Path) -> None:
    weights, model = tmp_path / "detr.pth", tmp_path / "detr.onnx"
    torch.save({"model": small.state_dict()}, weights)
    options = deploykit.ExportOptions(input_size=(96, 96), protocol="padded")
    deploykit.export(weights, model, options)
    assert [given.name for given in onnx.load(model).graph.input] == ["images", "image_sizes"]
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    result = deploykit.load(model)(image)
    made = RECIPE.variant("r50").protocol("padded").prepared(RECIPE.variant("r50").sized((64, 96)))
    pixels, _ = made(image)
    with torch.inference_mode():
        boxes, scores, *_ = small(torch.from_numpy(pixels)[None])
    assert np.allclose(result.scores, scores[0, : len(result.scores)], atol=1e-4)
    assert np.allclose(result.boxes[0], (boxes[0, 0] / 2).clip(min=0), atol=0.05)


def test_images_are_made_for_a_padded_detr_as_by_its_authors() -> None:
    """The short side is 800 but for a long one above 1333, and sides are cut to whole pixels."""
    variant = RECIPE.variant("r50")
    made = variant.protocol("padded").prepared(variant.sized(None))
    assert made.sizes == ((800, 1333), (1333, 800))
    for size, scaled, canvas in (
        ((480, 641), (800, 1068), (800, 1333)),
        ((641, 480), (1068, 800), (1333, 800)),
        ((300, 1000), (400, 1333), (800, 1333)),
    ):
        fit = made.fit(*size)
        assert (fit.sides, fit.canvas) == (scaled, canvas)


def test_a_dilated_stage_is_stated_and_else_said_to_be_assumed_away() -> None:
    with torch.device("meta"):
        state = RECIPE.network("r50", 91).state_dict()
    plain, dilated = (found(RECIPE.identify(state, Facts(variant=v))) for v in (None, "r50_dc5"))
    assert plain is not None
    assert dilated is not None
    assert (plain.variant, plain.classes, dilated.variant) == ("r50", 91, "r50_dc5")
    assert "--variant r50_dc5" in plain.assumed
    assert RECIPE.class_names(91)[1] == "person"


def test_a_light_one_is_known_by_its_weights_alone(tmp_path: Path) -> None:
    """Every size of it differs from the published ones'."""
    torch.manual_seed(0)
    state = RECIPE.network("light", 6).state_dict()
    light = found(RECIPE.identify(state, Facts()))
    assert light is not None
    assert (light.variant, light.classes, light.assumed) == ("light", 6, "")
    torch.save(state, tmp_path / "light.pth")
    made = loading.load_network(tmp_path / "light.pth", loading.NetworkOptions())
    attention, inner, norm = 4 * 128 * 129, 128 * 512 + 512 + 512 * 128 + 128, 2 * 128
    coder = 3 * (attention + inner + 2 * norm) + 3 * (2 * attention + inner + 3 * norm) + norm
    heads = 25 * 128 + 129 * 7 + 2 * 128 * 129 + 129 * 4 + 128 * 129
    body = 4768 + 37_120 + 131_712 + 525_568  # the stem and three stages
    assert sum(p.numel() for p in made.module.parameters()) == coder + heads + body
    assert made.card.preprocess.size == (160, 160)
    for key in ("query_embed.weight", "backbone.0.body.conv1.weight"):
        assert RECIPE.identify(state | {key: state[key][:-1]}, Facts()) is None


def renamed(state: dict[str, Any], *, version: int) -> dict[str, Any]:
    """Return official weights by the names of transformers."""
    new = version == 5
    pairs = [
        ("backbone.0.body.", "model.backbone." + ("" if new else "conv_encoder.") + "model."),
        ("input_proj.", "model.input_projection."),
        ("query_embed.", "model.query_position_embeddings."),
        ("class_embed.", "class_labels_classifier."),
        ("bbox_embed.", "bbox_predictor."),
        ("transformer.", "model."),
        (".out_proj.", ".o_proj." if new else ".out_proj."),
        (".linear", ".mlp.fc" if new else ".fc"),
        (".multihead_attn.", ".encoder_attn."),
        (".decoder.norm.", ".decoder.layernorm."),
    ]
    made = {}
    for key, value in state.items():
        inside = key.startswith("transformer.")
        norms = ["self_attn_", "encoder_attn_", "final_"] if ".decoder." in key else ["self_attn_"]
        norms = norms if ".decoder." in key else [*norms, "final_"]
        name = key
        for place, norm in enumerate(norms, start=1):
            name = name.replace(f".norm{place}.", f".{norm}layer_norm.") if inside else name
        for old, given in pairs:
            name = name.replace(old, given) if inside or not old.startswith(".") else name
        if "in_proj_" in name:
            for part, letter in zip(value.chunk(3), "qkv", strict=True):
                made[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            made[name] = value
    return made


@pytest.mark.parametrize("version", [4, 5])
def test_transformers_names_are_renamed_to_the_official_ones(version: int) -> None:
    with torch.device("meta"):
        own = RECIPE.network("r50", 7).state_dict()
        theirs = renamed(own, version=version)
        state = detr_names.official(theirs)
    assert "model.decoder.layers.0.encoder_attn.k_proj.bias" in theirs
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}


class Patches(nn.Module):
    """A body of one step, with the names of a ResNet-50 that are looked at."""

    def __init__(self, depth: int, *, dilated: bool) -> None:
        super().__init__()
        del depth, dilated
        self.channels = 2048
        self.body = nn.Module()
        self.body.conv1 = nn.Conv2d(3, 8, 32, 32)
        self.body.layer3 = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(6)))
        self.body.layer4 = nn.Conv2d(8, 2048, 1)

    def forward(self, images: torch.Tensor) -> Any:
        body: Any = self.body
        return body.layer4(body.layer3(body.conv1(images)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A DETR of one layer on a simple body."""
    monkeypatch.setattr(detr, "LAYERS", 1)
    monkeypatch.setattr(detr_bodies, "Body", Patches)
    return skewed(RECIPE.network("r50", 7))


def test_a_detr_is_exported_as_a_graph_without_branches(small: nn.Module, tmp_path: Path) -> None:
    weights, model = tmp_path / "detr.pth", tmp_path / "detr.onnx"
    torch.save({"model": small.state_dict()}, weights)
    deploykit.export(weights, model, deploykit.ExportOptions(input_size=(64, 96)))
    nodes = onnx.load(model).graph.node
    assert {node.op_type for node in nodes}.isdisjoint({"If", "Loop", "NonZero"})
    assert not any("decoder.layers.0.self_attn" in node.name for node in nodes), "of no image"
    image = np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)
    result = deploykit.load(model)(image)
    pixels, _ = RECIPE.variant("r50").sized((64, 96))(image)
    with torch.inference_mode():
        logits, boxes = detr.Network.raw(small, torch.from_numpy(pixels)[None])  # type: ignore[arg-type]  # it is one
    best = logits.softmax(-1)[0, :, :-1].max(-1)
    first = int(best.values.argmax())
    assert abs(float(result.scores[0]) - float(best.values[first])) < 1e-4
    assert int(result.classes[0]) == int(best.indices[first])
    centre = boxes[0, first, :2].numpy() * [72, 48]
    sides = boxes[0, first, 2:].numpy() * [72, 48]
    corners = np.concatenate([centre - sides / 2, centre + sides / 2])
    assert np.allclose(result.boxes[0], corners.clip(0, [72, 48, 72, 48]), atol=0.01)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if ".linear1." not in k}, "missing"),
        (lambda s: s | {"query_embed.weight": torch.zeros(100, 128)}, "is not a checkpoint of"),
        (lambda s: s | {"class_embed.weight": torch.tensor(1.0)}, "is not a checkpoint of"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, tmp_path: Path, small: nn.Module
) -> None:
    torch.save(harm(dict(small.state_dict())), tmp_path / "harmed.pth")
    with pytest.raises(CheckpointError, match=said):
        loading.load_network(tmp_path / "harmed.pth", loading.NetworkOptions())
