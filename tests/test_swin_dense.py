"""Swin as a body: maps of any size, against attention computed token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mmdet_names
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import TABLES, skewed

from deploykit.networks import reparam, swin, swin_dense, swin_names
from deploykit.networks.detectors.transformer_pyramid import Pyramid

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LITTLE = swin.Architecture(32, (2, 1, 1, 1))


def attended(block: swin_dense.Block, x: Tensor, shift: int) -> Tensor:
    """Return what a block's attention adds to float64[h, w, C], token by token.

    Beside the map are tokens of zeros, so that the windows are whole. Windows begin `shift` tokens
    down and right; what is then beyond an edge comes from the other side, and is seen by its own.
    """
    layer, window = block.attn, block.window
    high, wide = (side + -side % window for side in x.shape[:2])
    tokens = torch.zeros(high, wide, x.shape[2], dtype=x.dtype)
    tokens[: x.shape[0], : x.shape[1]] = block.norm1(x)
    q, k, v = layer.qkv(tokens).chunk(3, -1)
    found = torch.zeros_like(tokens)
    for row in range(high):
        for column in range(wide):
            top, left = (row - shift) % high, (column - shift) % wide  # where it is then
            near = [
                (r, c, (r + shift) % high, (c + shift) % wide)
                for r in range(top - top % window, top - top % window + window)
                for c in range(left - left % window, left - left % window + window)
            ]
            came = (row < shift, column < shift)
            near = [each for each in near if (each[2] < shift, each[3] < shift) == came]
            width = 2 * window - 1
            places = [(top - r + window - 1) * width + left - c + window - 1 for r, c, *_ in near]
            rows, columns = (torch.tensor([each[i] for each in near]) for i in (2, 3))
            for head in range(layer.heads):
                own = slice(head * 32, head * 32 + 32)
                alike = k[rows, columns][:, own] @ q[row, column, own] / 32**0.5
                shares = (alike + layer.relative_position_bias_table[places, head]).softmax(0)
                found[row, column, own] = shares @ v[rows, columns][:, own]
    mixed: Tensor = layer.proj(found)
    return mixed[: x.shape[0], : x.shape[1]]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", [(4, 6), (4, 4), (9, 5)])
def test_windows_are_padded_and_shifted_as_token_by_token(
    sides: tuple[int, int], *, shifted: bool
) -> None:
    block = skewed(swin_dense.Block(32, 4, shifted=shifted), spreads=TABLES).double()
    x = torch.randn(1, *sides, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        after = x[0] + attended(block, x[0], 2 if shifted else 0)
        expected = after + block.mlp(block.norm2(after))
        found = block(x)[0]
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_four_patches_of_mmdetection_are_joined_channel_by_channel() -> None:
    merge = skewed(swin.Merge(32), spreads=TABLES)
    x = torch.randn(2, 6, 4, 32, generator=torch.Generator().manual_seed(0))
    own = {f"backbone.layers.0.downsample.{k}": v for k, v in merge.state_dict().items()}
    state = mmdet_names.swin(own) | {"backbone.patch_embed.projection.weight": torch.zeros(1)}
    with torch.no_grad():
        joined = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        weight, bias = (state[f"backbone.stages.0.downsample.norm.{k}"] for k in ("weight", "bias"))
        normed = F.layer_norm(joined, (128,), weight, bias)
        expected = normed @ state["backbone.stages.0.downsample.reduction.weight"].T
        found = merge(x).flatten(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    back = swin_names.official(state, "backbone.")
    assert all(torch.equal(back[key], value) for key, value in own.items())


@pytest.mark.parametrize("name", ["tiny", "base_window12"])
def test_a_body_is_known_by_its_weights_and_a_classifier_is_none(name: str) -> None:
    with torch.device("meta"):
        body = swin_dense.Backbone(swin_dense.BODIES[name]).state_dict()
        classifier = swin.Classifier(swin.SIZES["tiny"], 5, (224, 224)).state_dict()
    behind = {f"backbone.{key}": value for key, value in body.items()}
    assert swin_names.body(behind, "backbone.") == name
    assert swin_names.body(classifier, "") is None
    assert swin_names.body(behind, "") is None


def test_a_pyramid_is_exported_as_a_graph_without_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(swin_dense.BODIES, "tiny", LITTLE)
    pyramid = skewed(Pyramid("swin_tiny"), spreads=TABLES)
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = list(pyramid(images).values())
    assert [tuple(x.shape[1:]) for x in expected] == [
        *((256, 64 // s, 96 // s) for s in (4, 8, 16, 32)),
        (256, 1, 2),
    ]
    path, batch = tmp_path / "pyramid.onnx", torch.export.Dim("batch")
    torch.onnx.export(
        reparam.fold(pyramid),
        (images,),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"If", "Loop", "NonZero", "ScatterND"}.isdisjoint(kinds)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
