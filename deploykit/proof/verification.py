"""Does a candidate compute what its reference computes? One `Agreement` per output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import InputError, ModelError
from deploykit.proof import matching
from deploykit.proof.matching import KEYS, Matching, Selection
from deploykit.values import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.backends import Arrays, Session
    from deploykit.proof.matching import Account

    Array: TypeAlias = NDArray[np.generic]
    Doubles: TypeAlias = NDArray[np.float64]

ORDER = "scores[order]"
"""Name under which it is compared that the scores of a candidate's detections fall."""
DEPENDENT = 10
"""Masks and keypoints are computed from features inside boxes that differ already."""
_UNKNOWN = Selection()
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
    selection: Selection = _UNKNOWN,
) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` compares with `reference` over all `feeds`.

    With `columns`, each index of an output's last axis is compared on its own too, as
    `name[..., i]`: where boxes in pixels and scores share an output, errors of the scores would
    vanish in the range of the boxes.

    Where the outputs are padded detections, rows are paired first, see `matching`, and pairs are
    compared; `count` then says how many rows have no partner, `classes` how many of them have
    another class. `selection` says what the models keep. Masks and keypoints are allowed
    `DEPENDENT` times the relative error.

    An output passes where, on every input, `max_abs <= atol + rtol * range`, with range the
    largest minus the smallest finite value of the reference (their magnitude, where that is 0).
    NaN must meet NaN, and an infinity the same infinity; all else is an infinite error.

    Raises: ModelError for an output that is missing, or differs in shape or type; InputError
    where `feeds` is empty or a tolerance is not a number >= 0.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if not value >= 0:
            raise InputError(f"{name} is {value}", expected="a number, 0 or more")
    tallies: dict[str, _Tally] = {}
    rows = Matching(selection)
    for feed in feeds:
        expected, found = reference.run(feed), candidate.run(feed)
        check_interface(found, expected)
        detections = matching.applies(expected)
        if detections:
            compared = _paired(found, expected, rows, atol, rtol)
        else:
            compared = {name: (found[name], array) for name, array in expected.items()}
        for name, (ours, theirs) in compared.items():
            wider = DEPENDENT if detections and name in expected and name not in KEYS else 1
            tallies.setdefault(name, _Tally()).add(ours, theirs, atol, rtol * wider)
            split = columns and theirs.ndim in _ROWS and not (detections and name != "boxes")
            for i in range(theirs.shape[-1] if split else 0):
                column = tallies.setdefault(f"{name}[..., {i}]", _Tally())
                column.add(ours[..., i], theirs[..., i], atol, rtol)
    if not tallies:
        raise InputError("there is nothing to compare: no inputs, or no outputs")
    agreements = tuple(tally.agreement(name) for name, tally in tallies.items())
    return agreements + (_accounts(rows.account) if detections else ())


def _paired(
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    rows: Matching,
    atol: float,
    rtol: float,
) -> dict[str, tuple[Array, Array]]:
    """Return what is compared of detections: the pairs, and that the candidate's scores fall."""
    margin = atol + rtol * _span(expected["scores"][matching.filled(expected)].astype(np.float64))
    compared = rows.align(found, expected, margin)
    ours_, theirs_ = (boxes.astype(np.float64) for boxes in compared["boxes"])
    strays = _strays(ours_, theirs_, atol, rtol)
    if 0 < strays.sum() <= matching.MOST_MISSING * len(strays):
        # Partners in name only: each is alone, as a proposal that the other side had not found.
        rows.account.part(int(strays.sum()))
        compared = {name: (a[~strays], b[~strays]) for name, (a, b) in compared.items()}
    filled = matching.filled(found)
    scores = np.where(filled, found["scores"], 0).astype(np.float64)
    compared[ORDER] = scores, -np.sort(-scores, 1)
    for name, (ours, theirs) in compared.items():
        numbers = found[name][filled] if name in found else ours
        if np.isfinite(theirs).all() and not np.isfinite(numbers).all():
            shape = (1, *theirs.shape[1:])
            compared[name] = np.full(shape, np.nan), np.zeros(shape)
    return compared


def _strays(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], atol: float, rtol: float
) -> NDArray[np.bool_]:
    """Return which pairs have boxes further apart than allowed, bool[pairs]."""
    with np.errstate(invalid="ignore"):
        far: NDArray[np.bool_] = np.abs(ours - theirs).max(1, initial=0) > (
            atol + rtol * _span(theirs)
        )
    return far


def _accounts(account: Account) -> tuple[Agreement, Agreement]:
    """Return what `classes` and `count` say of rows without a partner.

    `max_abs` is how many there are, `mean_abs` their share; they have no range to be relative to.
    """
    total = max(account.rows, 1)
    swapped = account.swapped + account.unpadded
    note = account.note if account.rows else "neither found anything: nothing was compared"
    shares = {"classes": swapped / total, "count": account.share}
    counts = {"classes": swapped, "count": account.alone}
    passed = {"classes": swapped == 0, "count": account.agrees}
    classes, count = (
        Agreement(
            name,
            max_abs=counts[name],
            mean_abs=share,
            relative=0.0,
            cosine=1 - share,
            passed=passed[name],
            note="" if passed[name] else note,
        )
        for name, share in shares.items()
    )
    return classes, count


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
class _Tally:
    """The errors of one output so far."""

    max_abs: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0
    passed: bool = True
    means: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, found: Array, expected: Array, atol: float, rtol: float) -> None:
        """Take in the outputs of one run."""
        ours, theirs = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        errors, span = _errors(ours, theirs), _span(theirs)
        largest = float(errors.max(initial=0.0))
        self.max_abs = max(self.max_abs, largest)
        self.relative = max(self.relative, _ratio(largest, span))
        self.cosine = min(self.cosine, _cosine(ours, theirs))
        self.passed &= largest <= atol + rtol * span
        self.means.append(float(errors.mean()) if errors.size else 0.0)
        self.sizes.append(max(errors.size, 1))

    def agreement(self, name: str) -> Agreement:
        """Return the verdict over all runs: worst errors, mean over all elements."""
        total = sum(mean * size for mean, size in zip(self.means, self.sizes, strict=True))
        mean_abs = total / sum(self.sizes)
        return Agreement(
            name, self.max_abs, mean_abs, self.relative, self.cosine, passed=self.passed
        )


def _errors(ours: Doubles, theirs: Doubles) -> Doubles:
    """Return |ours - theirs|: 0 where both are the same NaN or infinity, else infinite there."""
    finite = np.isfinite(ours) & np.isfinite(theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    errors: Doubles = np.where(same, 0.0, np.inf)
    errors[finite] = np.abs(ours[finite] - theirs[finite])
    return errors


def _span(values: Doubles) -> float:
    """Return largest - smallest finite value; their magnitude where all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    low, high = float(finite.min()), float(finite.max())
    return high - low if high > low else abs(high)


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
