"""Cityscapes' benchmark of objects: average precision of masks over IoU above 0.50, 0.55 ... 0.95.

As COCO's, but: a mask is matched with the object that it overlaps by more than the threshold (above
half there is one at most), of two masks on one object the less certain is wrong, a mask without
partner does not count where a larger share of it than the threshold lies on groups, on what is not
scored and on objects too small or too far, and precision is summed as it is.

Source: Cordts et al. 2016, section 4.2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.errors import DataError
from deploykit.tasks import categories, coco_rows
from deploykit.tasks.cityscapes import curves, labels
from deploykit.tasks.cityscapes.truth import StreetTruth
from deploykit.tasks.detections import Detections
from deploykit.tasks.task import Display, Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Size = tuple[int, int]
    Bools = NDArray[np.bool_]
    Doubles = NDArray[np.float64]
    Integers = NDArray[np.int64]

_THRESHOLDS = np.arange(0.5, 1.0, 0.05)


class _Reach(NamedTuple):
    """Which objects count."""

    pixels: int
    """At least."""
    distance: float = np.inf
    """Metres, at most."""
    certainty: float = -np.inf
    """Share of the object's pixels whose distance is known, at least."""

    def holds(self, seen: _Seen) -> Bools:
        """Return which objects are neither too small, nor too far, nor at an unknown distance."""
        near = (seen.distances <= self.distance) & (seen.certainties >= self.certainty)
        return (seen.sizes >= self.pixels) & near


_EVERYWHERE = _Reach(100)
_WITHIN = (_Reach(1000, 100.0, 0.5), _Reach(1000, 50.0, 0.5))
_SHOWN = {
    "cityscapes_ap": Display("Cityscapes AP", summary=True, drop=True),
    "cityscapes_ap50": Display("Cityscapes AP50", summary=True),
    "cityscapes_ap_100m": Display("Cityscapes AP within 100 m"),
    "cityscapes_ap_50m": Display("Cityscapes AP within 50 m"),
    "cityscapes_ap50_50m": Display("Cityscapes AP50 within 50 m"),
}


@dataclass(frozen=True)
class _Seen:
    """Objects of one class in one image: G in the truth, P found."""

    values: Integers
    """int64[G], as in the map of instances; below `labels.GROUPED`: a group."""
    sizes: Integers
    """int64[G], pixels."""
    distances: Doubles
    """float64[G], metres."""
    certainties: Doubles
    """float64[G]."""
    scores: list[float] = field(default_factory=list)
    """P of them."""
    areas: list[int] = field(default_factory=list)
    """Pixels of each mask found."""
    void: list[int] = field(default_factory=list)
    """How many of these lie on what is not scored."""
    shared: list[Integers] = field(default_factory=list)
    """int64[G] of each: how many of these lie on each object."""

    def judged(self, threshold: float, reach: _Reach) -> tuple[list[float], list[float], int]:
        """Return the scores of right and wrong masks, and the number of objects missed."""
        group, counted = self.values < labels.GROUPED, reach.holds(self)
        wanted = np.flatnonzero(counted & ~group)
        if not self.scores:
            return [], [], len(wanted)
        scores, areas, shared = np.array(self.scores), np.array(self.areas), np.array(self.shared)
        over = (shared > 0) & (shared / (self.sizes + areas[:, None] - shared) > threshold)
        right, wrong = list[float](), list[float]()
        for place in wanted.tolist():
            best = np.sort(scores[over[:, place]]).tolist()
            right += best[-1:]
            wrong += best[:-1]
        beside = np.array(self.void) + shared @ (group.astype(int) + ~counted)
        alone = ~over.any(1) & (beside / areas <= threshold)
        return right, wrong + scores[alone].tolist(), len(wanted) - len(right)


class StreetObjects:
    """The scores of objects with masks, as the benchmark's own script computes them."""

    def __init__(self, known: Mapping[int, str], classes: Sequence[str]) -> None:
        """Take the truth's classes and the model's. Raises: DataError where they do not fit."""
        self._match = categories.match(known, classes)
        self._ids = coco_rows.ids(self._match)
        self._images: list[dict[int, _Seen]] = []
        self._has_distances = True

    def add(self, name: str, result: Detections, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - checked
        """Take the objects found in the image `name`, of H and W pixels.

        Raises: DataError for truth or results of another form or size; ModelError for classes that
        the model has no name for.
        """
        instances = _checked(name, result, truth, size)
        seen = _truth(instances, truth.distances)
        self._has_distances &= truth.distances is not None
        known = coco_rows.known(result, self._ids)
        void = np.array([not label.counted for label in labels.LABELS])
        pairs = zip(known.areas(size), known.scores.tolist(), known.classes.tolist(), strict=True)
        for (top, left, mask), score, place in pairs:
            window = instances[top : top + mask.shape[0], left : left + mask.shape[1]]
            values, counts = np.unique(window[mask], return_counts=True)
            if not len(values):
                continue
            one = seen[int(self._ids[place])]
            one.scores.append(score)
            one.areas.append(int(counts.sum()))
            plain = values < labels.GROUPED
            one.void.append(int(counts[plain][void[values[plain]]].sum()))
            overlaps = dict(zip(values.tolist(), counts.tolist(), strict=True))
            one.shared.append(np.array([overlaps.get(v, 0) for v in one.values.tolist()], np.int64))
        self._images.append({n: one for n, one in seen.items() if len(one.values) or one.scores})

    def table(self) -> Doubles:
        """Return float64[reaches, 8, 10]: AP of each class at each threshold; NaN without truth.

        The first reach is everywhere; where distances are known the others are 100 m and 50 m.
        """
        reaches = (_EVERYWHERE, *(_WITHIN if self._has_distances and self._images else ()))
        return np.array(
            [
                [[self._precision(n, float(t), reach) for t in _THRESHOLDS] for n in labels.THINGS]
                for reach in reaches
            ]
        )

    def _precision(self, label: int, threshold: float, reach: _Reach) -> float:
        seen = [image[label] for image in self._images if label in image]
        if not any((reach.holds(one) & (one.values >= labels.GROUPED)).any() for one in seen):
            return np.nan
        right, wrong, missed = list[float](), list[float](), 0
        for one in seen:
            more, less, lost = one.judged(threshold, reach)
            right += more
            wrong += less
            missed += lost
        return curves.average_precision(np.array(right), np.array(wrong), missed)

    def scores(self) -> Scores:
        """Return the means over the classes that occur, and the AP of each class."""
        table = self.table()
        means = [_mean(table[0]), _mean(table[0, :, 0])]
        if len(table) > 1:
            means += [_mean(table[1]), _mean(table[2]), _mean(table[2, :, 0])]
        metrics = dict(zip(_SHOWN, means, strict=False))
        of_class = dict(zip(labels.THINGS.values(), map(_mean, table[0]), strict=True))
        told = {"benchmark": "Cityscapes"}
        return Scores(metrics, "cityscapes_ap", _SHOWN, of_class, self._match.notes, told)


def _checked(name: str, result: object, truth: object, size: Size) -> NDArray[np.int32]:
    """Return the map of instances. Raises: DataError where truth or result have another form."""
    if not isinstance(result, Detections) or (result.masks is None and len(result.boxes)):
        what = "boxes" if isinstance(result, Detections) else type(result).__name__
        raise DataError(
            f"{name}: the model finds {what}, and the benchmark takes masks of objects",
            expected="a model of instance segmentation",
            fix="for boxes: truth=objects; for label maps: truth=semantic",
        )
    if not isinstance(truth, StreetTruth) or truth.instances is None:
        raise DataError(
            f"the truth about {name} has no map of instances",
            expected="the truth of cityscapes: or streets: with truth=instance",
        )
    if truth.instances.shape != size:
        height, width = truth.instances.shape
        raise DataError(
            f"the map of instances of {name} has {width}x{height} pixels, and the image "
            f"{size[1]}x{size[0]}",
            expected="one id per pixel of the image",
        )
    return truth.instances


def _truth(
    instances: NDArray[np.int32], distances: Mapping[int, tuple[float, float]] | None
) -> dict[int, _Seen]:
    """Return the objects of each class, by the id of its label."""
    values, sizes = np.unique(instances, return_counts=True)
    owners = labels.of_instances(values)
    far = np.array([(distances or {}).get(v, _UNKNOWN) for v in values.tolist()]).reshape(-1, 2)
    return {
        number: _Seen(values[mine].astype(np.int64), sizes[mine], far[mine, 0], far[mine, 1])
        for number, mine in ((number, owners == number) for number in labels.THINGS)
    }


_UNKNOWN = (-1.0, 0.0)
"""Distance, and share of pixels that have one, of an object that nothing is known of."""


def _mean(values: Doubles) -> float | None:
    """Return the mean of what is not NaN; None where all is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no values at all
        mean = float(np.nanmean(values))
    return None if np.isnan(mean) else mean
