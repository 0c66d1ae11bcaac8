"""Semantic segmentation: one class per pixel, scored by the mean IoU of the classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import DataError, ModelError
from deploykit.tasks import categories, label_maps, painting_maps
from deploykit.tasks.agreement import span
from deploykit.tasks.foreground import MAIN
from deploykit.tasks.outputs import check_finite
from deploykit.tasks.task import Display, Pair, Scores
from deploykit.values import Agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Pixels
    from deploykit.tasks.task import Arrays
    from deploykit.values import Json

    Labels: TypeAlias = NDArray[np.integer[Any]]

ALIGNED = "align_corners"
"""Name of the setting of a card that says how class scores lie over an image."""
_SAID = 3
"""Classes that a few words name."""
IGNORED = 255
"""Id of pixels that do not count, as well as every id below 0; a category's own id counts."""
DISPLAY = {
    "miou": Display("mIoU", summary=True, drop=True),
    "pixel_accuracy": Display("Pixel accuracy", summary=True),
    "mean_accuracy": Display("Mean accuracy"),
}


@dataclass(frozen=True)
class LabelMap:
    """The class of every pixel of one image."""

    labels: Labels
    """uint8 or int32[height, width]: indices into the model's class names."""
    made: str
    """How the network's outputs became these pixels."""
    of: int | None = None
    """Classes among which each was chosen; None: the network chose, and does not say."""

    def as_truth(self, number: int, size: tuple[int, int], /) -> NDArray[np.int32]:
        """Return the map itself."""
        del number, size
        return self.labels.astype(np.int32)

    def unlike(self, other: LabelMap, /) -> LabelMap:
        """Return a map of the pixels that have another class, -1 elsewhere."""
        differ = np.where(self.labels != other.labels, self.labels.astype(np.int32), -1)
        return replace(self, labels=differ)

    def said(self, classes: Sequence[str], /) -> str:
        """Return the largest classes and their shares of the image."""
        shares = self._shares()
        best = sorted(shares, key=lambda i: -shares[i])[:_SAID]
        names = categories.named(classes, best)
        return ", ".join(f"{names[i]} {_percent(shares[i])}" for i in best)

    def to_json(self, classes: Sequence[str], size: tuple[int, int], /) -> Json:
        """Return the share of each class, and the map as runs along its rows: label and length."""
        flat = self.labels.ravel()
        ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
        shares = self._shares()
        names = dict(enumerate(classes)) or categories.named((), shares)
        return {
            "classes": [
                {"class": names[i], "index": i, "share": share} for i, share in shares.items()
            ],
            "size": list(size),
            "labels": flat[ends - 1].tolist(),
            "lengths": np.diff(ends, prepend=0).tolist(),
        }

    def _shares(self) -> dict[int, float]:
        numbers, counts = np.unique(self.labels[self.labels >= 0], return_counts=True)
        rows = zip(numbers.tolist(), counts.tolist(), strict=True)
        return {number: count / self.labels.size for number, count in rows}


Read: TypeAlias = "Callable[[Mapping[str, Any]], NDArray[Any]]"
"""Outputs of a network -> class scores, float[batch, classes, h, w], or indices [batch, h, w]."""


def read(outputs: Mapping[str, Any]) -> NDArray[Any]:
    """Return the output called MAIN, or the only one: [batch, classes, h, w], or [batch, h, w].

    Indices of classes may be [batch, 1, h, w]. Raises: ModelError for outputs of another form.
    """
    named = outputs.get(MAIN, next(iter(outputs.values())) if len(outputs) == 1 else None)
    if named is not None and named.ndim == 4 and named.shape[1] == 1:
        named = named[:, 0] if (named == np.round(named)).all() else None
    if named is not None and named.ndim in (3, 4):
        found: NDArray[Any] = named
        return found
    forms = ", ".join(f"{name}{list(value.shape)}" for name, value in outputs.items())
    raise ModelError(
        f"the outputs {forms} are no class scores or class indices of pixels",
        expected="one output, or one called 'out': [batch, classes, h, w] with two classes or "
        "more, or indices [batch, h, w]",
        fix="of one class: --decode logit or --decode probability; else, in Python, give a task "
        "of your own: `Semantic(read=...)`",
    )


@dataclass(frozen=True)
class Semantic:
    """The class of every pixel."""

    read: Read = read
    aligned: bool = False
    """Whether the outer class scores lie on the outer pixels, see `label_maps.best`."""

    def decode(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[LabelMap]:
        """Return the class of each pixel of the original images. Raises: ModelError, ProofError."""
        found = self.read(outputs)
        check_finite(found, "a class score")
        if found.ndim == 4:
            made, of = label_maps.LINEAR, found.shape[1]
            pairs = zip(found, geometries, strict=False)
            maps = [label_maps.best(*pair, aligned=self.aligned) for pair in pairs]
        else:
            made, of = label_maps.NEAREST, None
            whole = found.astype(np.int32)
            maps = [label_maps.nearest(*pair) for pair in zip(whole, geometries, strict=False)]
        return [LabelMap(labels, made, of) for labels in maps]

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> Overlap:
        """Return a fresh mean IoU. Raises: DataError where the classes do not fit."""
        return Overlap(categories.match(known, classes))

    def agreement(self) -> SamePixels:
        """Return a pairing of scores in order, which also says how many pixels differ."""
        return SamePixels(self.read)

    def draw(self, image: Pixels, result: LabelMap, classes: Sequence[str], /) -> Pixels:
        """Return the image in the colours of its classes, with their names below."""
        return painting_maps.tinted(image, result.labels, categories.unique(classes))


def _percent(share: float) -> str:
    """Return a share in per cent; of little at least that there is some."""
    return f"{share:.1%}" if share >= _LEAST else f"under {_LEAST:.1%}"


_LEAST = 1e-3
"""Share of an image that is written as a number."""


class Overlap:
    """A confusion matrix over the pixels of all images, and what follows from it."""

    def __init__(self, match: categories.Match) -> None:
        """Take which class each category of the truth is."""
        self._match = match
        count = len(match.classes)
        self.confusion = np.zeros((count, count), np.int64)
        """[right class, class found]."""
        self._made: set[str] = set()

    def add(self, name: str, result: LabelMap, truth: Any, size: tuple[int, int], /) -> None:  # noqa: ANN401 - checked
        """Take the label map of the image `name`, of H and W pixels; `truth`: its category ids.

        Raises: DataError for truth of another form, size or with unknown ids; ModelError for
        classes that the model has no name for.
        """
        right = self._indices(name, truth, size)
        count = len(self._match.classes)
        largest = int(result.labels.max(initial=0))
        if result.of not in (None, count) or largest >= count or result.labels.min(initial=0) < 0:
            raise ModelError(
                f"the model tells {result.of or f'class {largest} and'} others apart",
                expected=f"{count} classes, one for each of its class names",
                fix="give one name per class: --class-names",
            )
        counts = right >= 0
        pairs = right[counts] * count + result.labels[counts].astype(np.int64)
        self.confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)
        self._made.add(result.made)

    def _indices(self, name: str, truth: Any, size: tuple[int, int]) -> NDArray[np.int64]:  # noqa: ANN401 - checked
        """Return the class of each pixel by the truth, int64[H, W]; -1 where it does not count."""
        if not isinstance(truth, np.ndarray) or truth.dtype.kind not in "iu" or truth.ndim != 2:
            raise DataError(
                f"the truth about {name} is a {type(truth).__name__}",
                expected="category ids [height, width], as voc, ade and shapes:truth=map give",
            )
        if truth.shape != size:
            raise DataError(
                f"the label map of {name} has {truth.shape[0]}x{truth.shape[1]} pixels, and the "
                f"image {size[0]}x{size[1]}",
                expected="one label per pixel of the image",
            )
        ids, places = np.unique(truth, return_inverse=True)
        wanted = np.full(len(ids), -1, np.int64)
        for i, number in enumerate(ids.tolist()):
            if number in self._match.indices:
                wanted[i] = self._match.indices[number]
            elif number != IGNORED and number >= 0:
                raise DataError(
                    f"the label map of {name} has pixels of category {number}",
                    expected="ids of the truth's categories, "
                    f"{min(self._match.indices)} to {max(self._match.indices)}, or {IGNORED} for "
                    "pixels that do not count",
                )
        return wanted[places].reshape(size)

    def scores(self) -> Scores:
        """Return mean IoU over the classes that occur, and the share of right pixels."""
        chosen = sorted(self._match.indices.values())
        hits, right, found = (
            np.diag(self.confusion),
            self.confusion.sum(1),
            self.confusion.sum(0),
        )
        union = right + found - hits
        iou = {i: float(hits[i] / union[i]) if union[i] else None for i in chosen}
        recall = [float(hits[i] / right[i]) for i in chosen if right[i]]
        total = int(right.sum())
        metrics = {
            "miou": _mean([value for value in iou.values() if value is not None]),
            "pixel_accuracy": int(hits.sum()) / total if total else None,
            "mean_accuracy": _mean(recall),
        }
        names = self._match.classes
        of_class = {names[i]: value for i, value in iou.items()}
        made = {"label_maps": "; ".join(sorted(self._made))} if self._made else {}
        return Scores(metrics, "miou", DISPLAY, of_class, self._match.notes, made)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class SamePixels:
    """Scores are compared in order; `pixels` says how many of a network's pixels differ in class.

    A pixel is excused where the reference's scores of both classes are so near that the errors
    allowed to them may turn their order. Networks that return the classes themselves may differ
    in a share of pixels as large as the relative tolerance.
    """

    def __init__(self, read: Read) -> None:
        """Take what finds the class scores, or the classes, among the outputs."""
        self._read = read
        self._pixels = self._others = self._wrong = 0
        self._allowed = 0.0

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return every output of the reference with the candidate's; classes are only counted."""
        ours, theirs = (self._read(side) for side in (found, expected))
        pairs = {n: Pair(found[n], array, columns=False) for n, array in expected.items()}
        if theirs.ndim == 3:
            self._pixels += theirs.size
            self._others += int((ours != theirs).sum())
            self._wrong, self._allowed = self._others, rtol
            return {n: p for n, p in pairs.items() if not np.may_share_memory(p.expected, theirs)}
        first, second = theirs.argmax(1)[:, None], ours.argmax(1)[:, None]
        best, other = (np.take_along_axis(theirs, i, 1) for i in (first, second))
        differs = first != second
        excused = best.astype(np.float64) - other <= 2 * (atol + rtol * span(theirs.astype(float)))
        self._pixels += differs.size
        self._others += int(differs.sum())
        self._wrong += int((differs & ~excused).sum())
        return pairs

    def findings(self) -> tuple[Agreement, ...]:
        """Return what `pixels` says of all images: how many differ, and their share."""
        share = self._others / max(self._pixels, 1)
        note = f"{share:.3%} of {self._pixels} pixels have another class, {self._wrong} of them "
        return (
            Agreement(
                "pixels",
                max_abs=self._others,
                mean_abs=share,
                relative=0.0,
                cosine=1 - share,
                passed=self._wrong <= self._allowed * self._pixels,
                note=note + "by more than the errors allowed" if self._others else "",
            ),
        )
