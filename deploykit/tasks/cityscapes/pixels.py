"""Cityscapes' benchmark of label maps: IoU of classes and categories, by pixels and by instances.

iIoU counts each pixel of an object times the mean size of its class over the object's own, so that
small objects weigh as much as large ones; what is wrongly found has no object and counts once.

    iIoU = sum(w * TP) / (sum(w * TP) + sum(w * FN) + FP),  w = mean size / size of the object

Source: Cordts et al. 2016, section 4.1; the mean sizes are those that the benchmark publishes.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import DataError, ModelError
from deploykit.tasks import categories
from deploykit.tasks.cityscapes import labels
from deploykit.tasks.cityscapes.truth import StreetTruth
from deploykit.tasks.semantic import DISPLAY, LabelMap
from deploykit.tasks.task import Display, Scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Size = tuple[int, int]

_MEAN_SIZES: Mapping[str, float] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Pixels that an object has on average in the set's own images."""
_SHOWN = {
    "miou": DISPLAY["miou"],
    "iiou": Display("iIoU", summary=True),
    "category_miou": Display("Category mIoU"),
    "category_iiou": Display("Category iIoU"),
}
_NO_INSTANCES = "the set has no maps of instances: iIoU is not known"


class _Weighed:
    """Pixels of objects that were found and missed, each times its object's weight."""

    def __init__(self) -> None:
        self.hits = self.misses = 0.0

    def add(self, hits: int, size: int, weight: float) -> None:
        self.hits += float(hits) * weight
        self.misses += float(size - hits) * weight

    def share(self, wrong: int) -> float | None:
        whole = self.hits + wrong + self.misses
        return self.hits / whole if whole else None


class StreetPixels:
    """The scores of label maps, as the benchmark's own script computes them."""

    def __init__(self, known: Mapping[int, str], classes: Sequence[str]) -> None:
        """Take the truth's classes and the model's. Raises: DataError where they do not fit."""
        match = categories.match(known, classes)
        self._ids = official(match)
        self._notes = match.notes
        count = len(labels.LABELS)
        self.confusion = np.zeros((count, count), np.int64)
        """[label of the truth, label found]."""
        self._classes = {number: _Weighed() for number in labels.THINGS}
        self._categories = {name: _Weighed() for name in _WITH_INSTANCES}
        self._has_instances = True
        self._made: set[str] = set()

    def add(self, name: str, result: LabelMap, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - checked
        """Take the label map of the image `name`, of H and W pixels.

        Raises: DataError for truth or results of another form or size; ModelError for classes that
        the model has no name for.
        """
        if not isinstance(result, LabelMap) or not isinstance(truth, StreetTruth):
            raise DataError(
                f"{name}: the model finds {type(result).__name__}, the truth is "
                f"{type(truth).__name__}",
                expected="a segmenter's label map, and the truth of cityscapes:, streets:",
                fix="for models that find objects: truth=instance",
            )
        for what, array in (("truth", truth.labels), ("label map found", result.labels)):
            if array.shape != size:
                raise DataError(
                    f"the {what} of {name} has {array.shape[1]}x{array.shape[0]} pixels, and the "
                    f"image {size[1]}x{size[0]}",
                    expected="one label per pixel of the image",
                )
        found = of_classes(result, self._ids)
        count = len(labels.LABELS)
        pairs = truth.labels.astype(np.int64) * count + found
        self.confusion += np.bincount(pairs.ravel(), minlength=count * count).reshape(count, count)
        self._made.add(result.made)
        if truth.instances is None:
            self._has_instances = False
        else:
            self._weigh(truth.instances, found)

    def _weigh(self, instances: NDArray[np.int32], found: NDArray[np.uint8]) -> None:
        """Take what was found of each object that is told apart, in the order of their ids."""
        inside = instances >= labels.GROUPED
        count = len(labels.LABELS)
        codes = instances[inside].astype(np.int64) * count + found[inside]
        pairs, pixels = np.unique(codes, return_counts=True)
        numbers, places = np.unique(pairs // count, return_inverse=True)
        table = np.zeros((len(numbers), count), np.int64)
        table[places, pairs % count] = pixels
        for number, row in zip(numbers.tolist(), table, strict=True):
            label = labels.LABELS[number // labels.GROUPED]
            if not label.counted:
                continue
            size = int(row.sum())
            weight = _MEAN_SIZES[label.name] / float(size)
            self._classes[label.number].add(int(row[label.number]), size, weight)
            alike = int(row[list(labels.CATEGORIES[label.category])].sum())
            self._categories[label.category].add(alike, size, weight)

    def classes(self) -> dict[str, float | None]:
        """Return the IoU of each of the 19 classes; None where it is neither there nor found."""
        return {name: self._iou([n], self._beside([n])) for n, name in labels.CLASSES.items()}

    def categories(self) -> dict[str, float | None]:
        """Return the IoU of each of the 7 categories; of `void` there is none."""
        return {
            name: self._iou([n for n in ids if n in labels.CLASSES], self._beside(ids))
            for name, ids in labels.CATEGORIES.items()
            if any(n in labels.CLASSES for n in ids)
        }

    def instance_classes(self) -> dict[str, float | None]:
        """Return the iIoU of each of the 8 classes whose objects are told apart."""
        return {
            name: self._classes[n].share(self._wrong([n], self._beside([n])))
            for n, name in labels.THINGS.items()
        }

    def instance_categories(self) -> dict[str, float | None]:
        """Return the iIoU of the two categories of such classes."""
        return {
            name: weighed.share(
                self._wrong(labels.CATEGORIES[name], self._beside(labels.CATEGORIES[name]))
            )
            for name, weighed in self._categories.items()
        }

    def _beside(self, ids: Iterable[int]) -> list[int]:
        """Return the classes that are scored, other than `ids`."""
        left_out = set(ids)
        return [number for number in labels.CLASSES if number not in left_out]

    def _wrong(self, ids: Sequence[int], others: Sequence[int]) -> int:
        """Return the pixels of other classes that were taken for one of `ids`."""
        return int(self.confusion[np.ix_(others, ids)].sum())

    def _iou(self, ids: Sequence[int], others: Sequence[int]) -> float | None:
        hits = int(self.confusion[np.ix_(ids, ids)].sum())
        union = int(self.confusion[ids].sum()) + self._wrong(ids, others)
        return hits / union if union else None

    def scores(self) -> Scores:
        """Return the means over what occurs, and the IoU of each class."""
        of_class = self.classes()
        metrics = {
            "miou": _mean(of_class.values()),
            "category_miou": _mean(self.categories().values()),
            "iiou": _mean(self.instance_classes().values()) if self._has_instances else None,
            "category_iiou": (
                _mean(self.instance_categories().values()) if self._has_instances else None
            ),
        }
        notes = self._notes if self._has_instances else (*self._notes, _NO_INSTANCES)
        made = {"label_maps": "; ".join(sorted(self._made))} if self._made else {}
        return Scores(metrics, "miou", _SHOWN, of_class, notes, {"benchmark": "Cityscapes", **made})


_WITH_INSTANCES = ("human", "vehicle")


def official(match: categories.Match) -> NDArray[np.uint8]:
    """Return uint8[classes]: the official id of each class of a model.

    Of a class that is not scored it is that of the label of its name, else 0, `unlabeled`.
    """
    names = [labels.BY_NAME.get(name) for name in match.classes]
    ids = np.array([0 if label is None else label.number for label in names], np.uint8)
    for number, place in match.indices.items():
        ids[place] = number
    return ids


def of_classes(result: LabelMap, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the official ids of a label map, uint8[H, W]. Raises: ModelError for other classes."""
    largest, least = int(result.labels.max(initial=0)), int(result.labels.min(initial=0))
    if result.of not in (None, len(ids)) or largest >= len(ids) or least < 0:
        raise ModelError(
            f"the model tells {result.of or f'class {largest} and'} others apart",
            expected=f"{len(ids)} classes, one for each of its class names",
            fix="give one name per class: --class-names",
        )
    found: NDArray[np.uint8] = ids[result.labels]
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return functools.reduce(operator.add, known) / len(known) if known else None  # as rounded there
