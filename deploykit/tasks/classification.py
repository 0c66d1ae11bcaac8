"""Classification: one class per image, scored by how often the right one is first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import DataError, ModelError
from deploykit.tasks import categories, painting
from deploykit.tasks.agreement import InOrder, span
from deploykit.tasks.outputs import check_finite
from deploykit.tasks.task import Display, Pair, Scores
from deploykit.values import Agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Pixels
    from deploykit.tasks.task import Arrays
    from deploykit.values import Json

    Indices: TypeAlias = NDArray[np.int64]

BEST = 5
"""Classes that are kept of an image, best first."""
_SUM = 1e-3
"""How far the sum of scores that are shares already may be from 1."""
DISPLAY = {
    "top1": Display("Top-1", summary=True, drop=True),
    "top5": Display("Top-5", summary=True),
}


@dataclass(frozen=True)
class Ranking:
    """What one image may show, best first."""

    classes: Indices
    """int64[K], indices into the model's class names; K is at most BEST."""
    scores: Floats
    """float32[K]: the share of each, 0 to 1; of all classes together 1."""
    of: int
    """Classes among which they are the best."""

    def as_truth(self, number: int, size: tuple[int, int], /) -> int:
        """Return the best class."""
        del number, size
        return int(self.classes[0])

    def unlike(self, other: Ranking, /) -> Ranking:
        """Return it where the best class is another, else one of no classes."""
        if len(self.classes) and len(other.classes) and self.classes[0] != other.classes[0]:
            return self
        return replace(self, classes=self.classes[:0], scores=self.scores[:0])

    def said(self, classes: Sequence[str], /) -> str:
        """Return the best class and its share."""
        if not len(self.classes):
            return ""
        best = int(self.classes[0])
        return f"{categories.named(classes, [best])[best]} {self.scores[0]:.1%}"

    def to_json(self, classes: Sequence[str], size: tuple[int, int], /) -> Json:
        """Return the best classes, each with its name, index and share."""
        del size
        rows = zip(self.classes.tolist(), self.scores.tolist(), strict=True)
        names = dict(enumerate(classes)) or categories.named((), self.classes.tolist())
        found = [{"class": names[i], "index": i, "score": share} for i, share in rows]
        return {"classes": found}


Read: TypeAlias = "Callable[[Mapping[str, Any]], NDArray[Any]]"
"""Outputs of a network -> the one that holds its class scores, float[batch, classes]."""


def scores(outputs: Mapping[str, Any]) -> NDArray[Any]:
    """Return the only output, [batch, classes] or [batch, classes, 1, 1], as [batch, classes].

    Raises: ModelError for outputs of another form.
    """
    first, *others = outputs.values()
    if not others and first.ndim in (2, 4) and first.shape[1] > 1 and first.shape[2:] in _FLAT:
        flat: NDArray[Any] = first.reshape(first.shape[:2])
        return flat
    forms = ", ".join(f"{name}{list(value.shape)}" for name, value in outputs.items())
    raise ModelError(
        f"the outputs {forms} are no class scores",
        expected="one output [batch, classes], of two classes or more",
        fix="give a task of your own: `Classification(read=...)`",
    )


_FLAT = ((), (1, 1))


@dataclass(frozen=True)
class Classification:
    """The class of an image."""

    read: Read = scores

    def decode(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Ranking]:
        """Return the best classes of each image. Raises: ModelError, ProofError."""
        found = self.read(outputs)
        check_finite(found, "a class score")
        return [_ranking(row) for row in found[: len(geometries)]]

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> Accuracy:
        """Return a fresh top-1 and top-5. Raises: DataError where the classes do not fit."""
        return Accuracy(categories.match(known, classes))

    def agreement(self) -> SameClass:
        """Return a pairing of scores in order, which also says whose best class differs."""
        return SameClass(self.read)

    def draw(self, image: Pixels, result: Ranking, classes: Sequence[str], /) -> Pixels:
        """Return the image with its best classes listed below it."""
        names = categories.named(classes, result.classes.tolist())
        rows = zip(result.classes.tolist(), result.scores.tolist(), strict=True)
        return painting.listed(image, [(names[i], share, i) for i, share in rows])


def _ranking(row: NDArray[Any]) -> Ranking:
    """Return the best of the scores [classes]: of equal ones the lower index first."""
    values = row.astype(np.float64)
    if values.min() < 0 or abs(values.sum() - 1) > _SUM:
        values = np.exp(values - values.max())
        values /= values.sum()
    best = np.argsort(-row, kind="stable")[:BEST]
    return Ranking(best, values[best].astype(np.float32), len(row))


class Accuracy:
    """How often the right class is the best, or among the best five."""

    def __init__(self, match: categories.Match) -> None:
        """Take which class each category of the truth is."""
        self._match = match
        self._images = np.zeros(len(match.classes), np.int64)
        self._first, self._among = self._images.copy(), self._images.copy()

    def add(self, name: str, result: Ranking, truth: Any, size: tuple[int, int], /) -> None:  # noqa: ANN401 - checked
        """Take the best classes of the image `name`; `truth`: the id of its category.

        Raises: DataError for truth of another form; ModelError for more or less classes.
        """
        del size
        if not isinstance(truth, int) or truth not in self._match.indices:
            raise DataError(
                f"the truth about {name} is {_shown(truth)}",
                expected="one category id, as imagefolder, imagenet and shapes:truth=class give it",
            )
        if result.of != len(self._match.classes):
            raise ModelError(
                f"the model scores {result.of} classes",
                expected=f"{len(self._match.classes)}, one for each of its class names",
                fix="give one name per class: --class-names",
            )
        right = self._match.indices[truth]
        self._images[right] += 1
        self._first[right] += result.classes[0] == right
        self._among[right] += right in result.classes

    def scores(self) -> Scores:
        """Return the shares of all images; top-5 where there are more than five classes."""
        total = int(self._images.sum())
        metrics = {"top1": int(self._first.sum()) / total if total else None}
        if len(self._match.classes) > BEST:
            metrics["top5"] = int(self._among.sum()) / total if total else None
        of_class = {
            self._match.classes[i]: float(self._first[i] / self._images[i])
            if self._images[i]
            else None
            for i in sorted(self._match.indices.values())
        }
        return Scores(metrics, "top1", DISPLAY, of_class, self._notes())

    def _notes(self) -> tuple[str, ...]:
        """Return what is said where only a part of the model's classes was seen."""
        seen = int((self._images > 0).sum())
        if not 0 < seen < len(self._images):
            return ()
        text = (
            f"the images are of {seen} of the model's {len(self._images)} classes; an image that "
            "is taken for any other class counts as wrong"
        )
        return (text,)


def _shown(truth: object) -> str:
    return f"category {truth}" if isinstance(truth, int) else f"a {type(truth).__name__}"


class SameClass:
    """Scores are compared in order; `top-1` says how many images have another best class.

    Such an image is excused where the reference's best two scores are so near that the errors
    allowed to both may turn their order.
    """

    def __init__(self, read: Read) -> None:
        """Take what finds the class scores among the outputs."""
        self._read = read
        self._images = self._others = self._wrong = 0

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return every output of the reference with the candidate's."""
        ours, theirs = (np.asarray(self._read(side), np.float64) for side in (found, expected))
        best = theirs.argmax(1)
        rows = np.arange(len(theirs))
        chosen = ours.argmax(1)
        margin = theirs[rows, best] - theirs[rows, chosen]
        differs = chosen != best
        self._images += len(theirs)
        self._others += int(differs.sum())
        self._wrong += int((differs & ~(margin <= 2 * (atol + rtol * span(theirs)))).sum())
        return {n: p._replace(columns=False) for n, p in _ALL.pairs(found, expected, 0, 0).items()}

    def findings(self) -> tuple[Agreement, ...]:
        """Return what `top-1` says of all images: how many differ, and their share."""
        share = self._others / max(self._images, 1)
        note = f"{self._others} of {self._images} images have another best class" + (
            f", {self._others - self._wrong} of them by a near tie" if self._others else ""
        )
        return (
            Agreement(
                "top-1",
                max_abs=self._others,
                mean_abs=share,
                relative=0.0,
                cosine=1 - share,
                passed=self._wrong == 0,
                note=note if self._others else "",
            ),
        )


_ALL = InOrder()
