"""How well does a model do its task? The loop over a data set, which knows no metric by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from deploykit.data import samples
from deploykit.errors import ModelError, OptionError
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.preprocess import Floats, Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset
    from deploykit.tasks.task import Metric, Scores, Task
    from deploykit.values import Progress

    Forward = Callable[[Batch], Mapping[str, Floats]]


@dataclass(frozen=True)
class Contract:
    """How a model is fed and its outputs are read."""

    preprocess: Preprocess
    class_names: Sequence[str]
    task: Task[Any]


class Evaluation(NamedTuple):
    """What came of running a model on a data set."""

    scores: Scores
    images: int
    """How many were run."""
    shrunk: int = 0
    """How many of them no canvas held at their own scale."""
    parts: tuple[Scores, ...] = ()
    """Of as many parts of the images as were asked for."""


def evaluate(  # noqa: PLR0913 - three nouns and four independent switches
    run: Forward,
    dataset: Dataset,
    contract: Contract,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    parts: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Return the scores of `run` (a batch -> outputs) on a data set.

    The truth about an image is read when its result is there; only the images that were run
    count, see `samples.choose` for `limit`. parts: see `Judge`.

    Raises: OptionError for images without truth; DataError where the truth does not fit the model
        or an image is unreadable; what the task's metric raises.
    """
    judge = Judge(dataset, contract, limit, parts)
    for batch in samples.batches(
        dataset, contract.preprocess, batch_size, limit=limit, progress=progress
    ):
        judge.add(batch, run(batch))
    return judge.found()


class Judge:
    """The scores of one model, batch by batch."""

    def __init__(
        self, dataset: Dataset, contract: Contract, limit: int | None, parts: int = 0
    ) -> None:
        """Begin with no image.

        parts: of images that follow each other, one at most for each image, whose scores are
        asked for beside those of all: what is alike stays together.

        Raises: as `evaluate`.
        """
        chosen = samples.choose(dataset.samples, limit)
        self._truths = {s.name: s.truth for s in chosen if s.truth is not None}
        if len(self._truths) < len(chosen):
            without = len(chosen) - len(self._truths)
            raise OptionError(
                f"{dataset.name} has images but no truth to compare with"
                + (f" for {without} of {len(chosen)}" if self._truths else ""),
                expected="a source with truth, such as coco:DIR, imagefolder:DIR or shapes:",
            )
        self._contract = contract
        names = contract.class_names
        scored = dataset.benchmark or contract.task
        known, count = dataset.known(names), min(parts, len(chosen))
        self._metric: Metric[Any] = scored.metric(known, names)
        self._parts: list[Metric[Any]] = [scored.metric(known, names) for _ in range(count)]
        places = enumerate(chosen if count else ())
        self._part = {s.name: self._parts[place * count // len(chosen)] for place, s in places}
        self._images = self._shrunk = 0

    def add(self, batch: Batch, outputs: Mapping[str, Floats]) -> None:
        """Take in what the model gave for a batch. Raises: as `evaluate`."""
        results = self._contract.task.decode(outputs, batch.geometries)
        if len(results) != len(batch.names):
            raise ModelError(
                f"the model returned results for {len(results)} images",
                expected=f"{len(batch.names)}, one per image of the batch",
            )
        for name, result, place in zip(batch.names, results, batch.geometries, strict=True):
            truth, part = self._truths[name](), self._part.get(name)
            for metric in (self._metric,) if part is None else (self._metric, part):
                metric.add(name, result, truth, (place.height, place.width))
            self._images += 1
            self._shrunk += not self._contract.preprocess.holds(place.height, place.width)

    def found(self) -> Evaluation:
        """Return the scores of all batches so far. Raises: what the task's metric raises."""
        parts = tuple(part.scores() for part in self._parts)
        return Evaluation(self._metric.scores(), self._images, self._shrunk, parts)
