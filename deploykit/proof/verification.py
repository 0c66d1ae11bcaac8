"""Does a candidate compute what its reference computes? One `Agreement` per output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import InputError, ModelError
from deploykit.tasks.agreement import PaddedRows, span
from deploykit.values import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.backends import Arrays, Session
    from deploykit.tasks.task import Pairing

    Array: TypeAlias = NDArray[np.generic]
    Doubles: TypeAlias = NDArray[np.float64]

_ROWS = (2, 3)
"""Ranks of outputs whose last axis tells quantities apart: [batch, C] and [batch, anchors, C]."""


def verify(  # noqa: PLR0913 - two sessions, their inputs and three independent switches
    candidate: Session,
    reference: Session,
    feeds: Iterable[Arrays],
    *,
    atol: float,
    rtol: float,
    columns: bool = False,
    pairing: Pairing | None = None,
) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` compares with `reference` over all `feeds`.

    With `columns`, each index of an output's last axis is compared on its own too, as
    `name[..., i]`: where boxes in pixels and scores share an output, errors of the scores would
    vanish in the range of the boxes.

    `pairing` is the task's: it brings outputs into one order before they are compared, and has
    findings of its own. By default rows of padded detections are paired, see `tasks.matching`:
    `count` then says how many rows have no partner, `classes` how many have another class.

    An output passes where, on every input, `max_abs <= atol + rtol * range`, with range the
    largest minus the smallest finite value of the reference (their magnitude, where that is 0).
    NaN must meet NaN, and an infinity the same infinity; all else is an infinite error.

    Raises: ModelError for an output that is missing, or differs in shape or type; InputError
    where `feeds` is empty or a tolerance is not a number >= 0.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if not value >= 0:
            raise InputError(f"{name} is {value}", expected="a number, 0 or more")
    tallies: dict[str, Tally] = {}
    pairing = pairing or PaddedRows()
    for feed in feeds:
        expected, found = reference.run(feed), candidate.run(feed)
        check_interface(found, expected)
        for name, pair in pairing.pairs(found, expected, atol, rtol).items():
            ours, theirs = pair.found, pair.expected
            tallies.setdefault(name, Tally()).add(ours, theirs, atol, rtol * pair.factor)
            split = columns and pair.columns and theirs.ndim in _ROWS
            for i in range(theirs.shape[-1] if split else 0):
                column = tallies.setdefault(f"{name}[..., {i}]", Tally())
                column.add(ours[..., i], theirs[..., i], atol, rtol)
    agreements = tuple(tally.agreement(name) for name, tally in tallies.items())
    agreements += pairing.findings()
    if not agreements:
        raise InputError("there is nothing to compare: no inputs, or no outputs")
    return agreements


def check_interface(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Check that every expected output was found, with its shape and type. Raises: ModelError."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise ModelError(
            f"the candidate has no output {', '.join(map(repr, missing))}",
            expected="the reference's outputs " + ", ".join(expected),
            fix="its outputs are " + (", ".join(found) or "none") + "; name them alike",
        )
    for name, array in expected.items():
        if _form(found[name]) != _form(array):
            raise ModelError(
                f"output {name!r} of the candidate is {_form(found[name])}",
                expected=f"{_form(array)}, as the reference gives",
                fix="compare a model with the one it was made from, at the same input size",
            )


def _form(array: Array) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


@dataclass
class Tally:
    """The errors of one output so far."""

    max_abs: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0
    passed: bool = True
    error: float = 0.0
    """Energy of the errors of finite values."""
    energy: float = 0.0
    """Of the reference's finite values."""
    means: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, found: Array, expected: Array, atol: float = math.inf, rtol: float = 0.0) -> None:
        """Take in the outputs of one run."""
        ours, theirs = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        errors, reach = _errors(ours, theirs), span(theirs)
        largest = float(errors.max(initial=0.0))
        self.max_abs = max(self.max_abs, largest)
        self.relative = max(self.relative, _ratio(largest, reach))
        self.cosine = min(self.cosine, _cosine(ours, theirs))
        self.passed &= largest <= atol + rtol * reach
        finite = np.isfinite(errors) & np.isfinite(theirs)
        with np.errstate(over="ignore"):  # an energy beyond float64 is no figure at all
            self.error += float(np.square(errors[finite]).sum())
            self.energy += float(np.square(theirs[finite]).sum())
        self.means.append(float(errors.mean()) if errors.size else 0.0)
        self.sizes.append(max(errors.size, 1))

    def agreement(self, name: str) -> Agreement:
        """Return the verdict over all runs: worst errors, mean over all elements."""
        total = sum(mean * size for mean, size in zip(self.means, self.sizes, strict=True))
        mean_abs = total / sum(self.sizes)
        noise = self.error / self.energy if 0 < self.energy < math.inf else None
        parts = (name, self.max_abs, mean_abs, self.relative, self.cosine)
        return Agreement(*parts, passed=self.passed, noise=noise)


def _errors(ours: Doubles, theirs: Doubles) -> Doubles:
    """Return |ours - theirs|: 0 where both are the same NaN or infinity, else infinite there."""
    finite = np.isfinite(ours) & np.isfinite(theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    errors: Doubles = np.where(same, 0.0, np.inf)
    errors[finite] = np.abs(ours[finite] - theirs[finite])
    return errors


def _ratio(error: float, span: float) -> float:
    if span > 0:
        return error / span
    return 0.0 if error == 0 else math.inf


def _cosine(ours: Doubles, theirs: Doubles) -> float:
    """Return the cosine of the angle between the finite parts; 1 for two zero vectors.

    Each side is scaled to a largest magnitude of 1 first, so that no square overflows.
    """
    finite = np.isfinite(ours) & np.isfinite(theirs)
    sides = [values[finite] for values in (ours, theirs)]
    peaks = [float(np.abs(side).max(initial=0.0)) for side in sides]
    if 0.0 in peaks:
        return 1.0 if peaks[0] == peaks[1] else 0.0
    a, b = (side / peak for side, peak in zip(sides, peaks, strict=True))
    cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, cosine))
