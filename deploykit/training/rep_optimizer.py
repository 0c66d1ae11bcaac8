"""RepOptimizer: a plain network trained as if it had branches, by what its gradients are times.

A hyper-search trains the network with `SearchBlock`s, whose scales say how much each branch
matters. The target network has a `VGGBlock` in place of each; `prepare` starts it where the
branches would start, and the optimizers here multiply its gradients, so that its weights move as
the sum of the branches would with constant scales. In the end there is nothing to fold, and no
kernel with a few large values, which INT8 takes badly.

Per output channel, with W3, W1 the kernels of the branches and s3, s1, sid their scales:
W = W3 * s3 + pad(W1) * s1 + diag(sid), and the multiplier is s3^2, more by s1^2 at the centre and
by 1 on the centre's diagonal where there is an identity (sid is trained itself, as a vector with
weight decay, and so enters the start alone). For AdamW the powers are 1, and the multiplier is of
gradient and update.

What breaks the equality: gradient clipping (the norm is not that of the branches' gradients),
norms per layer (LARS, LAMB), weights in bfloat16, a weight decay that not all kernels have.
Source: RepOptimizers (arXiv 2205.15242, sections 3.2 and 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.errors import CheckpointError, OptionError
from deploykit.networks import checkpoint
from deploykit.networks.blocks import VGGBlock
from deploykit.networks.reparam import identity_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    Multipliers = Mapping[nn.Parameter, Tensor]
    Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]

_NAMES = ("scale_conv", "scale_1x1", "scale_identity")
_SHOWN = 3
_UNHANDLED = ("amsgrad", "maximize", "capturable", "differentiable")


@dataclass(frozen=True)
class Scales:
    """The scales of one block: float[out] each."""

    dense: Tensor
    point: Tensor
    identity: Tensor | None = None


def found(state: Mapping[str, Tensor]) -> dict[str, Scales]:
    """Return path of each block -> its scales, of a state dict with `SearchBlock`s.

    Raises: CheckpointError where there are none, or a block lacks one of them.
    """
    paths = [
        k.removesuffix(".scale_conv.weight") for k in state if k.endswith(".scale_conv.weight")
    ]
    if not paths:
        raise CheckpointError(
            "no scales among the weights",
            expected="a checkpoint of a hyper-search: <block>.scale_conv.weight and others",
        )
    scales = {}
    for path in paths:
        parts = [state.get(f"{path}.{name}.weight") for name in _NAMES]
        dense, point, identity = (p if p is None else p.detach().clone() for p in parts)
        shapes = {p.shape for p in parts if p is not None}
        if dense is None or point is None or len(shapes) > 1 or dense.ndim != 1:
            raise CheckpointError(
                f"the scales of block {path} are not of one shape, or one is missing",
                expected=f"{path}.scale_conv.weight and {path}.scale_1x1.weight, a number for each "
                "channel",
            )
        scales[path] = Scales(dense, point, identity)
    return scales


def read(path: Path) -> dict[str, Scales]:
    """Return the scales in a checkpoint of a hyper-search. Raises: CheckpointError."""
    return found(checkpoint.load(path).state)


def prepare(
    network: nn.Module, scales: Mapping[str, Scales], generator: torch.Generator | None = None
) -> None:
    """Start the `VGGBlock`s of a new network as the branches would: W, as the module says.

    W3 is what the network has, W1 a fresh kernel. Raises: CheckpointError where the scales are of
    another network; OptionError where the network was trained already.
    """
    blocks = _matched(network, scales)
    for path, block in blocks.items():
        if not bool((block.bn.weight == 1).all()):
            raise OptionError(
                f"the norm of block {path} has other factors than 1: the network was trained",
                expected="a new network",
                fix="prepare it before its training, once",
            )
    with torch.no_grad():
        for path, block in blocks.items():
            weight, own = block.conv.weight, scales[path]
            point = weight.new_empty((*weight.shape[:2], 1, 1))
            nn.init.kaiming_uniform_(point, a=5**0.5, generator=generator)  # as of a new Conv2d
            weight.copy_(started(block.conv, weight, point, own))


def started(conv: nn.Conv2d, dense: Tensor, point: Tensor, scales: Scales) -> Tensor:
    """Return W of a block, of the shape of `dense`.

    conv: the block's. dense, point: [out, in / groups, k, k], the kernels of its branches.
    """
    total = dense * _column(scales.dense, dense)
    total = total + F.pad(point * _column(scales.point, point), [1, 1, 1, 1])
    if scales.identity is not None:
        total = total + identity_kernel(conv).to(dense) * _column(scales.identity, dense)
    return total


def multipliers(
    network: nn.Module, scales: Mapping[str, Scales], power: int = 2
) -> dict[nn.Parameter, Tensor]:
    """Return weight of each `VGGBlock` -> what its gradient is multiplied by, of its shape.

    power: 2 for SGD, 1 for AdamW. Raises: CheckpointError where the scales are of another network.
    """
    made = {}
    for path, block in _matched(network, scales).items():
        weight, own = cast("nn.Parameter", block.conv.weight), scales[path]
        factor = torch.ones_like(weight) * _column(own.dense.abs() ** power, weight)
        factor[:, :, 1, 1] += _column(own.point.abs() ** power, weight)[..., 0, 0]
        if own.identity is not None:
            factor += identity_kernel(block.conv).to(weight)
        made[weight] = factor.detach()
    return made


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, 1, 1, 1)


def _matched(network: nn.Module, scales: Mapping[str, Scales]) -> dict[str, VGGBlock]:
    """Return path -> block, for the blocks that the scales are of. Raises: CheckpointError."""
    blocks = {path: m for path, m in network.named_modules() if isinstance(m, VGGBlock)}
    without, unused = (sorted(a - b) for a, b in _both(blocks.keys(), scales.keys()))
    if without or unused:
        lists = ((without, "blocks without scales"), (unused, "scales without a block"))
        said = [f"{len(ks)} {what} ({', '.join(ks[:_SHOWN])} ...)" for ks, what in lists if ks]
        raise CheckpointError(
            "the scales are of another network: " + " and ".join(said),
            expected=f"scales of the {len(blocks)} blocks of the network, by their names",
            fix="search the scales with a network of the same variant (`..._hs` of `..._repopt`)",
        )
    for path, block in blocks.items():
        _check(path, block.conv, scales[path])
    return blocks


def _both(a: Iterable[str], b: Iterable[str]) -> tuple[tuple[set[str], set[str]], ...]:
    first, second = set(a), set(b)
    return (first, second), (second, first)


def _check(path: str, conv: nn.Conv2d, scales: Scales) -> None:
    same = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
    if len(scales.dense) != conv.out_channels or (scales.identity is not None) != same:
        raise CheckpointError(
            f"block {path} has {conv.out_channels} channels and "
            f"{'an' if same else 'no'} identity, its scales are of {len(scales.dense)} and "
            f"{'no' if scales.identity is None else 'an'} identity",
            expected="scales of the same architecture",
        )


def _known(optimizer: torch.optim.Optimizer, multipliers: Multipliers) -> None:
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in own for p in multipliers)
    if missing:
        raise OptionError(
            f"{missing} of the {len(multipliers)} weights with a multiplier are not optimised",
            fix="give the optimizer all parameters of the network that the multipliers are of",
        )


class RepSGD(torch.optim.SGD):
    """SGD whose gradients are multiplied, before weight decay and momentum."""

    def __init__(self, params: Parameters, multipliers: Multipliers, **options: Any) -> None:  # noqa: ANN401 - those of torch.optim.SGD
        """Take the parameters, the multipliers with power 2, and the options of SGD.

        Raises: OptionError where a weight with a multiplier is not among the parameters.
        """
        super().__init__(params, **options)
        _known(self, multipliers)
        self.multipliers = dict(multipliers)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has two overloads
        """Move the weights; the gradients are afterwards what they were."""
        loss = _computed(closure)
        kept = {p: p.grad for p in self.multipliers}
        try:
            for p, gradient in kept.items():
                p.grad = None if gradient is None else gradient * self.multipliers[p]
            super().step()
        finally:
            for p, gradient in kept.items():
                p.grad = gradient
        return loss


class RepAdamW(torch.optim.AdamW):
    """AdamW whose gradients and updates are multiplied; weight decay is as always."""

    def __init__(self, params: Parameters, multipliers: Multipliers, **options: Any) -> None:  # noqa: ANN401 - those of torch.optim.AdamW
        """Take the parameters, the multipliers with power 1, and the options of AdamW.

        `foreach` and `fused` are for the parameters without a multiplier. Raises: OptionError for
        options that are not carried, and as `RepSGD`.
        """
        super().__init__(params, **options)
        _known(self, multipliers)
        self.multipliers = dict(multipliers)
        wanted = [name for name in _UNHANDLED if any(g[name] for g in self.param_groups)]
        if wanted:
            raise OptionError(f"RepAdamW with {' and '.join(wanted)}", expected="AdamW without")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has two overloads
        """Move the weights; the gradients are afterwards what they were."""
        loss = _computed(closure)
        kept = {p: p.grad for p in self.multipliers}
        try:
            for p in kept:
                p.grad = None
            super().step()
        finally:
            for p, gradient in kept.items():
                p.grad = gradient
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.multipliers and p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: nn.Parameter, group: Mapping[str, Any]) -> None:
        """Move one weight: p = p * (1 - rate * decay) - rate * M * m / (sqrt(v) + eps)."""
        assert p.grad is not None
        factor, state = self.multipliers[p], self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        count, (first, second), rate = float(state["step"]), group["betas"], float(group["lr"])
        gradient = p.grad * factor
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (state["exp_avg_sq"] / (1 - second**count)).sqrt_().add_(group["eps"])
        p.mul_(1 - rate * group["weight_decay"])
        p.addcmul_(factor, state["exp_avg"] / spread, value=-rate / (1 - first**count))


def _computed(closure: Callable[[], float] | None) -> float | None:
    """Return what the closure gives, which computes the gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
