"""RepOptimizer against what it is equal to: the branches trained with constant scales."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError, OptionError
from deploykit.networks.blocks import SearchBlock, VGGBlock
from deploykit.training import rep_optimizer
from deploykit.training.rep_optimizer import RepAdamW, RepSGD, Scales

if TYPE_CHECKING:
    from pathlib import Path

SHAPES: tuple[dict[str, Any], ...] = (
    {"channels": (3, 8), "stride": 2},
    {"channels": (8, 8)},
    {"channels": (8, 8), "groups": 2},
    {"channels": (8, 12), "groups": 4},
    {"channels": (12, 12), "stride": 2},
)


def chain(kind: type[SearchBlock | VGGBlock]) -> Any:
    """Return a small network of one kind of blocks, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(kind(**shape) for shape in SHAPES), nn.Flatten(), nn.Linear(12 * 16, 5)
    ).double()


def pair() -> tuple[Any, Any, dict[str, Scales]]:
    """Return the network with branches, the plain one at the same start, and the scales."""
    branches, plain = chain(SearchBlock), chain(VGGBlock)
    generator = torch.Generator().manual_seed(1)
    for name, value in branches.named_parameters():
        if ".scale_" in name:
            value.data.uniform_(0.3, 2, generator=generator)
        if ".scale_conv" in name or ".scale_1x1" in name:
            value.data[::3] *= -1
            value.requires_grad = False
    scales = rep_optimizer.found(branches.state_dict())
    with torch.no_grad():
        for theirs, own in zip(branches[:-2], plain[:-2], strict=True):
            own.conv.weight.copy_(theirs.kernel())
        plain[-1].load_state_dict(branches[-1].state_dict())
    return branches, plain, scales


def trained(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train for 50 steps on random images, the same each time."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(50, 4, 3, 13, 13, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, 5, (50, 4), generator=generator)
    network.train()
    for k in range(50):
        loss = nn.functional.cross_entropy(network(images[k]), truth[k])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        optimizer.step()


OPTIONS: tuple[tuple[type[Any], type[Any], dict[str, Any]], ...] = (
    (torch.optim.SGD, RepSGD, {"lr": 0.02}),
    (torch.optim.SGD, RepSGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
    (
        torch.optim.SGD,
        RepSGD,
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "foreach": True},
    ),
    (torch.optim.AdamW, RepAdamW, {"lr": 1e-3, "weight_decay": 0.05, "eps": 1e-15}),
    (
        torch.optim.AdamW,
        RepAdamW,
        {"lr": 1e-3, "weight_decay": 0.05, "eps": 1e-15, "foreach": True},
    ),
)


@pytest.mark.parametrize(("theirs", "ours", "options"), OPTIONS)
def test_weights_move_as_the_sum_of_branches_with_constant_scales(
    theirs: Any, ours: Any, options: dict[str, Any]
) -> None:
    branches, plain, scales = pair()
    start = copy.deepcopy(plain)
    power = 2 if ours is RepSGD else 1
    factors = rep_optimizer.multipliers(plain, scales, power)
    learned = [p for p in branches.parameters() if p.requires_grad]
    trained(branches, theirs(learned, **options))
    trained(plain, ours(plain.parameters(), factors, **options))
    for k in range(len(SHAPES)):
        expected = branches[k].kernel().detach()
        found, first = (network[k].conv.weight.detach() for network in (plain, start))
        moved = float((expected - first).norm() / first.norm())
        error = float((expected - found).norm() / expected.norm())
        assert moved > 0.01
        assert error <= 1e-6
        assert torch.allclose(plain[k].bn.weight, branches[k].bn.weight)


def test_multipliers_are_the_papers_formula() -> None:
    network: Any = nn.Sequential(VGGBlock((2, 2)))
    scales = {"0": Scales(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 4.0]), torch.ones(2))}
    ((weight, squares),) = rep_optimizer.multipliers(network, scales).items()
    (firsts,) = rep_optimizer.multipliers(network, scales, 1).values()
    assert weight is network[0].conv.weight
    assert squares[:, :, 0, 1].tolist() == [[4, 4], [9, 9]]
    assert squares[:, :, 1, 1].tolist() == [[4 + 0.25 + 1, 4.25], [9 + 16, 9 + 16 + 1]]
    assert firsts[:, :, 2, 2].tolist() == [[2, 2], [3, 3]]
    assert firsts[:, :, 1, 1].tolist() == [[3.5, 2.5], [7, 8]]


def test_a_new_network_starts_where_its_branches_would() -> None:
    _, plain, scales = pair()
    before = [block.conv.weight.clone() for block in plain[:-2]]
    rep_optimizer.prepare(plain, scales, torch.Generator().manual_seed(5))
    for k, (first, shape) in enumerate(zip(before, SHAPES, strict=True)):
        own, weight = scales[str(k)], plain[k].conv.weight
        rest = weight - first * own.dense.reshape(-1, 1, 1, 1)
        centre = rest[:, :, 1, 1].clone()
        rest[:, :, 1, 1] = 0
        assert float(rest.detach().abs().max()) < 1e-12
        if own.identity is not None:
            per_group = centre.shape[1]
            for row in range(len(centre)):
                centre[row, row % per_group] -= own.identity[row]
        fan = shape["channels"][0] / shape.get("groups", 1)
        point = (centre / own.point[:, None]).detach().abs()
        assert 0.5 / math.sqrt(fan) < float(point.max()) <= 1 / math.sqrt(fan)


def test_scales_are_read_from_the_checkpoint_of_a_search(tmp_path: Path) -> None:
    branches, _, scales = pair()
    torch.save({"model": branches.state_dict()}, tmp_path / "hs.pt")
    read = rep_optimizer.read(tmp_path / "hs.pt")
    assert list(read) == [str(k) for k in range(len(SHAPES))]
    assert torch.allclose(read["1"].point.double(), scales["1"].point)
    assert [s.identity is None for s in read.values()] == [True, False, False, True, True]


def test_scales_of_another_network_are_refused_by_name() -> None:
    _, plain, scales = pair()
    with pytest.raises(CheckpointError, match=r"1 blocks without scales \(2 .*1 scales without"):
        rep_optimizer.multipliers(plain, {("x" if k == "2" else k): v for k, v in scales.items()})
    with pytest.raises(CheckpointError, match="block 1 has 8 channels and an identity"):
        rep_optimizer.multipliers(plain, {**scales, "1": scales["3"]})
    with pytest.raises(CheckpointError, match="no scales"):
        rep_optimizer.found(plain.state_dict())
    state = pair()[0].state_dict()
    del state["3.scale_1x1.weight"]
    with pytest.raises(CheckpointError, match="block 3"):
        rep_optimizer.found(state)


def test_a_trained_network_and_options_that_are_not_carried_are_refused() -> None:
    _, plain, scales = pair()
    factors = rep_optimizer.multipliers(plain, scales, 1)
    with pytest.raises(OptionError, match="amsgrad"):
        RepAdamW(plain.parameters(), factors, amsgrad=True)
    with pytest.raises(OptionError, match="5 of the 5 weights"):
        RepSGD(plain[-1].parameters(), factors, lr=0.1)
    plain[0].bn.weight.data[0] = 0.5
    with pytest.raises(OptionError, match="was trained"):
        rep_optimizer.prepare(plain, scales)


def test_gradients_are_left_as_they_were() -> None:
    _, plain, scales = pair()
    for kind, power in ((RepSGD, 2), (RepAdamW, 1)):
        optimizer = kind(
            plain.parameters(), rep_optimizer.multipliers(plain, scales, power), lr=0.1
        )

        def closure(network: Any = plain) -> float:
            network.zero_grad()
            loss = network(torch.ones(2, 3, 13, 13).double()).square().sum()
            loss.backward()
            return float(loss.detach())

        value = optimizer.step(closure)
        assert value is not None
        assert value > 0
        assert all(p.grad is not None for p in plain.parameters())
