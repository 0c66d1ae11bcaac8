"""Rounding to a grid, and the gradients that pass it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def on_grid(x: Tensor, step: float | Tensor, reach: tuple[int, int]) -> Tensor:
    """Return the nearest multiples of the step, half to even, as Q and DQ compute them.

    reach: the least and the largest multiple.
    """
    return torch.div(x, step).round_().clamp_(*reach).mul_(step)


def rounded(x: Tensor, exact: Tensor | None, step: float, reach: tuple[int, int]) -> Tensor:
    """Return what INT8 keeps of an activation float32[N, ...], with the gradients of LSQ.

    exact: the step that learns; None: none does. step: that as the file holds it.
    """
    found: Tensor = _Rounding.apply(x, exact, step, reach)
    return found


def straight(weights: Tensor, given: Tensor) -> Tensor:
    """Return `given`, what is kept of the weights, with the gradient of the weights themselves."""
    found: Tensor = _Straight.apply(weights, given)
    return found


class _Rounding(torch.autograd.Function):
    """What INT8 keeps of an activation, with the gradients of LSQ.

    By whole tensors and in place: several times as fast as PyTorch's own fake quantisation, which
    goes number by number.

    Source: Esser et al., Learned Step Size Quantization (1902.08153), equation 3 and section 2.2.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        x: Tensor,
        exact: Tensor | None,
        step: float,
        reach: tuple[int, int],
    ) -> Tensor:
        found = on_grid(x, step, reach)
        ctx.step, ctx.reach, ctx.learns = step, reach, exact is not None
        ctx.save_for_backward(x, found) if ctx.learns else ctx.save_for_backward(x)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        gradient, (x, *found) = upstream[0], ctx.saved_tensors
        step, (low, high) = ctx.step, ctx.reach
        ends = (low - 0.5) * step, (high + 0.5) * step
        inside = torch.ops.aten.hardtanh_backward(gradient, x, *ends)
        if not ctx.learns:
            return inside, None, None, None
        by_step = (_product(gradient, found[0]) - _product(inside, x)) / step
        share = 1 / math.sqrt(high * max(1, x[0].numel()))
        return inside, (by_step * share).double(), None, None


class _Straight(torch.autograd.Function):
    """Rounded weights in place of others, whose gradient they pass on."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rounded: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        del ctx, weights
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        del ctx
        return upstream[0], None


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
