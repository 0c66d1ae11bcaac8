"""Deformable DETR against sums over all cells, its official counts and names, and its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
from random_weights import HALVES
from test_detr import skewed
from torch import nn

import deploykit
from deploykit.errors import CheckpointError
from deploykit.networks import (
    deformable,
    deformable_attention,
    deformable_boxes,
    deformable_names,
    detr_bodies,
    loading,
)
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = RECIPES.load("deformable_detr")

# Multiply-adds that the official graph spends on heads that evaluation does not read: those of the
# five inner layers of its decoder and, where boxes are refined, on those of boxes a second time.
SIDES = 300 * (2 * 256 * 256 + 256 * 4)
SCORES = 5 * 300 * 256 * 91
# variant -> parameters, multiply-adds at 800x1066, entries of the state dict and the digest of
# their names and shapes, with 91 classes; the sums and the names are those of the official code.
OFFICIAL = {
    "r50": (40069665, 163960056832 - SCORES - 5 * SIDES, 561, "6c9d8c8328464e3f"),
    "r50_refined": (40849660, 164197829632 - SCORES - 6 * SIDES, 597, "158c54dc580cea97"),
    "r50_single_scale": (34066593, 76358118400 - SCORES - 5 * SIDES, 549, "e07ea3984d1a9256"),
}
TWO_STAGE = (41181529, 630, "0c958c56061c1909")


@pytest.mark.parametrize("variant", OFFICIAL)
def test_parameters_multiply_adds_and_keys_are_the_official_ones(variant: str) -> None:
    with torch.device("meta"):
        network = RECIPE.network(variant, 91).requires_grad_(requires_grad=False)
        images = torch.empty(1, 3, 800, 1066)
    assert OFFICIAL[variant] == published.facts(network, images)


def test_parameters_and_keys_of_the_two_stage_form_are_the_official_ones() -> None:
    with torch.device("meta"):
        network = RECIPE.network("r50_two_stage", 91)
    entries, whole = published.digest(network.state_dict())
    assert (sum(p.numel() for p in network.parameters()), entries, whole[:16]) == TWO_STAGE


SHAPES = ((4, 6), (2, 3))
SMALL = deformable_attention.Sizes(width=32, inner=48, layers=2, queries=7, levels=2, points=3)


def near(places: Any, count: int) -> Any:
    """Return how much of each of `count` cells a place between 0 and 1 reads, [..., count]."""
    cells = torch.arange(count) + 0.5
    return (1 - (places[..., None] * count - cells).abs()).clamp(min=0)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("form", ["points", "boxes"])
def test_attention_is_a_sum_over_all_cells_of_all_maps(form: str, *, folded: bool) -> None:
    layer: Any = skewed(deformable_attention.Attention(SMALL))
    layer = layer.folded() if folded else layer
    generator = torch.Generator().manual_seed(1)
    asked, cells = (torch.randn(2, n, 32, generator=generator) for n in (5, 30))
    reference = torch.rand(2, 5, 2 if form == "points" else 4, generator=generator)
    with torch.no_grad():
        answer = layer(asked, reference, deformable_attention.Pyramid(cells, SHAPES))
        offsets = layer.sampling_offsets(asked).reshape(2, 5, 8, 2, 3, 2)
        shares = (
            layer.attention_weights(asked).reshape(2, 5, 8, 6).softmax(-1).reshape(2, 5, 8, 2, 3)
        )
        values = layer.value_proj(cells).reshape(2, 30, 8, 4)
        mixed, first = torch.zeros(2, 5, 8, 4), 0
        for level, (height, width) in enumerate(SHAPES):
            there: Any = reference[:, :, None, None, :2]
            if form == "points":
                places = there + offsets[:, :, :, level] / torch.tensor([width, height])
            else:
                sides = reference[:, :, None, None, 2:]
                places = there + offsets[:, :, :, level] / 3 * sides / 2
            one = values[:, first : first + height * width].reshape(2, height, width, 8, 4)
            weight = (
                near(places[..., 1], height)[..., None] * near(places[..., 0], width)[..., None, :]
            )
            mixed += torch.einsum("bqhp,bqhpyx,byxhd->bqhd", shares[:, :, :, level], weight, one)
            first += height * width
        expected = layer.output_proj(mixed.flatten(2))
    assert (expected - answer).abs().max() <= 1e-5 * expected.abs().max()


def test_references_lie_in_the_middle_of_cells() -> None:
    made = deformable_boxes.centres(SHAPES)[0]
    assert made.shape == (30, 2)
    assert np.allclose(made[[0, 7, 29]], [[1 / 12, 1 / 8], [3 / 12, 3 / 8], [5 / 6, 3 / 4]])


def test_references_of_queries_need_no_matrix_product() -> None:
    layer: Any = skewed(deformable.Reference(32, 2))
    queries = torch.randn(1, 7, 32)
    with torch.no_grad():
        assert torch.allclose(layer.folded()(queries), layer(queries), atol=1e-6)


def test_proposals_are_boxes_inside_the_image() -> None:
    logits, inside = deformable_boxes.proposals(((4, 6), (120, 2)))
    box = 1 / (1 + np.exp(-logits[0, [7, 24 + 21]]))
    assert np.allclose(box, [[0.25, 0.375, 0.05, 0.05], [0.75, 10.5 / 120, 0.1, 0.1]], atol=1e-6)
    assert not inside[0, 24].any()  # its middle is half a cell, 0.004, from the edge
    assert inside[0, :24].all()
    assert (logits[0, 24] == deformable_boxes.FAR).all()


def test_a_reference_is_moved_by_logits() -> None:
    shift, sigmoid = torch.tensor([[[0.5, -1.0, 0.3, 2.0]]]), torch.sigmoid
    box = torch.tensor([[[0.2, 0.9, 0.4, 1.0]]])
    refine = deformable_boxes.Refine()
    assert torch.allclose(refine(shift, box)[..., :3], sigmoid(shift + torch.logit(box))[..., :3])
    assert torch.allclose(refine(shift, box)[..., 3], torch.tensor(1.0), atol=1e-5)
    point = torch.cat([torch.logit(box[..., :2]), torch.zeros(1, 1, 2)], -1)
    assert torch.allclose(refine(shift, box[..., :2]), sigmoid(shift + point))


def test_the_best_cells_become_boxes_and_are_embedded_by_the_formula() -> None:
    logits = torch.randn(1, 5, 4)
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3]])
    boxes, embedded = deformable_boxes.Choose(2, 16)(scores, logits)
    assert torch.equal(boxes[0], logits[0, [1, 3]].sigmoid())
    angle = boxes[0, 1, 2] * 2 * torch.pi / 10_000 ** (2 * 5 / 16)
    expected = torch.stack([angle.sin(), angle.cos()])
    assert torch.allclose(embedded[0, 1, 2 * 16 + 10 : 2 * 16 + 12], expected, atol=1e-6)


def test_the_surest_pairs_of_a_query_and_a_class_are_found() -> None:
    logits = torch.tensor([[[0.0, 3.0, -1.0], [2.0, 1.0, -2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.1, 0.1]]])
    found_, scores, classes, count = deformable_boxes.Select(4)(logits, boxes, (50, 100))
    assert torch.allclose(scores[0], torch.tensor([3.0, 2, 1, 0]).sigmoid())
    assert classes[0].tolist() == [1, 0, 1, 0]
    assert count.tolist() == [4]
    corners = torch.tensor(
        [[40.0, 15, 60, 35], [20, 35, 30, 40], [20, 35, 30, 40], [40, 15, 60, 35]]
    )
    assert torch.allclose(found_[0], corners, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "asked"),
    [
        ("r50_refined", None),
        ("r101_two_stage", None),
        ("r50_single_scale", None),
        ("r50_single_scale_dc5", "r50_single_scale_dc5"),
    ],
)
def test_a_variant_is_known_by_its_keys(variant: str, asked: str | None) -> None:
    with torch.device("meta"):
        state = RECIPE.network(variant, 91).state_dict()
    known = found(RECIPE.identify(state, Facts(variant=asked)))
    assert known is not None
    assert (known.variant, known.classes) == (variant, 91)
    assert ("no dilated last stage" in known.assumed) == (variant == "r50_single_scale")
    assert known.settings["queries"].origin == ("assumed" if "two" in variant else "file")
    assert RECIPE.class_names(91)[1] == "person"


def renamed(state: dict[str, Any], *, version: int) -> dict[str, Any]:
    """Return official weights by the names of transformers, heads under one name only."""
    new = version == 5
    norms = {
        "encoder": ("self_attn_", "final_"),
        "decoder": ("encoder_attn_", "self_attn_", "final_"),
    }
    body = "model.backbone." + ("" if new else "conv_encoder.") + "model."
    made = {}
    for key, value in state.items():
        name = key
        if key.startswith("transformer.decoder.") and "_embed." in key:
            continue
        parts = key.split(".")
        if key.startswith("transformer."):
            part = norms.get(parts[1], ())
            for place, norm in enumerate(part, start=1):
                name = name.replace(f".norm{place}.", f".{norm}layer_norm.")
            name = name.replace("transformer.", "model.").replace("cross_attn", "encoder_attn")
            name = name.replace(".linear", ".mlp.fc" if new else ".fc")
            name = name.replace(".out_proj.", ".o_proj.") if new else name
        name = name.replace("backbone.0.body.", body)
        if name.startswith(("input_proj", "query_embed")):
            name = "model." + name.replace("query_embed", "query_position_embeddings")
        if "in_proj_" in name:
            for piece, letter in zip(value.chunk(3), "qkv", strict=True):
                made[name.replace("in_proj_", f"{letter}_proj.")] = piece
        else:
            made[name] = value
    return made


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("variant", ["r50", "r50_two_stage"])
def test_transformers_names_are_renamed_to_the_official_ones(variant: str, version: int) -> None:
    with torch.device("meta"):
        own = RECIPE.network(variant, 7).state_dict()
    theirs = renamed(own, version=version)
    if variant == "r50":  # one head, stored once
        theirs = {k: v for k, v in theirs.items() if "_embed." not in k or "_embed.0." in k}
    state = deformable_names.official(theirs)
    assert "model.decoder.layers.0.encoder_attn.sampling_offsets.bias" in theirs
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}


def test_heads_that_differ_are_of_refined_boxes() -> None:
    """Some files name each head once."""
    layer = "transformer.decoder.layers"
    bare = {f"{layer}.{i}.norm1.weight": torch.ones(2) for i in range(2)}
    heads = {f"bbox_embed.{i}.layers.0.weight": torch.full((2, 2), 1.0 * i) for i in range(2)}
    made = deformable_names.complete(bare | heads)
    assert torch.equal(made["transformer.decoder.bbox_embed.1.layers.0.weight"], torch.ones(2, 2))
    alike = bare | {key: torch.ones(2, 2) for key in heads}
    assert deformable_names.complete(alike).keys() == alike.keys()


class Patches(nn.Module):
    """A body of three maps, with the names of a ResNet-50 that are looked at."""

    channels_of = (8, 8, 16)

    def __init__(self, depth: int, *, dilated: bool) -> None:
        super().__init__()
        del depth, dilated
        self.body = nn.Module()
        self.body.conv1 = nn.Conv2d(3, 8, 8, 8)
        self.body.layer3 = nn.Sequential(
            *(nn.Conv2d(8, 8, 2, 2 if i == 0 else 1, i % 2) for i in range(6))
        )
        self.body.layer4 = nn.Conv2d(8, 16, 2, 2)

    def forward(self, images: torch.Tensor) -> Any:
        body: Any = self.body
        first = body.conv1(images).tanh()
        second = body.layer3(first)
        return first, second, body.layer4(second)


def small(kind: str) -> deformable.Network:
    """Return a network of one layer on a simple body."""
    two = kind == "two_stage"
    sizes = deformable_attention.Sizes(32, 8, 48, 1, 7, 4, 2, refined=two, two_stage=two)
    body: Any = Patches(50, dilated=False)
    made = deformable.Network(body, 5, sizes)
    skewed(made)
    return made


@pytest.mark.parametrize("kind", ["plain", "two_stage"])
def test_its_graph_has_no_branches_and_finds_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detr_bodies, "Stages", Patches)
    network, weights, model = small(kind), tmp_path / "net.pth", tmp_path / "net.onnx"
    torch.save({"model": network.state_dict()}, weights)
    given = {"detections": "9"} | ({"queries": "7"} if kind == "two_stage" else {})
    options = deploykit.ExportOptions(input_size=(64, 96), settings=given)
    deploykit.export(weights, model, options)
    kinds = [node.op_type for node in onnx.load(model).graph.node]
    assert {"If", "Loop", "NonZero"}.isdisjoint(kinds)
    floats = [node.op_type for node in onnx.load(model).graph.node if "reference" in node.name]
    assert {"Gemm", "MatMul"}.isdisjoint(floats)
    assert kinds.count("GridSample") == 2 * 4  # both halves, levels
    image = np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)
    result = deploykit.load(model)(image)
    pixels, _ = RECIPE.variant("r50").sized((64, 96))(image)
    with torch.inference_mode():
        logits, boxes = network.raw(torch.from_numpy(pixels)[None])
    scores, order = logits[0].sigmoid().flatten().sort(descending=True)
    assert np.allclose(result.scores, scores[: len(result.scores)], atol=1e-5)
    assert list(result.classes[:3]) == (order[:3] % 5).tolist()
    box = boxes[0, int(order[0]) // 5].numpy() * [72, 48, 72, 48]
    corners = np.concatenate([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
    assert np.allclose(result.boxes[0], corners.clip(0, [72, 48, 72, 48]), atol=0.01)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        HALVES[0],
        (lambda s: {k: v for k, v in s.items() if ".linear1.bias" not in k}, "missing"),
        (lambda s: s | {"transformer.level_embed": torch.zeros(2, 32)}, "is not a checkpoint of"),
        (lambda s: s | {"class_embed.0.weight": torch.tensor(1.0)}, "is not a checkpoint of"),
        (lambda s: s | {"query_embed.weight": torch.zeros(4000, 64)}, "a whole number of 1 to"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detr_bodies, "Stages", Patches)
    torch.save(harm(dict(small("plain").state_dict())), tmp_path / "harmed.pth")
    with pytest.raises(CheckpointError, match=said):
        loading.load_network(tmp_path / "harmed.pth", loading.NetworkOptions())
