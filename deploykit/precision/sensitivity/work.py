"""The work that sensitivities take, cut into units that any process can do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deploykit.backends import onnxruntime
from deploykit.data import ahead, arrays, feeding, samples, sources
from deploykit.files import onnxfile
from deploykit.graph import canvases
from deploykit.precision.sensitivity import local
from deploykit.precision.sensitivity.alone import Subject, Variants
from deploykit.precision.sensitivity.doubling import doubled
from deploykit.precision.sensitivity.outputs import Difference
from deploykit.recipes import opened
from deploykit.tasks.evaluation import Judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deploykit.backends import Arrays
    from deploykit.data.preprocess import Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset
    from deploykit.precision.sensitivity.alone import Alone, Outputs
    from deploykit.precision.sensitivity.doubling import Names
    from deploykit.precision.sensitivity.local import Run, Sums
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.evaluation import Contract
    from deploykit.values import CalibrationTable, PrecisionPlan

    Size = tuple[int, int] | None

CHUNK = 4
"""Batches in a unit of the pass over all layers."""
GROUP = 8
"""Layers whose variants are open at once: their weights are in memory several times."""


class Unit(NamedTuple):
    """One piece of work; those of one kind are numbered from 0."""

    kind: str
    """`local`: all layers' own results on some batches; `alone`: some layers on all images;
    `gradient`: all layers' effect on the outputs, on some batches."""
    number: int


class Alones(NamedTuple):
    """What was found of some layers, each of which differed alone."""

    layers: Mapping[str, Mapping[str, float]]
    """Node -> measure -> value."""
    base: Mapping[str, float]
    """Of the model in which no layer differs."""
    primary: str
    """What the task calls its number."""


@dataclass(frozen=True)
class Question:
    """What is asked, in values that travel between processes."""

    data: bytes
    """The float model."""
    path: Path
    plan: PrecisionPlan
    table: CalibrationTable
    preprocess: Preprocess | None
    """How images are prepared; None: `source` is a folder of arrays."""
    contract: Contract | None
    """How outputs are read, where the task is asked about."""
    source: str | Path
    images: int
    alone: Alone = "int8"
    local: bool = True
    outputs: bool = False
    task_source: str | None = None
    """Images with truth; None: the task is not asked about."""
    task_images: int | None = None
    batch_size: int | None = None
    """Images per run; None: see `samples.batch_size`."""
    gradient: Callable[[Worker, int], Alones] | None = None
    """What does units of that kind, where it is asked about; torch is not known here."""


@dataclass(frozen=True)
class Worker:
    """What answers a question, unit by unit; the order of the units is of no matter."""

    question: Question

    @cached_property
    def model(self) -> Opened:
        """Return the float model."""
        return opened.parsed(self.question.data, self.question.path)

    @cached_property
    def subjects(self) -> Mapping[Size, Subject]:
        """Return a subject for each size of image; the only one has no size."""
        given = self.question
        if len(canvases.sizes(self.model.graph)) < 2:
            return {None: Subject(self.model, given.plan, given.table)}
        return {
            size: Subject(opened.made(graph, given.path), given.plan, given.table)
            for size, graph in canvases.split(self.model.copy()).items()
        }

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Return the layers that are asked about, in the graph's order."""
        return next(iter(self.subjects.values())).layers()

    def units(self) -> list[Unit]:
        """Return all the work there is."""
        given = self.question
        found: list[Unit] = []
        chunks = -(-self._count() // (CHUNK * self._batch_size(given.source)))
        if given.local:
            found += [Unit("local", i) for i in range(chunks)]
        if given.gradient is not None:
            found += [Unit("gradient", i) for i in range(chunks)]
        if given.outputs or given.task_source is not None:
            found += [Unit("alone", i) for i in range(-(-len(self.layers) // GROUP))]
        return found

    def do(self, unit: Unit) -> Sums | Alones:
        """Return what a unit gives: the energies of its images, or the scores of its layers."""
        if unit.kind == "gradient" and self.question.gradient is not None:
            return self.question.gradient(self, unit.number)
        return self._local(unit.number) if unit.kind == "local" else self._alone(unit.number)

    def chunk(self, number: int) -> Iterator[tuple[Batch | None, Arrays]]:
        """Yield the batches of a chunk, with what the model is fed."""
        source, images = self.question.source, self.question.images
        if self.question.preprocess is None:
            return islice(self._batches(source, images), number * CHUNK, (number + 1) * CHUNK)
        size = CHUNK * self._batch_size(source)
        return self._batches(source, images, (number * size, (number + 1) * size))

    def _local(self, number: int) -> Sums:
        total: Sums = {}
        for part in ahead.in_order(
            self._energies, self.chunk(number), name="sensitivity", most=_THREADS
        ):
            total = local.added(total, part)
        return total

    def _energies(self, given: tuple[Batch | None, Arrays]) -> Sums:
        batch, feeds = given
        run, layers = self._twice[self.size(batch)]
        return local.sums(run, layers, feeds)

    @cached_property
    def _twice(self) -> Mapping[Size, tuple[Run, Mapping[str, Names]]]:
        """Return the graphs with each layer twice, ready to run."""
        found = {}
        for size, subject in self.subjects.items():
            made = doubled(subject.model, subject.placed, subject.table)
            session = onnxruntime.open_model(made.model, threads=1)
            found[size] = (session.run, made.layers)
        return found

    def _alone(self, number: int) -> Alones:
        layers = self.layers[number * GROUP : (number + 1) * GROUP]
        variants = {
            size: Variants(subject, layers, self.question.alone)
            for size, subject in self.subjects.items()
        }
        found: dict[str, dict[str, float]] = {name: {} for name in layers}
        if self.question.outputs:
            differences = {name: Difference() for name in layers}
            batches = self._batches(self.question.source, self.question.images)
            for _, expected, others in self._run(variants, batches):
                for name, outputs in others.items():
                    differences[name].add(outputs, expected)
            for name, difference in differences.items():
                found[name]["output"] = difference.noise()
        base: dict[str, float] = {}
        primary = ""
        if self.question.task_source is not None:
            base, primary = self._judged(variants, found)
        return Alones(found, base, primary)

    def _run(
        self, variants: Mapping[Size, Variants], batches: Iterator[tuple[Batch | None, Arrays]]
    ) -> Iterator[tuple[Batch | None, Outputs, Mapping[str, Outputs]]]:
        """Yield each batch with the outputs of the base, and of each layer's variant."""

        def one(
            given: tuple[Batch | None, Arrays],
        ) -> tuple[Batch | None, Outputs, Mapping[str, Outputs]]:
            expected, others = variants[self.size(given[0])].run(given[1])
            return given[0], expected, dict(others)

        return ahead.in_order(one, batches, name="sensitivity", most=_THREADS)

    def _judged(
        self, variants: Mapping[Size, Variants], found: Mapping[str, dict[str, float]]
    ) -> tuple[dict[str, float], str]:
        """Return the base's score, and its name; into `found` goes what each layer costs."""
        given = self.question
        assert given.contract is not None  # arrays have no truth
        assert given.task_source is not None  # it is asked about
        data, limit = sources.dataset(given.task_source), given.task_images
        base = Judge(data, given.contract, limit)
        judges = {name: Judge(data, given.contract, limit) for name in found}
        first = onnxfile.interface(self.model.graph)[0][0]
        batches = self._batches(given.task_source, limit)
        for batch, expected, others in self._run(variants, batches):
            assert batch is not None  # they are images
            count = len(batch.names)
            base.add(batch, feeding.unfilled(expected, first, count))
            for name, outputs in others.items():
                judges[name].add(batch, feeding.unfilled(outputs, first, count))
        scores = base.found().scores
        for name, judge in judges.items():
            found[name]["task"] = scores.lost(judge.found().scores)
        return {"task": math.nan if scores.value is None else scores.value}, scores.primary

    def _batches(
        self, source: str | Path, images: int | None, chosen: tuple[int, int] | None = None
    ) -> Iterator[tuple[Batch | None, Arrays]]:
        """Yield batches of a source with what the model is fed; `chosen`: images from and to."""
        inputs, _ = onnxfile.interface(self.model.graph)
        if self.question.preprocess is None:
            fed = arrays.opened(Path(source), inputs)
            for each in fed.feeds(limit=images, batch=self.question.batch_size):
                yield None, each.arrays
            return
        data = _cut(sources.dataset(str(source)), images, chosen)
        size, preprocess = self._batch_size(source), self.question.preprocess
        for batch in samples.batches(data, preprocess, size):
            yield batch, feeding.feeds(inputs, batch.images, batch.geometries)

    def _batch_size(self, source: str | Path) -> int:
        inputs, _ = onnxfile.interface(self.model.graph)
        if self.question.preprocess is None:
            assert isinstance(source, Path)  # arrays lie in a folder
            return next(len(f.names) for f in arrays.opened(source, inputs).feeds(limit=None))
        fixed, size = feeding.batch(inputs[0]), self.question.preprocess.size
        return samples.batch_size(self.question.batch_size, fixed, size, pixels=_PIXELS)

    def _count(self) -> int:
        """Return how many images the pass over all layers takes."""
        if self.question.preprocess is None:
            inputs, _ = onnxfile.interface(self.model.graph)
            held = arrays.opened(Path(self.question.source), inputs).samples
        else:
            held = sources.dataset(str(self.question.source)).samples  # type: ignore[assignment]  # counted alone
        return min(len(held), self.question.images)

    def size(self, batch: Batch | None) -> Size:
        """Return by which of `subjects` a batch is run."""
        if batch is None or None in self.subjects:
            return None
        height, width = batch.images.shape[2:]
        return (height, width)


_PIXELS = 1 << 17
"""Of the images of a batch: what runs side by side is then small."""
_THREADS = 4


def _cut(data: Dataset, images: int | None, chosen: tuple[int, int] | None) -> Dataset:
    """Return a data set of some images alone, of those those from and to."""
    kept = samples.choose(data.samples, images)
    return replace(data, samples=kept if chosen is None else kept[slice(*chosen)])
