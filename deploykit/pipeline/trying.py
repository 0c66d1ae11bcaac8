"""Plans tried on images: what the task makes of a model with some layers in float."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from deploykit.backends import onnxruntime
from deploykit.data import feeding, samples, sources
from deploykit.errors import DataError
from deploykit.files import onnxfile
from deploykit.pipeline import opening, teaching
from deploykit.precision import placement
from deploykit.precision.planning import confirming
from deploykit.precision.quantization.writing import insert
from deploykit.recipes import describing, opened
from deploykit.tasks import evaluation
from deploykit.tasks.evaluation import Contract
from deploykit.values import Precision, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.sources import Dataset
    from deploykit.precision.planning.confirming import Drop
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.evaluation import Evaluation
    from deploykit.values import CalibrationTable, PrecisionPlan, Progress


_PARTS = 20
"""Of the images, whose scores say how much chance there is in those of all."""


@dataclass(frozen=True)
class Trials:
    """A model, and the images that its plans are tried on."""

    model: Opened
    """In float."""
    plan: PrecisionPlan
    table: CalibrationTable
    source: str
    limit: int | None
    confidence: float = confirming.CONFIDENCE
    progress: Progress = silent

    def drop(self, kept: Sequence[str]) -> Drop:
        """Return what the task loses with the layers `kept` in float besides those of the plan.

        Raises: DataError, ModelError.
        """
        before, found = self._float, self._evaluated(self._with(kept))
        lost = before.scores.lost(found.scores)
        if math.isnan(lost):
            raise self._unsaid()
        parts = (one.lost(other) for one, other in zip(before.parts, found.parts, strict=True))
        known = [each for each in parts if not math.isnan(each)]
        return confirming.drop(lost, known, self.confidence)

    @property
    def reference(self) -> float:
        """Return the task's number of the float model. Raises: DataError where it has none."""
        value = self._float.scores.value
        if value is None:
            raise self._unsaid()
        return value

    @property
    def named(self) -> str:
        """Return what the task calls its number."""
        return self._float.scores.primary

    @cached_property
    def contract(self) -> Contract:
        """Return how images are prepared and outputs read. Raises: OptionError, ModelError."""
        card = self.model.card
        if card is None:
            raise describing.unsaid(f"{self.model.path} does not say how its images are prepared")
        task = opening.task_named(card, self.model.path)
        return Contract(card.preprocess, card.class_names, task)

    @cached_property
    def _data(self) -> Dataset:
        """Return the images, with what the float model finds where nothing is known of them."""
        data = self._given
        if not self.told:
            return data
        teacher, task = self._running(self.model), self.contract.task
        told = teaching.told_by((teacher, teacher), (task, task), data)
        known = [replace(each, truth=each.truth and cache(each.truth)) for each in told.samples]
        return replace(told, samples=known)

    @cached_property
    def _given(self) -> Dataset:
        data = sources.dataset(self.source)
        return replace(data, samples=samples.choose(data.samples, self.limit))

    @property
    def single(self) -> bool:
        """Return whether there is one image alone, by which no other can be told."""
        return len(self._given.samples) == 1

    @property
    def told(self) -> bool:
        """Return whether the float model's own findings are the truth."""
        return any(sample.truth is None for sample in self._given.samples)

    @cached_property
    def _float(self) -> Evaluation:
        return self._evaluated(self.model)

    def _unsaid(self) -> DataError:
        return DataError(f"{self._given.name} says nothing about the task's metric")

    def _with(self, kept: Sequence[str]) -> Opened:
        """Return the INT8 model with more layers in float."""
        graph = onnxfile.copied(self.model.graph)
        layers = {**self.plan.layers, **dict.fromkeys(kept, Precision.FP32)}
        placed = placement.place(graph, replace(self.plan, layers=layers))
        insert(graph, placed, self.table, Precision.FP32)
        return opened.made(graph, self.model.path)

    def _running(self, model: Opened) -> opening.Model:
        session = onnxruntime.open_model(model)
        path, card = self.model.path, self.model.card
        return opening.Model(path, self.model.sha256, opening.ONNXRUNTIME, session, card)

    def _evaluated(self, model: Opened) -> Evaluation:
        """Return what the task makes of a model, on all images and on each part of them."""
        running = self._running(model)
        batch = feeding.batch(running.session.inputs[0])
        size = samples.batch_size(None, batch, self.contract.preprocess.size)
        return evaluation.evaluate(
            running.forward,
            self._data,
            self.contract,
            batch_size=size,
            parts=_PARTS,
            progress=self.progress,
        )
