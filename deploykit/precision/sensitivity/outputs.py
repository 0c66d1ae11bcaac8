"""What a layer's INT8 does to the outputs of the whole model, and to what the model finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[np.generic]]
    Real = NDArray[np.float64]

_ROWS = 3
"""Dimensions of an output of rows: the images, the rows, what a row says."""


@dataclass
class Difference:
    """How far the outputs of one model are from another's, over batches of images."""

    _errors: dict[str, Real] = field(default_factory=dict)
    """Output -> per column: the energy of the error."""
    _moments: dict[str, Real] = field(default_factory=dict)
    """Output -> of the reference per column: count, sum, sum of squares."""

    def add(self, found: Outputs, expected: Outputs) -> None:
        """Take in the outputs for a batch. Numbers that are not finite count as nothing."""
        for name, reference in expected.items():
            other, one = (_columns(each) for each in (found[name], reference))
            usable = np.isfinite(other) & np.isfinite(one)
            if not np.issubdtype(reference.dtype, np.floating):  # a class is right or wrong
                other, one = (other != one).astype(np.float64), np.ones_like(one)
                moments = np.stack([usable.sum(0), np.zeros(one.shape[1]), usable.sum(0)])
                error = other
            else:
                held = np.where(usable, one, 0.0)
                moments = np.stack([usable.sum(0), held.sum(0), np.square(held).sum(0)])
                error = np.square(np.where(usable, other, 0.0) - held)
            energy = np.where(usable, error, 0.0).sum(0)
            self._errors[name] = self._errors.get(name, 0.0) + energy
            self._moments[name] = self._moments.get(name, 0.0) + moments

    def noise(self) -> float:
        """Return the energy of the errors over that of the reference about its mean.

        The mean over all columns of all outputs that are not constant.
        """
        shares = [share for each in self.shares().values() for share in each[np.isfinite(each)]]
        return float(np.mean(shares)) if shares else 0.0

    def plain(self) -> float | None:
        """Return the energy of the errors over that of the reference; None where that is zero."""
        energy = sum(float(moments[2].sum()) for moments in self._moments.values())
        errors = sum(float(each.sum()) for each in self._errors.values())
        return errors / energy if energy > 0 else None

    def shares(self, least: int = 1) -> dict[str, Real]:
        """Return that of each column, output -> float64[columns].

        NaN where a column is constant, or where it had fewer than `least` values.
        """
        found = {}
        for name, error in self._errors.items():
            count, total, squares = self._moments[name]
            spread = squares - np.square(total) / np.maximum(count, 1)
            live = (spread > _LEAST * squares) & (count >= least)
            found[name] = np.where(live, error / np.where(live, spread, 1.0), np.nan)
        return found


_LEAST = 1e-9
"""Spread, over the energy, of a column that is constant up to rounding."""


def _columns(values: NDArray[np.generic]) -> Real:
    """Return float64[values, columns]: rows have columns of their own, all else is one."""
    width = values.shape[-1] if values.ndim == _ROWS else 1
    return values.astype(np.float64).reshape(-1, width)
