"""Rows of padded detections brought into one order, so that two models' results compare.

Rows of nearly equal scores change places, and one that is nearly suppressed, or nearly below the
threshold, comes or goes, between two computations that differ in the last digits alone. So each
row of the reference is paired with the row of the candidate that has its class and its place, and
only pairs are compared. A row without a partner is excused where the difference that scores may
have explains it:

* its score is within that of what decides who stays: the score threshold, or the last row of a
  result that is full;
* a row of its class overlaps it by nearly the NMS's threshold, or overlaps it by more and has
  nearly its score: another one of the two won.

Results agree where every other row has its partner but for `MOST_MISSING` of all, rows with the
second excuse are at most `MOST_RIVALS` of those beyond the first, something was found at all, and
the padding is padding.

What passes all the same: rows that are excused, wrong as they may be; a box moved by less than
`SAME_PLACE` and the tolerance of boxes allow; what the images compared on do not show, such as a
class that is never found; one missing row in a hundred. So many are allowed because a proposal that
only one side found is not among the results and explains nothing, and ties among proposals happen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]
    Arrays: TypeAlias = Mapping[str, Array]
    Doubles: TypeAlias = NDArray[np.float64]
    Indices: TypeAlias = NDArray[np.int64]

KEYS = ("boxes", "scores", "classes", "count")
"""Outputs by which padded detections are known; others of the same [B, M, ...] go with them."""
SAME_PLACE = 0.75
"""Two boxes are of one object from this IoU on, both grown by a pixel, for boxes of no area
overlap nothing: detections of one class overlap each other by less."""
MOST_RIVALS = 0.05
"""Share of the rows beyond the cutoff that may have lost to a rival on one side only."""
MOST_MISSING = 0.01
"""Share of all rows that may have no partner without excuse."""
NEAR_IOU = 0.01
"""Distance to the NMS's threshold within which an overlap may be decided either way."""
_GROWN = 0.5


@dataclass(frozen=True)
class Selection:
    """How a model decides which boxes become rows; None: not known."""

    score: float | None = None
    """A row's score is above it. None: the least score of an image may be just above it."""
    iou: float | None = None
    """Of two rows of a class, the IoU is at most this. None: all that overlap may be rivals."""
    agnostic: bool = False
    """Rows of different classes suppress each other too."""


class Rows(NamedTuple):
    """One image's rows, without the padding."""

    boxes: Doubles
    scores: Doubles
    classes: Indices
    full: bool
    """There is no padding: more may have been found."""


class Pairs(NamedTuple):
    """Which rows of one image belong together."""

    reference: Indices
    """Rows with a partner, in order."""
    candidate: Indices
    """The partner of each."""
    alone: tuple[Indices, Indices]
    """Rows without: the reference's, the candidate's."""


@dataclass
class Account:
    """The rows of all images, both sides together."""

    rows: int = 0
    pairs: int = 0
    near: int = 0
    """Rows within reach of the cutoff, with a partner or without."""
    alone: int = 0
    rivals: int = 0
    """Rows alone with the second excuse."""
    swapped: int = 0
    """Rows alone without excuse, whose place is that of a row alone of another class."""
    missing: int = 0
    """Other rows alone without excuse."""
    unpadded: int = 0
    """Rows behind the count that are no padding."""
    note: str = ""
    """What is wrong first."""

    @property
    def share(self) -> float:
        """Return the share of rows without a partner."""
        return self.alone / self.rows if self.rows else 0.0

    @property
    def agrees(self) -> bool:
        """Return whether partners were found wherever there must be one."""
        beyond = self.rows - self.near
        few = self.missing <= MOST_MISSING * self.rows
        return few and self.pairs > 0 and self.rivals <= MOST_RIVALS * beyond

    def part(self, count: int) -> None:
        """Take so many pairs for rows without a partner."""
        self.pairs -= count
        self.alone += 2 * count
        self.missing += 2 * count
        self.blame(f"the boxes of {count} pairs differ")

    def blame(self, text: str) -> None:
        """Keep the first thing that is wrong."""
        self.note = self.note or text


@dataclass
class Matching:
    """Pairs the rows of results, run after run."""

    selection: Selection = field(default_factory=Selection)
    account: Account = field(default_factory=Account)

    def align(
        self, found: Arrays, expected: Arrays, margin: float
    ) -> dict[str, tuple[Array, Array]]:
        """Return name -> the numbers of all pairs ([pairs, ...]) of `found` and of `expected`.

        Without `count` and `classes`, which pairs have in common. margin: by how much scores may
        differ.
        """
        named = [name for name in expected if name not in ("classes", "count")]
        parts: dict[str, list[tuple[Array, Array]]] = {name: [] for name in named}
        for i in range(len(expected["count"])):
            ours, theirs = (self._rows(side, i) for side in (found, expected))
            paired = pairs(theirs, ours)
            self._enter(paired, (theirs, ours), margin)
            for name, chosen in parts.items():
                left, right = found[name][i], expected[name][i]
                chosen.append((left[paired.candidate], right[paired.reference]))
        return {
            name: (np.concatenate([a for a, _ in chosen]), np.concatenate([b for _, b in chosen]))
            for name, chosen in parts.items()
        }

    def _rows(self, outputs: Arrays, image: int) -> Rows:
        """Return the rows of one image; what is wrong with the padding enters the account."""
        given, most = int(outputs["count"][image]), outputs["scores"].shape[1]
        count = min(max(given, 0), most)
        scores, classes = (outputs[name][image].astype(np.float64) for name in KEYS[1:3])
        wrong = np.count_nonzero((scores[count:] != 0) | (classes[count:] != -1))
        if wrong or given != count:
            self.account.unpadded += max(int(wrong), 1)
            self.account.blame(f"a count of {given}, and {wrong} rows behind it are no padding")
        boxes = outputs["boxes"][image, :count].astype(np.float64)
        return Rows(boxes, scores[:count], classes[:count].astype(np.int64), count == most)

    def _enter(self, paired: Pairs, sides: tuple[Rows, Rows], margin: float) -> None:
        """Take the rows of one image into the account."""
        account, reach = self.account, _cutoff(sides, self.selection) + margin
        for name, mine, other, alone, others in (
            ("reference", *sides, *paired.alone),
            ("candidate", *sides[::-1], *paired.alone[::-1]),
        ):
            account.rows += len(mine.scores)
            account.near += int(np.count_nonzero(mine.scores <= reach))
            account.alone += len(alone)
            for row in alone[mine.scores[alone] > reach].tolist():
                if _rivalled(_one(mine, row), (mine, other), self.selection, margin):
                    account.rivals += 1
                    account.blame(f"{_described(mine, row, name)} lost to a rival")
                    continue
                place = overlaps(_grown(mine.boxes[[row]]), _grown(other.boxes[others]))
                swapped = bool((place >= SAME_PLACE).any())
                account.swapped += swapped
                account.missing += not swapped
                what = "has another class" if swapped else "has no partner"
                account.blame(f"{_described(mine, row, name)} {what}")
        account.pairs += len(paired.reference)


def applies(outputs: Arrays) -> bool:
    """Return whether outputs are padded detections."""
    if any(name not in outputs for name in KEYS):
        return False
    boxes, scores, classes, count = (outputs[name] for name in KEYS)
    shape = boxes.shape[:2]
    return (
        boxes.shape[2:] == (4,)
        and scores.shape == classes.shape == shape
        and count.shape == shape[:1]
        and all(value.shape[:2] == shape for name, value in outputs.items() if name != "count")
    )


def filled(outputs: Arrays) -> NDArray[np.bool_]:
    """Return bool[B, M]: which rows are detections and no padding."""
    rank = np.arange(outputs["scores"].shape[1])
    is_row: NDArray[np.bool_] = rank < outputs["count"].astype(np.int64)[:, None]
    return is_row


def pairs(reference: Rows, candidate: Rows) -> Pairs:
    """Return which rows belong together: of one class, those that overlap most first."""
    iou = overlaps(_grown(reference.boxes), _grown(candidate.boxes))
    iou[reference.classes[:, None] != candidate.classes[None]] = 0
    left, right = np.nonzero(iou >= SAME_PLACE)
    # Of equal overlaps those nearest in rank first: boxes of no area may lie on each other.
    order = np.lexsort((np.abs(left - right), -iou[left, right]))
    partner = np.full(len(reference.boxes), -1)
    taken = np.zeros(len(candidate.boxes), bool)
    for i, j in zip(left[order].tolist(), right[order].tolist(), strict=True):
        if partner[i] < 0 and not taken[j]:
            partner[i], taken[j] = j, True
    paired = np.flatnonzero(partner >= 0)
    alone = np.flatnonzero(partner < 0), np.flatnonzero(~taken)
    return Pairs(paired, partner[paired], alone)


def overlaps(left: Doubles, right: Doubles) -> Doubles:
    """Return the IoU of boxes [R, 4] and [C, 4]; 0 where it is not defined."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    with np.errstate(invalid="ignore", over="ignore"):
        shared = np.maximum(high - low, 0).prod(-1)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (left, right)]
        total = areas[0][:, None] + areas[1][None] - shared
        iou: Doubles = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return iou


def _grown(boxes: Doubles) -> Doubles:
    grown: Doubles = boxes + np.array([-_GROWN, -_GROWN, _GROWN, _GROWN])
    return grown


def _cutoff(sides: tuple[Rows, Rows], selection: Selection) -> float:
    """Return the score that decides who stays: the threshold, or the last one of a full result."""
    least = [float(side.scores.min()) for side in sides if side.full and len(side.scores)]
    if selection.score is not None:
        least.append(selection.score)
    known = [float(side.scores.min()) for side in sides if len(side.scores)]
    return max(least) if least else min(known, default=0.0)


def _one(side: Rows, row: int) -> Rows:
    return Rows(side.boxes[[row]], side.scores[[row]], side.classes[[row]], full=False)


def _rivalled(row: Rows, sides: tuple[Rows, Rows], selection: Selection, margin: float) -> bool:
    """Return whether the NMS may have decided either way about a row of the first side."""
    found = [_against(row, side, selection, margin) for side in sides]
    found[0] &= (sides[0].boxes != row.boxes).any(1)  # no row is its own rival
    return any(hits.any() for hits in found)


def _against(row: Rows, side: Rows, selection: Selection, margin: float) -> NDArray[np.bool_]:
    """Return which rows of a side might suppress `row`, or might not."""
    iou = overlaps(row.boxes, side.boxes)[0]
    tied = np.abs(side.scores - row.scores) <= margin
    if selection.iou is None:
        rival = (iou > 0) & tied
    else:
        nearly = (np.abs(iou - selection.iou) <= NEAR_IOU) & (side.scores >= row.scores - margin)
        rival = nearly | ((iou > selection.iou) & tied)
    meets: NDArray[np.bool_] = rival & (selection.agnostic | (side.classes == row.classes))
    return meets


def _described(side: Rows, row: int, name: str) -> str:
    box = ", ".join(f"{value:.1f}" for value in side.boxes[row])
    return f"the {name}'s {side.scores[row]:.3f} of class {side.classes[row]} at {box}"
