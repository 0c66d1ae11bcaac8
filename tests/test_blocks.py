"""Blocks made for INT8 against the sums of branches that their papers define, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deploykit.networks import blocks, reparam
from deploykit.networks.reparam import fold

SHAPES = [((8, 8), 1), ((8, 16), 1), ((8, 8), 2)]


def skewed(block: nn.Module) -> nn.Module:
    """Return a block in float64 with random weights, and statistics that differ a thousandfold."""
    generator = torch.Generator().manual_seed(3)
    block = block.double().eval()
    for key, value in block.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(10 ** (6 * torch.rand(value.shape, generator=generator).double() - 4))
        elif value.is_floating_point():
            value.normal_(0, 1, generator=generator)
    return block


def pixels() -> Tensor:
    """Return two images of eight channels, of an odd and an even side."""
    return torch.randn(2, 8, 7, 10, generator=torch.Generator().manual_seed(4)).double()


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return `x` as a batch norm in eval mode leaves it."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance, gamma, beta = (
        v.reshape(-1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * gamma + beta


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("channels", "stride"), SHAPES)
@pytest.mark.parametrize("average", [False, True])
def test_a_qarepvgg_block_is_the_sum_of_its_branches_and_folds(
    channels: tuple[int, int], stride: int, groups: int, *, average: bool
) -> None:
    made = blocks.QARepVGGBlock(channels, stride=stride, groups=groups, average=average)
    block, x = skewed(made), pixels()
    conv = torch.nn.functional.conv2d
    total = normed(
        made.rbr_dense.bn, conv(x, made.rbr_dense.conv.weight, None, stride, 1, 1, groups)
    )
    total = total + conv(x, made.rbr_1x1.weight, None, stride, 0, 1, groups)
    if channels == (8, 8) and stride == 1:
        total = total + x
        if average:  # zeros around the image count
            padded = torch.nn.functional.pad(x, [1, 1, 1, 1])
            total = total + padded.unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2))
    expected = normed(made.bn, total).clamp(min=0)
    with torch.inference_mode():
        assert torch.allclose(block(x), expected, rtol=1e-9, atol=1e-9)
        halfway, folded = made.folded(), fold(block)
        for simple in (halfway, folded):
            assert torch.allclose(simple(x), expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert isinstance(halfway, blocks.NormedBlock)
    assert set(folded.state_dict()) == {"rbr_reparam.weight", "rbr_reparam.bias"}


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("channels", "stride"), SHAPES)
def test_a_search_block_is_the_scaled_sum_and_folds(
    channels: tuple[int, int], stride: int, groups: int
) -> None:
    made = blocks.SearchBlock(channels, stride=stride, groups=groups)
    block, x = skewed(made), pixels()
    conv = torch.nn.functional.conv2d
    s3, s1 = (s.weight.reshape(-1, 1, 1) for s in (made.scale_conv, made.scale_1x1))
    total = s3 * conv(x, made.conv.weight, None, stride, 1, 1, groups)
    total = total + s1 * conv(x, made.conv_1x1.weight, None, stride, 0, 1, groups)
    if made.scale_identity is not None:
        total = total + made.scale_identity.weight.reshape(-1, 1, 1) * x
    assert (made.scale_identity is not None) == (channels == (8, 8) and stride == 1)
    expected = normed(made.bn, total).clamp(min=0)
    with torch.inference_mode():
        folded = fold(block)
        assert torch.allclose(block(x), expected, rtol=1e-9, atol=1e-9)
        assert torch.allclose(folded(x), expected, rtol=1e-9, atol=1e-9 * float(expected.max()))
    assert set(folded.state_dict()) == {"conv.weight", "conv.bias"}


def test_a_vgg_block_folds_into_one_convolution() -> None:
    made = blocks.VGGBlock((8, 16), stride=2, groups=2)
    block, x = skewed(made), pixels()
    expected = normed(made.bn, made.conv(x)).clamp(min=0)
    with torch.inference_mode():
        assert torch.allclose(
            fold(block)(x), expected, rtol=1e-9, atol=1e-9 * float(expected.max())
        )


def test_a_network_is_folded_as_far_as_its_checkpoint_is() -> None:
    network = nn.Sequential(skewed(blocks.QARepVGGBlock((8, 8))))
    half = {"0.rbr_reparam.weight", "0.rbr_reparam.bias"}
    norm = {f"0.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    for names, kind in (
        (half, reparam.FoldedBlock),
        (half | norm, blocks.NormedBlock),
        (set(network.state_dict()), blocks.QARepVGGBlock),
    ):
        own = nn.Sequential(network[0])
        assert type(reparam.as_stored(own, names)[0]) is kind  # type: ignore[index]  # Sequential
