"""Adam and SGD, whose state is plain tensors.

PyTorch's own load its compiler when they are made, which takes seconds and leaves a folder behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import assert_never

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from deploykit.training.course import Optimizer

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
"""Decays of Adam's two moments, and what its root is kept from 0 by; SGD has the first."""


@dataclass
class Learner:
    """What moves weights by their gradients."""

    kind: Optimizer
    groups: Sequence[tuple[Sequence[nn.Parameter], float]]
    """Weights, and their rate."""
    count: int = 0
    """Steps that were made."""
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of each weight, in the order of the groups; SGD needs the first alone."""

    def __post_init__(self) -> None:
        """Begin at rest."""
        weights = [weight for some, _ in self.groups for weight in some]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the weights as PyTorch's gradient scaler asks for them."""
        return [{"params": list(weights)} for weights, _ in self.groups]

    def rest(self) -> None:
        """Forget the gradients."""
        for weights, _ in self.groups:
            for weight in weights:
                weight.grad = None

    @torch.no_grad()
    def step(self, share: float = 1.0) -> None:
        """Move every weight that has a gradient, by `share` of its rate."""
        self.count += 1
        moments = iter(self.moments)
        for weights, rate in self.groups:
            for weight in weights:
                first, second = next(moments)
                if weight.grad is not None:
                    self._move(weight, weight.grad, (first, second), share * rate)

    def _move(
        self, weight: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float
    ) -> None:
        first, second = moments
        match self.kind:
            case "sgd":
                weight.sub_(first.mul_(_FIRST).add_(gradient), alpha=rate)
            case "adam":
                first.lerp_(gradient, 1 - _FIRST)
                second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
                whole = math.sqrt(1 - _SECOND**self.count)
                root = second.sqrt().div_(whole).add_(_EPSILON)
                weight.addcdiv_(first, root, value=-rate / (1 - _FIRST**self.count))
            case _:
                assert_never(self.kind)

    def state(self) -> dict[str, Any]:
        """Return what changes, on the host. See `restore`."""
        return {
            "count": self.count,
            "moments": [
                tuple(each.detach().cpu().clone() for each in pair) for pair in self.moments
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises: ValueError, and others, where it does not fit."""
        self.count = int(state["count"])
        for pair, given in zip(self.moments, state["moments"], strict=True):
            for mine, other in zip(pair, given, strict=True):
                mine.copy_(other)
