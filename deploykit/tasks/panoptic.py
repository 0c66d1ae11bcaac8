"""Panoptic quality: every pixel in one segment, of a thing or of stuff.

A segment found and one of the truth, of one class, are a pair where their IoU is above a half
(there is at most one such), pixels that the truth says nothing of left out:

    PQ = sum(IoU of pairs) / (TP + FP / 2 + FN / 2) = SQ * RQ,
    SQ = sum(IoU of pairs) / TP,   RQ = TP / (TP + FP / 2 + FN / 2).

Crowds are not missed where nothing pairs with them; a segment without partner is not wrong where
more than half of it lies on nothing and the crowd of its class. Of several crowds of one class in
an image the last counts.

Source: Kirillov et al. 2019, section 4; void and crowds as COCO's evaluation treats them.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.errors import DataError
from deploykit.tasks.task import Display, Scores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Overlaps = Mapping[tuple[int, int], int]
    Size = tuple[int, int]

VOID = 0
"""Number of pixels in no segment."""
_PAIRED = 0.5
_GROUPS = {"": "", "things_": " of things", "stuff_": " of stuff"}
DISPLAY = {
    prefix + name: Display(name.upper() + title, summary=not prefix, drop=prefix + name == "pq")
    for prefix, title in _GROUPS.items()
    for name in ("pq", "sq", "rq")
}


class Segment(NamedTuple):
    """One segment of an image."""

    number: int
    """Its pixels have this value; from 1 on."""
    category: int
    crowd: bool = False
    """Of the truth: whether it stands for things that were not told apart."""


@dataclass(frozen=True)
class Segments:
    """What each pixel of one image belongs to."""

    pixels: NDArray[np.int64]
    """int64[H, W]: numbers of segments, VOID where there is none."""
    known: Sequence[Segment]


class Quality(NamedTuple):
    """The three numbers of one class, or their means."""

    pq: float
    sq: float
    rq: float


@dataclass
class _Count:
    """What was found of one class."""

    iou: float = 0.0
    pairs: int = 0
    wrong: int = 0
    missed: int = 0

    def quality(self) -> Quality | None:
        if not (self.pairs or self.wrong or self.missed):
            return None
        whole = self.pairs + 0.5 * self.wrong + 0.5 * self.missed
        return Quality(
            self.iou / whole, self.iou / self.pairs if self.pairs else 0.0, self.pairs / whole
        )


class PanopticQuality:
    """PQ, SQ and RQ of all classes, of things and of stuff; means over classes that occur."""

    def __init__(self, categories: Mapping[int, str], things: Collection[int]) -> None:
        """Take id -> name of every class, and the ids of those that are things."""
        self._names, self._things = dict(categories), frozenset(things)
        self._counts = {number: _Count() for number in categories}

    def add(self, name: str, result: Segments, truth: Segments, size: Size, /) -> None:
        """Take the segments found in the image `name`, of H and W pixels, and the truth.

        Raises: DataError where a map has another size, or map and list of segments differ.
        """
        right = self._checked(f"the truth about {name}", truth, size)
        found = self._checked(f"the result for {name}", result, size)
        shared = _overlaps(truth.pixels, result.pixels)
        pairs = dict(self._pairs(right, found, shared))
        for number, segment in right.items():
            if number not in pairs and not segment.crowd:
                self._counts[segment.category].missed += 1
        areas = _areas(shared, 1)
        crowds = {s.category: s.number for s in right.values() if s.crowd}
        paired = set(pairs.values())
        for number, segment in found.items():
            if number not in paired:
                ignored = shared.get((VOID, number), 0)
                ignored += shared.get((crowds.get(segment.category, -1), number), 0)
                if ignored / areas[number] <= _PAIRED:
                    self._counts[segment.category].wrong += 1

    def _checked(self, what: str, given: Segments, size: Size) -> dict[int, Segment]:
        """Return the segments by their numbers. Raises: DataError."""
        height, width = given.pixels.shape
        if (height, width) != tuple(size):
            raise DataError(
                f"{what} has {width}x{height} pixels, and the image {size[1]}x{size[0]}",
                expected="one number per pixel of the image",
            )
        drawn = set(np.unique(given.pixels).tolist()) - {VOID}
        listed = {segment.number: segment for segment in given.known}
        if drawn != set(listed) or len(listed) != len(given.known):
            raise DataError(
                f"{what} has pixels of {len(drawn)} segments and a list of {len(given.known)}, and "
                f"{len(drawn ^ set(listed))} numbers are in one of them alone",
                expected="each segment once in the list, with at least one pixel",
            )
        foreign = {segment.category for segment in given.known} - set(self._names)
        if foreign:
            raise DataError(
                f"{what} has a segment of category {min(foreign)}",
                expected="one of " + ", ".join(map(str, sorted(self._names))),
            )
        return listed

    def _pairs(
        self, right: Mapping[int, Segment], found: Mapping[int, Segment], shared: Overlaps
    ) -> Iterable[tuple[int, int]]:
        """Yield the numbers of segments that are pairs, and count them."""
        wanted_areas, areas = _areas(shared, 0), _areas(shared, 1)
        for (wanted, number), pixels in shared.items():
            if VOID in (wanted, number) or right[wanted].crowd:
                continue
            category = right[wanted].category
            if category != found[number].category:
                continue
            whole = wanted_areas[wanted] + areas[number]
            iou = pixels / (whole - pixels - shared.get((VOID, number), 0))
            if iou > _PAIRED:
                self._counts[category].pairs += 1
                self._counts[category].iou += iou
                yield wanted, number

    def of_class(self) -> dict[str, Quality | None]:
        """Return the numbers of each class; None where it is neither there nor found."""
        return {self._names[n]: count.quality() for n, count in self._counts.items()}

    def scores(self) -> Scores:
        """Return the means over all classes, over things and over stuff."""
        groups: dict[str, list[Quality]] = {prefix: [] for prefix in _GROUPS}
        for number, count in self._counts.items():
            quality = count.quality()
            if quality is not None:
                groups[""].append(quality)
                groups["things_" if number in self._things else "stuff_"].append(quality)
        metrics = {
            prefix + field: _mean([getattr(quality, field) for quality in group])
            for prefix, group in groups.items()
            for field in Quality._fields
        }
        of_class = {name: None if q is None else q.pq for name, q in self.of_class().items()}
        return Scores(metrics, "pq", DISPLAY, of_class)


def _overlaps(right: NDArray[np.int64], found: NDArray[np.int64]) -> Overlaps:
    """Return (number in the truth, number found) -> pixels that have both, in rising order."""
    wanted, first = np.unique(right, return_inverse=True)
    numbers, second = np.unique(found, return_inverse=True)
    codes = first.ravel() * len(numbers) + second.ravel()
    counts = np.bincount(codes, minlength=len(wanted) * len(numbers)).reshape(len(wanted), -1)
    rows, columns = np.nonzero(counts)
    pairs = zip(wanted[rows].tolist(), numbers[columns].tolist(), strict=True)
    return dict(zip(pairs, counts[rows, columns].tolist(), strict=True))


def _areas(shared: Overlaps, side: int) -> Counter[int]:
    """Return the pixels of each segment of the truth (side 0), or of each one found (side 1)."""
    found: Counter[int] = Counter()
    for pair, pixels in shared.items():
        found[pair[side]] += pixels
    return found


def _mean(values: Sequence[float]) -> float | None:
    return functools.reduce(operator.add, values) / len(values) if values else None
