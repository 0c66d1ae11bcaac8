"""A graph that computes as its INT8 form will, and learns so.

What is rounded, for which readers and by which step, is what `placement` and `quantization` say of
the same graph: a Q/DQ pair in the file is one function here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, distributed, nn

from deploykit.errors import OptionError, unknown_name
from deploykit.precision.quantization.arithmetic import (
    MIN_SCALE,
    activation_scale,
    scale_type,
    weight_scale_type,
    weight_scales,
)
from deploykit.precision.quantization.sharing import readings
from deploykit.training import graphs, rounding
from deploykit.values import INT8_LEVELS, Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.precision.placement import Placement, Weight
    from deploykit.precision.quantization.sharing import Reading
    from deploykit.training.graphs.interpreting import Reader
    from deploykit.values import CalibrationTable

Scales: TypeAlias = Literal["fixed", "learned", "moving"]
"""fixed: the table's; learned: by their gradient; moving: a moving average of the largest value."""
_MOMENTUM = 0.99
"""Of the moving average, each step."""
_LEAST = MIN_SCALE[Precision.FP32] * INT8_LEVELS
"""Smallest threshold: that of a tensor that is always 0."""
MIN_BITS = 2


@dataclass(frozen=True)
class Grid:
    """The numbers that are kept."""

    float_type: Precision = Precision.FP16
    """What steps are rounded to, as `quantize` is asked to."""
    bits: int = 8
    """Fewer than 8 are for experiments: no file holds them."""

    def __post_init__(self) -> None:
        """Check the number of bits. Raises: OptionError."""
        if not MIN_BITS <= self.bits <= 8:
            raise OptionError(f"{self.bits} bits", expected=f"{MIN_BITS} to 8")

    @property
    def levels(self) -> int:
        """Return the largest magnitude, 127 for 8 bits."""
        return (1 << self.bits - 1) - 1

    @property
    def coarser(self) -> float:
        """Return how many times an INT8 step a step is."""
        return INT8_LEVELS / self.levels

    def step(self, threshold: float) -> float:
        """Return the step of an activation whose largest magnitude is `threshold`."""
        wide = threshold * self.coarser
        return float(activation_scale(wide, scale_type(wide, self.float_type)))


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


class FakeQuantized(nn.Module):
    """A graph whose layers read what INT8 keeps of weights and activations."""

    def __init__(
        self,
        model: ir.Model,
        placed: Placement,
        table: CalibrationTable,
        *,
        grid: Grid | None = None,
        scales: Scales = "fixed",
    ) -> None:
        """Copy the weights of a model, and take the ranges of a table.

        Raises: ModelError, see `graphs.module`; InputError where the table lacks a range.
        """
        super().__init__()
        self.grid = grid or Grid()
        self.graph = graphs.module(model)
        self.placed, self.table = placed, table
        names = {name for found in placed.activations for name in found.ranges}
        list(readings(placed.activations, table))  # raises where one is missing
        self.thresholds = Thresholds({n: table.ranges[n].threshold for n in names}, scales)
        self.refresh()

    def refresh(self) -> None:
        """Round anew by the thresholds of this moment: readers whose steps are near share one."""
        self.graph.clear()
        self._weights: list[tuple[str, _Weights]] = []
        found = list(readings(self.placed.activations, self.ranged()))
        readers: dict[str, set[Reader]] = {}
        for reading in found:
            readers.setdefault(reading.tensor, set()).update(reading.readers)
        bare = {tensor for tensor, some in readers.items() if self.graph.bare(tensor, some)}
        for reading in found:
            rounds = _Activation(
                reading, self.thresholds, self.grid, rectifies=reading.tensor in bare
            )
            self.graph.insert(reading.tensor, reading.readers, rounds)
        together: dict[tuple[str, int | None], list[Weight]] = {}
        for weight in self.placed.weights:
            together.setdefault((weight.tensor, weight.axis), []).append(weight)
        for (tensor, axis), users in together.items():
            where = [(weight.node, 1) for weight in users]
            function = _Weights(self._array(tensor), axis, self.grid)
            self.graph.insert(tensor, where, function)
            self._weights.append((tensor, function))
        self._settle()

    def ranged(self) -> CalibrationTable:
        """Return the table with the thresholds of this moment."""
        return with_thresholds(self.table, self.thresholds.values())

    def forward(self, *given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, for inputs by name or in order."""
        return self.tensors(*given, names=self.graph.outputs)

    def tensors(
        self, *given: Tensor | Mapping[str, Tensor], names: Collection[str]
    ) -> dict[str, Tensor]:
        """Return any tensors by name, as their layers give them."""
        self._settle()
        return self.graph.tensors(*given, names=names)

    @torch.no_grad()
    def _settle(self) -> None:
        """Take the steps of this moment: one wait for a GPU, not one for each weight."""
        self.thresholds.settle()
        if not self._weights:
            return
        largest = [each.largest(self.graph.constant(name)) for name, each in self._weights]
        device, sizes = largest[0].device, [len(each) for each in largest]
        told = torch.split(torch.cat(largest).cpu(), sizes)
        steps = [
            each.steps(one.numpy()) for (_, each), one in zip(self._weights, told, strict=True)
        ]
        moved = torch.split(torch.from_numpy(np.concatenate(steps)).to(device), sizes)
        for (_, each), one in zip(self._weights, moved, strict=True):
            each.taken = one

    def _array(self, tensor: str) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.graph.constant(tensor).detach().cpu().numpy()
        return found


def with_thresholds(table: CalibrationTable, values: Mapping[str, float]) -> CalibrationTable:
    """Return a table with other thresholds for some tensors."""
    ranges = {
        name: replace(each, threshold=values.get(name, each.threshold))
        for name, each in table.ranges.items()
    }
    return replace(table, ranges=ranges)


class _Activation(nn.Module):
    """Q and DQ of a tensor; rectifies: of the Relu of it."""

    def __init__(
        self, reading: Reading, thresholds: Thresholds, grid: Grid, *, rectifies: bool
    ) -> None:
        super().__init__()
        self._reach = (0 if rectifies else -grid.levels - 1, grid.levels)
        self._ranges, self._grid = reading.ranges, grid
        self._step = grid.step(reading.threshold)
        self._thresholds = (thresholds,)  # hidden: it is a part of who owns it

    def forward(self, x: Tensor) -> Tensor:
        """Return what the readers see."""
        (thresholds,) = self._thresholds
        step, exact = self._step, None
        if thresholds.scales != "fixed":
            step = self._grid.step(thresholds.reached(self._ranges))
            if self.training and thresholds.scales == "learned":
                exact = thresholds.of(self._ranges) / self._grid.levels
        return rounding.rounded(x.float(), exact, step, self._reach).to(x.dtype)


class _Weights(nn.Module):
    """Weights as the file stores them, by the steps that their largest magnitudes make."""

    taken: Tensor
    """float32[channels]: the steps of this moment, see `FakeQuantized`."""

    def __init__(self, weights: NDArray[np.float32], axis: int | None, grid: Grid) -> None:
        super().__init__()
        self._axis, self._grid = axis, grid
        self._small = weight_scale_type(weights * _f32(grid.coarser), axis, grid.float_type)

    def forward(self, weights: Tensor) -> Tensor:
        """Return what the layer sees; the gradient passes as it is, for no weight is clipped."""
        return rounding.straight(weights, self._rounded(weights))

    @torch.no_grad()
    def _rounded(self, weights: Tensor) -> Tensor:
        levels = self._grid.levels
        shape = [-1 if i == self._axis else 1 for i in range(weights.ndim)]
        found = rounding.on_grid(weights.float(), self.taken.reshape(shape), (-levels, levels))
        return found.to(weights.dtype)

    def largest(self, weights: Tensor) -> Tensor:
        """Return the largest magnitude that each step has to reach, float32[channels]."""
        axes = [i for i in range(weights.ndim) if i != self._axis]
        return weights.abs().amax(axes).float().reshape(-1)

    def steps(self, largest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the steps by the arithmetic of the file, float32[channels]."""
        column = (largest * _f32(self._grid.coarser)).reshape(-1, 1)
        along = None if self._axis is None else 0
        wide = float(column.min(initial=np.inf)) >= MIN_SCALE[Precision.FP16] * INT8_LEVELS
        kind = self._grid.float_type if wide else self._small
        with np.errstate(over="ignore"):  # the loss tells of weights beyond all numbers
            return weight_scales(column, along, kind).reshape(-1)


def _f32(value: float) -> np.float32:
    return np.float32(value)
