from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit.networks.reparam import ConvNorm, Phases, RepVGGBlock, fold, fuse

if TYPE_CHECKING:
    from collections.abc import Callable

    Randomised = Callable[[nn.Module], nn.Module]


def relative_error(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Return the largest difference over the range of `a`'s output."""
    with torch.inference_mode():
        expected, found = a(x), b(x)
    return float((expected - found).abs().max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("channels", "stride"), [((8, 8), 1), ((8, 16), 1), ((8, 8), 2)])
def test_a_folded_block_equals_its_branches(
    channels: tuple[int, int], stride: int, groups: int, randomised: Randomised
) -> None:
    block = randomised(RepVGGBlock(channels, stride=stride, groups=groups))
    folded = fold(block)
    assert relative_error(block, folded, torch.randn(2, 8, 9, 7)) < 1e-6
    assert [type(m) for m in folded.children()] == [nn.Conv2d, nn.ReLU]


def test_a_block_has_an_identity_branch_only_where_shapes_stay() -> None:
    assert RepVGGBlock((8, 8)).rbr_identity is not None
    assert RepVGGBlock((8, 8), stride=2).rbr_identity is None
    assert RepVGGBlock((8, 16)).rbr_identity is None


def test_folding_leaves_the_trained_network_as_it_was(randomised: Randomised) -> None:
    network = randomised(nn.Sequential(RepVGGBlock((4, 4)), ConvNorm((4, 4)))).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold(network)
    after = network.state_dict()
    assert network.training
    assert not folded.training
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_network_that_is_folded_already_stays(randomised: Randomised) -> None:
    once = fold(randomised(nn.Sequential(RepVGGBlock((4, 4)), ConvNorm((4, 4)))))
    twice = fold(once)
    state = twice.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in once.state_dict().items())


def test_an_activation_stays_behind_its_convolution(randomised: Randomised) -> None:
    module = randomised(ConvNorm((4, 6), activation=nn.SiLU()))
    folded = fold(module)
    assert relative_error(module, folded, torch.randn(2, 4, 6, 6)) < 1e-6
    assert sorted(folded.state_dict()) == ["conv.bias", "conv.weight"]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([1, 2]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    eps=st.sampled_from([1e-5, 1e-3, 0.1]),
)
def test_any_convolution_takes_in_the_norm_behind_it(
    seed: int, groups: int, flags: tuple[bool, bool, bool], eps: float
) -> None:
    transposed, bias, affine = flags
    torch.manual_seed(seed)
    conv: nn.Conv2d | nn.ConvTranspose2d
    if transposed:
        conv = nn.ConvTranspose2d(4, 6, 2, 2, groups=groups, bias=bias)
    else:
        conv = nn.Conv2d(4, 6, 3, groups=groups, bias=bias)
    norm = nn.BatchNorm2d(6, eps=eps, affine=affine)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.1
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    chain = nn.Sequential(conv, norm.eval())
    folded = fold(chain)
    assert relative_error(chain, folded, torch.randn(2, 4, 5, 5)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_a_norm_without_statistics_or_with_no_convolution_before_it_stays() -> None:
    live = nn.BatchNorm2d(4, track_running_stats=False)
    chain = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), live)
    kinds = [type(m) for m in fold(chain).children()]
    assert kinds == [nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d]


def test_a_tiny_variance_is_folded_without_loss(randomised: Randomised) -> None:
    block = randomised(RepVGGBlock((8, 8)))
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.fill_(1e-12)
    assert relative_error(block, fold(block), torch.randn(1, 8, 9, 9)) < 1e-5


def test_half_precision_weights_stay_half_precision() -> None:
    conv = nn.Conv2d(4, 4, 1).half()
    assert fuse(conv, nn.BatchNorm2d(4).eval()).weight.dtype == torch.float16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_phases_are_the_pixels_of_a_transposed_convolution(step: int, *, bias: bool) -> None:
    up = nn.ConvTranspose2d(3, 5, step, step, bias=bias)
    assert Phases.replaces(up)
    phases, x = Phases(up, nn.ReLU()), torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        found, expected = phases(x), up(x).relu()
        assert found.shape == (2 * step**2, 5, 4, 6)
        for channel in range(5):
            whole = phases.join(found[:, channel])
            torch.testing.assert_close(whole, expected[:, channel], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1},
        {"stride": 2, "padding": 1},
        {"stride": 2, "output_padding": 1},
        {"stride": 2, "groups": 2},
        {"stride": 2, "dilation": 2},
    ],
)
def test_windows_that_overlap_stay_a_transposed_convolution(options: dict[str, int]) -> None:
    assert not Phases.replaces(nn.ConvTranspose2d(4, 4, 2, **options))  # type: ignore[arg-type]
    assert not Phases.replaces(nn.Conv2d(4, 4, 1))
