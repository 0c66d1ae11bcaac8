"""How far the steps of weights and activations reach, and how that is learnt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor, distributed, nn

from deploykit.errors import unknown_name
from deploykit.values import INT8_LEVELS, LEAST_STEP

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Scales: TypeAlias = Literal["fixed", "learned", "moving"]
"""fixed: the table's; learned: by their gradient; moving: a moving average of the largest value."""
_MOMENTUM = 0.99
"""Of the moving average, each step."""
_LEAST = LEAST_STEP * INT8_LEVELS
"""Smallest threshold: that of a tensor that is always 0."""
_NOTHING = 1e-30
"""Stands for the limit of a channel whose weights are all 0."""


class Thresholds(nn.Module):
    """The magnitude that the steps of each calibrated tensor reach, in the order of names."""

    logs: Tensor
    """float64[tensors]: logarithms, so that one rate suits large and small ones."""

    def __init__(self, values: Mapping[str, float], scales: Scales) -> None:
        """Start from those of a table. Raises: OptionError for an unknown kind of scales."""
        super().__init__()
        if scales not in get_args(Scales):
            raise unknown_name("kind of scales", scales, get_args(Scales))
        self.scales = scales
        self.names = tuple(sorted(values))
        self.places = {name: place for place, name in enumerate(self.names)}
        given = [max(values[name], _LEAST) for name in self.names]
        logs = torch.tensor(given, dtype=torch.float64).log()
        if scales == "learned":
            self.logs = nn.Parameter(logs)
        else:
            self.register_buffer("logs", logs)
        self._given = dict(zip(self.names, zip(logs.tolist(), given, strict=True), strict=True))
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the thresholds of this moment to the host, all at once: each waits for a GPU."""
        self._reached: list[float] = self.logs.exp().tolist()

    def reached(self, names: Collection[str]) -> float:
        """Return the largest threshold of some tensors, as it was when settled."""
        return max(self._reached[self.places[name]] for name in names)

    def values(self) -> dict[str, float]:
        """Return the threshold of each tensor; one that did not move is as it was given."""
        found = {}
        for name, log in zip(self.names, self.logs.tolist(), strict=True):
            before, value = self._given[name]
            found[name] = value if log == before else math.exp(log)
        return found

    def of(self, names: Collection[str]) -> Tensor:
        """Return the largest threshold of some tensors, with its gradient."""
        places = [self.places[name] for name in names]
        if len(places) == 1:
            return self.logs[places[0]].exp()
        return torch.stack([self.logs[place] for place in places]).max().exp()

    @torch.no_grad()
    def move(self, tensors: Mapping[str, Tensor]) -> None:
        """Move towards the largest magnitudes of a batch, that of all processes together."""
        if not tensors:
            return
        seen = torch.stack([each.abs().amax().double() for each in tensors.values()])
        if distributed.is_initialized():
            distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        places = [self.places[name] for name in tensors]
        new = _MOMENTUM * self.logs[places].exp() + (1 - _MOMENTUM) * seen
        self.logs[places] = new.clamp(min=_LEAST).log()


class Limits(nn.Module):
    """A magnitude for each channel, beyond which its weights are clipped.

    No file says so: weights that are stored clipped have it as their largest one, by which
    `quantize` finds the steps.
    """

    logs: Tensor
    """float64[all channels]: logarithms, so that one rate suits large and small ones."""

    def __init__(self, largest: Mapping[str, Tensor]) -> None:
        """Begin where nothing is clipped.

        largest: weight -> float32[channels], the largest magnitude of each.
        """
        super().__init__()
        self._parts: dict[str, slice] = {}
        start = 0
        for name, each in largest.items():
            self._parts[name] = slice(start, start + len(each))
            start += len(each)
        logs = [each.double().clamp(min=_NOTHING).log() for each in largest.values()]
        if logs:
            self.logs = nn.Parameter(torch.cat(logs))

    def __contains__(self, name: str) -> bool:
        """Return whether a weight has limits."""
        return name in self._parts

    def of(self, name: str) -> Tensor:
        """Return the limits of a weight, float64[channels], with their gradient."""
        return self._part(name).exp()

    def bound(self, name: str, largest: Tensor) -> Tensor:
        """Return how far the steps of a weight reach: to its `largest` ones, or its limits."""
        if name not in self:
            return largest
        return torch.minimum(largest, self.of(name).detach().to(largest.dtype))

    @torch.no_grad()
    def lower(self, name: str, largest: Tensor) -> None:
        """Bring limits down to the largest magnitudes, beyond which they mean nothing."""
        if name in self:
            part = self._part(name)
            part.copy_(torch.minimum(part, largest.double().clamp(min=_NOTHING).log()))

    def _part(self, name: str) -> Tensor:
        return self.logs[self._parts[name]]
