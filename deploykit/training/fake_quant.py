"""A graph that computes as its INT8 form will, and learns so.

What is rounded, for which readers and by which step, is what `placement` and `quantization` say of
the same graph: a Q/DQ pair in the file is one function here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.errors import OptionError
from deploykit.precision.quantization.arithmetic import (
    MIN_SCALE,
    activation_scale,
    scale_type,
    weight_scale_type,
    weight_scales,
)
from deploykit.precision.quantization.sharing import readings
from deploykit.training import graphs, rounding
from deploykit.training.steps import Limits, Thresholds
from deploykit.values import INT8_LEVELS, Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.precision.placement import Placement
    from deploykit.precision.quantization.sharing import Reading
    from deploykit.training.graphs.interpreting import Reader
    from deploykit.training.steps import Scales
    from deploykit.values import CalibrationTable

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
        self.limits = Limits(self._clippable() if scales == "learned" else {})
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
        for (tensor, axis), where in self._stored().items():
            function = _Weights(tensor, self._clipped(tensor, axis), axis, self.grid, self.limits)
            self.graph.insert(tensor, where, function)
            self._weights.append((tensor, function))
        self._settle()

    def weights(self) -> dict[str, Tensor]:
        """Return what learns by name, on the host, clipped as it is read."""
        axes = {tensor: axis for tensor, axis in self._stored() if tensor in self.limits}
        return {
            name: self._clipped(name, axes[name]) if name in axes else each.detach().cpu().clone()
            for name, each in self.graph.named_parameters()
        }

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
        largest = [each.reached(self.graph.constant(name)) for name, each in self._weights]
        device, sizes = largest[0].device, [len(each) for each in largest]
        told = torch.split(torch.cat(largest).cpu(), sizes)
        steps = [
            each.steps(one.numpy()) for (_, each), one in zip(self._weights, told, strict=True)
        ]
        moved = torch.split(torch.from_numpy(np.concatenate(steps)).to(device), sizes)
        for (_, each), one in zip(self._weights, moved, strict=True):
            each.taken = one

    def _stored(self) -> dict[tuple[str, int | None], list[Reader]]:
        """Return weight, and the axis of its channels -> what reads it as INT8."""
        found: dict[tuple[str, int | None], list[Reader]] = {}
        for weight in self.placed.weights:
            found.setdefault((weight.tensor, weight.axis), []).append((weight.node, 1))
        return found

    def _clippable(self) -> dict[str, Tensor]:
        """Return the largest magnitudes of the weights that INT8 alone reads, in one way."""
        learns, stored = dict(self.graph.named_parameters()), self._stored()
        ways = Counter(tensor for tensor, _ in stored)
        return {
            tensor: _largest(learns[tensor].detach(), axis)
            for (tensor, axis), where in stored.items()
            if tensor in learns and ways[tensor] == 1 and self.graph.reads(tensor) == {*where}
        }

    @torch.no_grad()
    def _clipped(self, tensor: str, axis: int | None) -> Tensor:
        """Return a weight as the file holds it, on the host; limits beyond it are lowered."""
        weights = self.graph.constant(tensor).detach()
        if tensor in self.limits:
            largest = _largest(weights, axis)
            self.limits.lower(tensor, largest)
            bound = _along(self.limits.bound(tensor, largest), weights, axis)
            weights = torch.clamp(weights, -bound, bound)
        return weights.cpu().clone()


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

    def __init__(
        self, name: str, weights: Tensor, axis: int | None, grid: Grid, limits: Limits
    ) -> None:
        super().__init__()
        self._name, self._axis, self._grid = name, axis, grid
        self._limits = (limits,)  # hidden: it is a part of who owns it
        wide = weights.numpy() * _f32(grid.coarser)
        self._small = weight_scale_type(wide, axis, grid.float_type)

    def forward(self, weights: Tensor) -> Tensor:
        """Return what the layer sees; where no weight is clipped the gradient passes as it is."""
        (limits,), given = self._limits, self._rounded(weights)
        if not (self.training and self._name in limits):
            return rounding.straight(weights, given)
        step = _along(self.taken, weights, self._axis)
        return rounding.clipped(weights, given, limits.of(self._name), step, self._grid.levels)

    @torch.no_grad()
    def _rounded(self, weights: Tensor) -> Tensor:
        levels, step = self._grid.levels, _along(self.taken, weights, self._axis)
        found = rounding.on_grid(weights.float(), step, (-levels, levels))
        return found.to(weights.dtype)

    def reached(self, weights: Tensor) -> Tensor:
        """Return the magnitude that each step has to reach, float32[channels]."""
        (limits,) = self._limits
        return limits.bound(self._name, _largest(weights, self._axis))

    def steps(self, largest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the steps by the arithmetic of the file, float32[channels]."""
        column = (largest * _f32(self._grid.coarser)).reshape(-1, 1)
        along = None if self._axis is None else 0
        wide = float(column.min(initial=np.inf)) >= MIN_SCALE[Precision.FP16] * INT8_LEVELS
        kind = self._grid.float_type if wide else self._small
        with np.errstate(over="ignore"):  # the loss tells of weights beyond all numbers
            return weight_scales(column, along, kind).reshape(-1)


def _largest(weights: Tensor, axis: int | None) -> Tensor:
    """Return the largest magnitude of each channel, float32[channels]."""
    others = [i for i in range(weights.ndim) if i != axis]
    return weights.abs().amax(others).float().reshape(-1)


def _along(each: Tensor, weights: Tensor, axis: int | None) -> Tensor:
    """Return a number of each channel in a shape that multiplies weights."""
    return each.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])


def _f32(value: float) -> np.float32:
    return np.float32(value)
