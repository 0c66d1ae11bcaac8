from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.networks.states import outputs
from deploykit.networks.yolov6.layers import (
    SPPF,
    BepC3,
    BottleRep,
    Boxes,
    Detect,
    Stage,
    Transpose,
    conv,
    grid,
)


def test_the_grid_lists_cell_centres_row_by_row_and_level_by_level() -> None:
    centres, strides = grid([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)], (8, 16))
    fine = [[(x + 0.5) * 8, (y + 0.5) * 8] for y in range(2) for x in range(3)]
    coarse = [[(x + 0.5) * 16, 8.0] for x in range(2)]
    assert centres.tolist() == fine + coarse
    assert strides.tolist() == [[8.0]] * 6 + [[16.0]] * 2


def test_box_sides_are_distances_from_the_cell_centre_in_cells() -> None:
    distances = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    anchors, strides = torch.tensor([[100.0, 60.0]]), torch.tensor([[8.0]])
    row = Boxes()((torch.zeros(1, 1, 2), distances, anchors, strides), None)[0, 0].tolist()
    left, top, right, bottom = 100 - 8, 60 - 16, 100 + 24, 60 + 32
    sides = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    assert row == pytest.approx([*sides, 1, 0.5, 0.5])


def test_a_side_of_a_distribution_is_its_mean() -> None:
    logits = torch.randn(1, 1, 4 * 17, generator=torch.Generator().manual_seed(0))
    bins = torch.arange(17.0)
    weights = np.exp(logits.numpy().reshape(4, 17).astype(np.float64))
    mean = (weights / weights.sum(1, keepdims=True)) @ np.arange(17)
    raw = (torch.zeros(1, 1, 1), logits, torch.zeros(1, 2), torch.ones(1, 1))
    found = Boxes()(raw, bins)[0, 0].tolist()
    assert found[2:4] == pytest.approx([mean[0] + mean[2], mean[1] + mean[3]], rel=1e-5)
    assert found[:2] == pytest.approx([(mean[2] - mean[0]) / 2, (mean[3] - mean[1]) / 2], rel=1e-5)


def test_an_untrained_head_gives_every_class_the_prior_score() -> None:
    head = Detect((8, 8), 3, 0, (8, 16)).eval()
    with torch.inference_mode():
        rows = head([torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)])
    assert rows.shape == (2, 20, 8)
    assert torch.allclose(rows[..., 5:], torch.tensor(0.01))
    assert torch.equal(rows[:, :16, 2:4], torch.full((2, 16, 2), 16.0))


def test_a_stage_of_one_has_one_block() -> None:
    stage = Stage(lambda pair: nn.Conv2d(*pair, 1), (3, 5), 1)
    assert sorted(stage.state_dict()) == ["conv1.bias", "conv1.weight"]
    assert stage(torch.zeros(1, 3, 2, 2)).shape == (1, 5, 2, 2)


def test_a_shortcut_is_weighted_by_alpha() -> None:
    block = BottleRep(lambda pair: nn.Conv2d(*pair, 1), (2, 2))
    for layer in (block.conv1, block.conv2):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    nn.init.constant_(block.alpha, 3.0)
    x = torch.randn(1, 2, 2, 2)
    assert torch.equal(block(x), 3 * x)


def test_a_csp_stage_gives_a_part_of_the_channels_to_the_blocks() -> None:
    stage = BepC3(lambda pair: conv(pair, 3), (6, 12), 8, 2, nn.ReLU)
    assert stage.state_dict()["m.conv1.conv1.block.conv.weight"].shape[:2] == (8, 8)
    assert "m.block.0.alpha" in stage.state_dict()
    assert "m.block.1.alpha" not in stage.state_dict()
    assert stage.eval()(torch.zeros(1, 6, 4, 4)).shape == (1, 12, 4, 4)


def test_pooling_keeps_the_size_and_upsampling_doubles_it() -> None:
    x = torch.zeros(1, 4, 6, 5)
    assert SPPF(4, nn.ReLU).eval()(x).shape == (1, 4, 6, 5)
    assert Transpose(4)(x).shape == (1, 4, 12, 10)


def test_the_number_of_outputs_is_unknown_without_a_tensor_of_dimensions() -> None:
    state = {"a.weight": torch.zeros(7, 3), "scalar": torch.tensor(1.0)}
    found = [outputs(state, key) for key in ("a.weight", "scalar", "absent")]
    assert found == [7, None, None]
