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


def _order(x: Tensor) -> torch.memory_format:
    """Return the order in which the numbers of a tensor lie, or would have to be copied to lie."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format


def _flat(x: Tensor) -> Tensor:
    """Return the numbers of a tensor without gaps in the order in which they lie."""
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)


def rounded(x: Tensor, exact: Tensor | None, step: float, reach: tuple[int, int]) -> Tensor:
    """Return what INT8 keeps of an activation float32[N, ...], with the gradients of LSQ.

    exact: the step that learns; None: none does. step: that as the file holds it. reach: The least
    and the largest multiple; a least one of 0 is a Relu before the rounding.
    """
    found: Tensor = _Rounding.apply(x, exact, step, reach)
    return found


def straight(weights: Tensor, given: Tensor) -> Tensor:
    """Return `given`, what is kept of the weights, with the gradient of the weights themselves."""
    found: Tensor = _Straight.apply(weights, given)
    return found


def clipped(weights: Tensor, given: Tensor, limit: Tensor, step: Tensor, levels: int) -> Tensor:
    """Return `given`, what is kept of the weights, with the gradients of LSQ for both.

    limit: that of each channel, which learns. step: of each channel, as `weights` is shaped; given
    reaches `levels` of them.
    """
    found: Tensor = _Clipping.apply(weights, limit, given, step, levels)
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
        x = x.contiguous(memory_format=_order(x))
        found = on_grid(x, step, reach)
        ctx.step, ctx.reach = step, reach
        ctx.save_for_backward(*((x,) if exact is None else (x, found)))
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        (x, *found), step, (low, high) = ctx.saved_tensors, ctx.step, ctx.reach
        gradient = upstream[0].contiguous(memory_format=_order(x))
        ends = (low - 0.5) * step if low else 0.0, (high + 0.5) * step
        inside = torch.ops.aten.hardtanh_backward(gradient, x, *ends)
        if not found:
            return inside, None, None, None
        pairs = ((gradient, found[0]), (inside, x))
        kept, passed = (torch.dot(*map(_flat, pair)).double() for pair in pairs)
        share = 1 / math.sqrt(high * max(1, x[0].numel()))
        return inside, (kept - passed) * (share / step), None, None


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


class _Clipping(torch.autograd.Function):
    """Rounded and clipped weights in place of others, with the gradients of LSQ.

    Source: as `_Rounding`; a channel has a step of its own.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - one value each
        ctx: Any,  # noqa: ANN401 - torch's
        weights: Tensor,
        limit: Tensor,
        given: Tensor,
        step: Tensor,
        levels: int,
    ) -> Tensor:
        ctx.levels, ctx.kind = levels, limit.dtype
        ctx.save_for_backward(weights, given, step)
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        (weights, given, step), levels = ctx.saved_tensors, ctx.levels
        inside = upstream[0] * (weights.abs() <= (levels + 0.5) * step)
        pull = (upstream[0] * given - inside * weights) / step
        others = [i for i, size in enumerate(step.shape) if size == 1]
        pull = pull.sum(others).to(ctx.kind).reshape(-1)
        each = max(1, weights.numel() // max(1, step.numel()))
        return inside, pull / (levels * math.sqrt(levels * each)), None, None, None
