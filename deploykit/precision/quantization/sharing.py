"""Readers of one tensor that may share a step, for each further one is stored once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.precision.quantization.arithmetic import MAX_LOSS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deploykit.precision.placement import Activation
    from deploykit.values import CalibrationTable

    Domain = tuple[str, ...]

_WIDER = MAX_LOSS**0.5
"""Times its own range that a reader takes another's: the noise goes with its square, so 1 dB."""


@dataclass(frozen=True)
class Reading:
    """A tensor with one step, and who reads it so."""

    tensor: str
    readers: tuple[tuple[str, int], ...]
    """(node name, input index)."""
    ranges: tuple[str, ...]
    """The calibrated tensors whose largest range it takes."""
    threshold: float
    """The magnitude that 127 steps reach."""


def readings(activations: Iterable[Activation], table: CalibrationTable) -> Iterator[Reading]:
    """Yield every tensor with a step of its own for each range that its readers need.

    Where two ranges of one tensor are alike, its readers take the larger one together.

    Raises: InputError for a tensor without a range.
    """
    found = tuple(activations)
    thresholds = {a.ranges: _threshold(a.ranges, table) for a in found}
    taken = _taken(found, thresholds)
    together: dict[tuple[str, Domain], list[tuple[str, int]]] = {}
    for activation in found:
        together.setdefault((activation.tensor, taken[activation.ranges]), []).extend(
            activation.readers
        )
    for (tensor, ranges), readers in together.items():
        yield Reading(tensor, tuple(readers), ranges, thresholds[ranges])


def _taken(
    activations: Iterable[Activation], thresholds: Mapping[Domain, float]
) -> dict[Domain, Domain]:
    """Return the range that each range is replaced by: itself, or one of a tensor of its own."""
    beside: dict[str, dict[Domain, None]] = {}
    for activation in activations:
        beside.setdefault(activation.tensor, {})[activation.ranges] = None
    near: dict[Domain, dict[Domain, None]] = {ranges: {} for ranges in thresholds}
    for several in beside.values():
        for ranges in several:
            near[ranges].update(several)
    taken: dict[Domain, Domain] = {}
    for ranges in sorted(thresholds, key=lambda each: (-thresholds[each], each)):
        fit = (
            other
            for other in near[ranges]
            if taken.get(other) == other and thresholds[other] <= _WIDER * thresholds[ranges]
        )
        taken[ranges] = next(fit, ranges)
    return taken


def _threshold(ranges: Domain, table: CalibrationTable) -> float:
    """Return the largest threshold. Raises: InputError for a tensor without a range."""
    absent = [name for name in ranges if name not in table.ranges]
    if absent:
        raise InputError(
            f"the calibration table has no range for {', '.join(map(repr, absent))}",
            fix="calibrate the model again",
        )
    return max(table.ranges[name].threshold for name in ranges)
