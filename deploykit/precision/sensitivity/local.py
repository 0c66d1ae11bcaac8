"""What INT8 does to each layer's own result: all layers in one pass over the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.precision.sensitivity.doubling import Names

    Sums: TypeAlias = "dict[str, Energies]"
    Run: TypeAlias = "Callable[[Arrays], Mapping[str, NDArray[np.generic]]]"


class Energies(NamedTuple):
    """What one layer's result adds up to over some images."""

    channels: NDArray[np.float64]
    """float64[3, channels]: energies of the error, the float result, the result from INT8."""
    values: int
    """How many values were summed."""


@dataclass(frozen=True)
class Local:
    """What INT8 does to one layer's result, everything before it being float."""

    mse: float
    """Mean square of what it changes, in the tensor's unit."""
    snr: float
    """Energy of the float result over that of the change, in dB; inf where nothing changes."""
    cosine: float
    """1 - cosine of the angle between the two results: 0 where they are alike."""
    channel: float
    """Energy of the change over that of the channel, mean over the channels that have any."""


def sums(run: Run, layers: Mapping[str, Names], batch: Arrays) -> Sums:
    """Return the energies of one batch per layer, summed over images in float64."""
    outputs = run(batch)
    return {name: _energies(outputs, of) for name, of in layers.items()}


def _energies(outputs: Mapping[str, NDArray[np.generic]], names: Names) -> Energies:
    per_image = (np.atleast_2d(outputs[each]) for each in names[:3])
    channels = [each.sum(axis=0, dtype=np.float64) for each in per_image]
    return Energies(np.stack(channels), int(outputs[names.size]))


def added(total: Sums, more: Sums) -> Sums:
    """Return the energies of two sets of images together."""
    if not total:
        return more
    return {
        name: Energies(total[name].channels + each.channels, total[name].values + each.values)
        for name, each in more.items()
    }


def scores(total: Sums) -> dict[str, Local]:
    """Return the scores of each layer."""
    return {name: _score(each) for name, each in total.items()}


def _score(energies: Energies) -> Local:
    error, signal, changed = (float(each) for each in energies.channels.sum(axis=1))
    product = (signal + changed - error) / 2
    length = math.sqrt(signal * changed)
    live = energies.channels[1] > 0
    ratios = energies.channels[0][live] / energies.channels[1][live]
    return Local(
        mse=error / max(1, energies.values),
        snr=10 * math.log10(signal / error) if error and signal else math.inf,
        cosine=max(0.0, 1 - product / length) if length else 0.0,
        channel=float(ratios.mean()) if ratios.size else 0.0,
    )
