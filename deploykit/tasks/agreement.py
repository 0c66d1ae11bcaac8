"""How the outputs of two models of a task are brought together before their numbers are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.tasks import matching
from deploykit.tasks.matching import KEYS, Matching, Selection
from deploykit.tasks.task import Pair
from deploykit.values import Agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.tasks.matching import Account
    from deploykit.tasks.outputs import Output
    from deploykit.tasks.task import Array, Arrays, Pairing

    Doubles: TypeAlias = NDArray[np.float64]

ORDER = "scores[order]"
"""Name under which it is compared that the scores of a candidate's detections fall."""
DEPENDENT = 10
"""Masks and keypoints are computed from features inside boxes that differ already."""


@dataclass(frozen=True)
class InOrder:
    """Outputs are compared element by element, in the order in which they stand."""

    outputs: tuple[Output, ...] = ()
    """What is known of them; of others the last axis may hold different quantities."""

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return every output of the reference with the candidate's."""
        del atol, rtol
        one = {output.name for output in self.outputs if not output.has_columns}
        return {n: Pair(found[n], array, columns=n not in one) for n, array in expected.items()}

    def findings(self) -> tuple[Agreement, ...]:
        """Return nothing: pairs say it all."""
        return ()


@dataclass(frozen=True)
class OfKinds:
    """A task's pairing, and what is known of the outputs that it leaves in order."""

    pairing: Pairing
    outputs: tuple[Output, ...]

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return the pairs of the task's pairing; an output of one quantity has no columns."""
        one = {output.name for output in self.outputs if not output.has_columns}
        made = self.pairing.pairs(found, expected, atol, rtol)
        return {n: pair._replace(columns=pair.columns and n not in one) for n, pair in made.items()}

    def findings(self) -> tuple[Agreement, ...]:
        """Return those of the task's pairing."""
        return self.pairing.findings()


class PaddedRows:
    """Rows of padded detections are paired first, see `matching`; others are compared in order."""

    def __init__(
        self,
        selection: Selection = Selection(),  # noqa: B008 - a frozen value
        outputs: tuple[Output, ...] = (),
    ) -> None:
        """Take what is known of how the models choose their rows, and of their outputs."""
        self._rows, self._others = Matching(selection), InOrder(outputs)
        self._paired = False

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return the pairs of one run, and that the candidate's scores fall."""
        self._paired = matching.applies(expected)
        if not self._paired:
            return self._others.pairs(found, expected, atol, rtol)
        compared = self._together(found, expected, atol, rtol)
        return {
            name: Pair(
                ours,
                theirs,
                factor=DEPENDENT if name in expected and name not in KEYS else 1.0,
                columns=name == "boxes",
            )
            for name, (ours, theirs) in compared.items()
        }

    def findings(self) -> tuple[Agreement, ...]:
        """Return what `classes` and `count` say of rows without a partner."""
        return _accounts(self._rows.account) if self._paired else ()

    def _together(
        self, found: Arrays, expected: Arrays, atol: float, rtol: float
    ) -> dict[str, tuple[Array, Array]]:
        """Return both sides of every comparison: the pairs, and that the scores found fall."""
        scores = expected["scores"][matching.filled(expected)].astype(np.float64)
        margin = atol + rtol * span(scores)
        compared = self._rows.align(found, expected, margin)
        ours_, theirs_ = (boxes.astype(np.float64) for boxes in compared["boxes"])
        strays = _strays(ours_, theirs_, atol, rtol)
        if 0 < strays.sum() <= matching.MOST_MISSING * len(strays):
            # Partners in name only: each is alone, as a proposal that the other side had not found.
            self._rows.account.part(int(strays.sum()))
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
            atol + rtol * span(theirs)
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


def span(values: Doubles) -> float:
    """Return largest - smallest finite value; their magnitude where all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    low, high = float(finite.min()), float(finite.max())
    return high - low if high > low else abs(high)
