"""Candidates beside a reference: right ones pass however narrow, wrong ones are named."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.errors import ModelError, ProofError
from deploykit.networks import reparam
from deploykit.proof import proving
from deploykit.proof.rule import DOUBLE, SINGLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Outputs = dict[str, NDArray[Any]]

FEED = {"x": np.random.default_rng(0).random((2, 3, 24, 24), np.float32)}


class Run:
    """A torch module as a session."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self._module, self._dtype = module.to(dtype), dtype

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Outputs:
        with torch.inference_mode():
            return {"y": self._module(torch.from_numpy(feeds["x"]).to(self._dtype)).numpy()}


class Tail(nn.Module):
    """Turns 8 channels into logits of about `offset` that vary by `spread`."""

    def __init__(self, offset: float, spread: float) -> None:
        super().__init__()
        self.offset, self.spread = offset, spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.offset + self.spread * torch.tanh(x.mean((2, 3)))


def network(seed: int, tail: nn.Module, *, skew: float = 1.0) -> nn.Sequential:
    """Convolutions and batch norms with statistics far from trained ones."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in (3, 16, 16):
        norm = nn.BatchNorm2d(16)
        assert norm.running_var is not None
        with torch.no_grad():
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert tensor is not None
                tensor.normal_(0, skew)
            norm.running_var.copy_(torch.exp(skew * torch.randn(16)))
        layers += [nn.Conv2d(width, 16, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 8, 1), tail).eval()


def measured(module: nn.Module) -> proving.Reference:
    double = Run(copy.deepcopy(module), torch.float64)
    return proving.measure(Run(copy.deepcopy(module)), double, FEED)


TAILS = {
    "plain": lambda: Tail(0, 1),
    "logits of 4000 that vary by 1": lambda: Tail(4000, 1),
    "scores that hardly vary": lambda: Tail(0.01, 1e-5),
    "nothing but rounding": lambda: Tail(1, 1e-9),
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=list(TAILS))
@pytest.mark.parametrize("skew", [0.3, 2.0])
def test_a_right_fold_is_accepted(tail: Callable[[], nn.Module], skew: float) -> None:
    for seed in range(3):
        trained = network(seed, tail(), skew=skew)
        reference = measured(trained)
        assert reference.exact
        exact = Run(reparam.fold(copy.deepcopy(trained).double()), torch.float64)
        assert all(a.passed for a in proving.compare(exact, reference, DOUBLE))
        assert all(a.passed for a in proving.compare(Run(reparam.fold(trained)), reference))


def eps(module: Any) -> None:
    for norm in module:
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3


def bias(module: Any) -> None:
    with torch.no_grad():
        module[1].bias[3] = 0


def reverse(module: Any) -> None:
    with torch.no_grad():
        module[1].weight.copy_(module[1].weight.flip(0))


def pad(module: Any) -> None:
    module[3].padding_mode = "replicate"
    module[3]._reversed_padding_repeated_twice = [1] * 4


FAULTS = (eps, bias, reverse, pad)


@pytest.mark.parametrize("damage", FAULTS)
@pytest.mark.parametrize("tail", ["plain", "logits of 4000 that vary by 1"])
def test_a_wrong_fold_is_refused_in_float64(damage: Callable[[Any], None], tail: str) -> None:
    trained = network(0, TAILS[tail](), skew=1.0)
    reference = measured(trained)
    wrong = copy.deepcopy(trained).double()
    damage(wrong)
    candidate = Run(reparam.fold(wrong), torch.float64)
    with pytest.raises(ProofError, match="the fold changed output 'y': largest error"):
        proving.prove("the fold", candidate, reference, DOUBLE, fix="look at it")


def test_the_error_names_the_output_its_error_and_the_rounding() -> None:
    trained = network(0, Tail(0, 1))
    reference = measured(trained)
    wrong = copy.deepcopy(trained)
    eps(wrong)
    (agreement,) = proving.compare(Run(wrong), reference)
    assert agreement.rounding is not None
    assert agreement.allowed is not None
    assert agreement.rounding < agreement.allowed < agreement.max_abs
    with pytest.raises(ProofError) as caught:
        proving.require("it", [agreement], fix="mend it")
    text = str(caught.value)
    for number in (agreement.max_abs, agreement.rounding, agreement.allowed):
        assert f"{number:.3g}" in text
    assert "own rounding" in text
    assert "mend it" in text


class Only32(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ torch.ones(3, 4, dtype=torch.float32)


def test_a_network_that_has_no_float64_is_measured_by_nudged_inputs() -> None:
    module = Only32()
    reference = proving.measure(Run(module), Run(module, torch.float64), FEED)
    assert not reference.exact
    assert len(reference.rounded) > 1
    assert all(a.passed for a in proving.compare(Run(module), reference, SINGLE))
    (agreement,) = proving.compare(Run(nn.Sequential(module, nn.Tanh())), reference)
    assert not agreement.passed


def test_the_first_image_is_also_run_alone() -> None:
    module = network(0, Tail(0, 1))
    reference = proving.measure(
        Run(copy.deepcopy(module)), Run(copy.deepcopy(module), torch.float64), FEED, alone=True
    )
    assert [len(feed["x"]) for feed in reference.feeds] == [2, 1]
    assert all(a.passed for a in proving.compare(Run(module), reference))

    class Mixes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = module(x)
            return found + found.flip(0) * 1e-3 if len(x) == 1 else found

    (agreement,) = proving.compare(Run(Mixes()), reference)
    assert not agreement.passed


def test_infinities_of_the_reference_are_no_fault_of_the_candidate() -> None:
    class Overflows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(x.mean((2, 3)) * 1e2) ** 2

    reference = measured(Overflows())
    assert np.isinf(reference.truth[0]["y"]).any()
    assert all(a.passed for a in proving.compare(Run(Overflows()), reference))


class Gives:
    def __init__(self, **outputs: NDArray[Any]) -> None:
        self._outputs = outputs

    def run(self, _: object) -> Outputs:
        return self._outputs


def test_another_shape_or_a_missing_output_is_refused() -> None:
    reference = measured(network(0, Tail(0, 1)))
    with pytest.raises(ModelError, match="no output 'y'"):
        proving.compare(Gives(z=np.zeros(3, np.float32)), reference)
    with pytest.raises(ModelError, match=r"'y' of the candidate is float32\[3\]"):
        proving.compare(Gives(y=np.zeros(3, np.float32)), reference)
